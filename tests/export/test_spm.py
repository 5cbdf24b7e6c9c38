"""spm.model -> tokenizer.json: the ids LLM-Blender sees, without sentencepiece."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from conversations import conversations
from corpus import CODE, ENGLISH, OTHER_LANGUAGES, SYMBOLS
from rm_export.errors import CheckpointError
from rm_export.spm import deberta_tokenizer, read_spm

FIXTURE = Path(__file__).parent.parent / "data" / "tokenizers" / "deberta"
"""Its tokenizer.json is what DebertaV2Converter of transformers 4.46 makes, with PairRM's prefixes added."""


@pytest.fixture(scope="module")
def built() -> Tokenizer:
    return deberta_tokenizer(FIXTURE)


def copied(folder: Path, *names: str) -> Path:
    for name in names:
        shutil.copyfile(FIXTURE / name, folder / name)
    return folder


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """A protobuf message of varints and length-delimited fields, all shorter than 128."""
    parts = []
    for number, value in fields:
        assert number < 16
        if isinstance(value, int):
            parts.append(bytes([number << 3, value]))
        else:
            parts.append(bytes([number << 3 | 2, len(value)]) + value)
    return b"".join(parts)


def piece(text: str, score: float = 0.0, kind: int = 1) -> tuple[int, bytes]:
    return 1, message((1, text.encode())) + b"\x15" + struct.pack("<f", score) + message((3, kind))


def small_model(*extra: tuple[int, bytes], model_type: int = 1) -> bytes:
    """Four control pieces, "▁a" and whatever else; [UNK] is 3; no normalisation map."""
    control = [piece("[PAD]", 0, 3), piece("[CLS]", 0, 3), piece("[SEP]", 0, 3), piece("[UNK]", 0, 2)]
    trainer = message((3, model_type)) + b"\xc0\x02\x03"  # field 40, unk_id, is 3
    return message(*control, piece("▁a", -1.0), *extra, (2, trainer))


def test_the_tokenizer_is_the_one_transformers_4_makes(built: Tokenizer) -> None:
    theirs = json.loads((FIXTURE / "tokenizer.json").read_text("utf-8"))
    assert json.loads(built.to_str()) == theirs


@pytest.mark.parametrize(
    ("text", "same_as"),
    [("ﬁnd", "find"), ("Ｆｕｌｌ ｗｉｄｔｈ", "Full width"), ("½", "1⁄2"), ("…", "..."), ("no\u00a0break", "no break")],
)
def test_the_normalisation_map_of_the_model_is_kept(built: Tokenizer, text: str, same_as: str) -> None:
    assert built.encode(text).ids == built.encode(same_as).ids


def test_sentencepiece_itself_finds_the_same_ids_wherever_it_knows_all_characters(built: Tokenizer) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    own = sentencepiece.SentencePieceProcessor(model_file=str(FIXTURE / "spm.model"))
    texts = [*ENGLISH, *OTHER_LANGUAGES, *CODE, *SYMBOLS]
    texts += [turn["content"] for chat in conversations(60, special_text=False) for turn in chat]
    compared = 0
    for text in texts:
        ids = own.encode(text)
        if not any(own.is_byte(token) or own.is_unknown(token) for token in ids):
            assert built.encode(text, add_special_tokens=False).ids == ids, text
            compared += 1
    assert compared > 100


def test_a_character_outside_the_vocabulary_is_unknown_and_not_bytes(built: Tokenizer) -> None:
    assert built.encode("\U0001f9ea", add_special_tokens=False).tokens[-1] == "\U0001f9ea"
    assert built.encode("\U0001f9ea", add_special_tokens=False).ids[-1] == built.token_to_id("[UNK]")


def test_a_text_is_put_between_cls_and_sep(built: Tokenizer) -> None:
    assert built.encode("a").tokens[0] == "[CLS]"
    assert built.encode("a").tokens[-1] == "[SEP]"
    assert built.encode("a", "b").tokens.count("[SEP]") == 2


def test_a_bare_spm_model_gets_the_mask_token_and_nothing_else(tmp_path: Path) -> None:
    tokenizer = deberta_tokenizer(copied(tmp_path, "spm.model"))
    assert tokenizer.get_vocab_size() == len(read_spm(tmp_path / "spm.model").pieces) + 1
    assert tokenizer.token_to_id("[MASK]") == tokenizer.get_vocab_size() - 1


def test_lower_casing_and_punctuation_splits_follow_the_config(tmp_path: Path) -> None:
    copied(tmp_path, "spm.model")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true, "split_by_punct": true}')
    tokenizer = deberta_tokenizer(tmp_path)
    assert tokenizer.encode("THE").ids == tokenizer.encode("the").ids
    assert tokenizer.encode("a.b").tokens[1:-1] == ["▁a", "▁", ".", "▁b"]


def test_a_model_without_a_normalisation_map_works(tmp_path: Path) -> None:
    (tmp_path / "spm.model").write_bytes(small_model())
    assert deberta_tokenizer(tmp_path).encode("a b").ids == [1, 4, 3, 2]


def test_user_defined_pieces_are_whole_tokens(tmp_path: Path) -> None:
    (tmp_path / "spm.model").write_bytes(small_model(piece("<x>", 0, 4)))
    assert deberta_tokenizer(tmp_path).encode("a<x>").ids == [1, 4, 5, 2]


def test_added_tokens_that_leave_a_gap_are_refused(tmp_path: Path) -> None:
    copied(tmp_path, "spm.model")
    (tmp_path / "added_tokens.json").write_text('{"<|source|>": 5000}')
    with pytest.raises(CheckpointError, match=r"added token '<\|source\|>' should have id 5000"):
        deberta_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not a sentencepiece model"),
        (b"\xff" * 40, "is not a sentencepiece model"),
        (b'{"version": "1.0"}', "is not a sentencepiece model"),
        (small_model(model_type=2), "is not a sentencepiece model"),
        (small_model()[:-2], "is not a sentencepiece model"),
        (message(piece("a"), (2, b"\xc0\x02\x00")), "has no piece [PAD]"),
        (small_model((3, message((2, b"\x00\x01\x02")))), "has a damaged normalisation map"),
    ],
)
def test_a_file_that_is_no_such_model_is_refused_in_one_line(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "spm.model").write_bytes(content)
    with pytest.raises(CheckpointError) as refused:
        deberta_tokenizer(tmp_path)
    assert problem in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"spm\.model is missing"):
        deberta_tokenizer(tmp_path)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_bytes_raise_nothing_but_a_checkpoint_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(small_model(piece("<x>", 0, 4)))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged" / "spm.model"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(content)[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(CheckpointError):
        deberta_tokenizer(path.parent)


def test_sentencepiece_is_not_needed() -> None:
    program = (
        "import sys; sys.modules['sentencepiece'] = None; from pathlib import Path; "
        f"from rm_export.spm import deberta_tokenizer; deberta_tokenizer(Path({str(FIXTURE)!r}))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)})
