"""tokenizer.json from a DeBERTa-v3 checkpoint that only has sentencepiece's spm.model.

The result is what transformers 4's DebertaV2Converter makes, which is what LLM-Blender reads: a Unigram model
with the sentencepiece scores, the model's own normalisation map, and no byte fallback, so that a character
outside the vocabulary is [UNK]. (transformers 5 drops the map and gives other ids for "ﬁ", "½" or full-width
letters.) spm.model is a protobuf message; the few fields needed are read here, without sentencepiece.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from rm_export.checkpoint import read_json_object
from rm_export.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

SPM_FILE = "spm.model"

_VARINT, _LENGTH_DELIMITED = 0, 2
_FIXED_SIZES = {1: 8, 5: 4}
"""Wire types of protobuf; the last two are numbers of fixed size."""
_UNIGRAM = 1
_CONTROL, _USER_DEFINED = 3, 4
_SPACE = "▁"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class SentencePieceModel:
    """What spm.model says. pieces: (text, score, type) by id; charsmap: the compiled normalisation map."""

    pieces: list[tuple[str, float, int]]
    unk_id: int
    charsmap: bytes


def deberta_tokenizer(folder: Path) -> Tokenizer:
    """The fast tokenizer of a DeBERTa-v2/v3 folder with spm.model; [CLS] text [SEP] by its post-processor.

    Reads the added tokens of tokenizer_config.json and added_tokens.json where these files are there. Raises
    CheckpointError if spm.model is damaged, is no Unigram model, or does not fit the added tokens.
    """
    path = folder / SPM_FILE
    spm = read_spm(path)
    config = _optional(folder / "tokenizer_config.json")
    ids = {piece: index for index, (piece, _, _) in enumerate(spm.pieces)}
    missing = [token for token in ("[PAD]", "[CLS]", "[SEP]", "[UNK]") if token not in ids]
    if missing:
        raise CheckpointError(f"{path} has no piece {missing[0]}, so it is not DeBERTa's; is it the right file?")
    vocabulary = [(piece, score) for piece, score, _ in spm.pieces]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=spm.unk_id, byte_fallback=False))
    tokenizer.normalizer = _normalizer(spm.charsmap, bool(config.get("do_lower_case", False)), path)
    metaspace = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
    punctuation = [pre_tokenizers.Punctuation(behavior="isolated")] if config.get("split_by_punct") else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*punctuation, metaspace])
    tokenizer.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
    )
    for piece, _, kind in spm.pieces:
        if kind in (_CONTROL, _USER_DEFINED):
            tokenizer.add_tokens([AddedToken(piece, normalized=False, special=kind == _CONTROL)])
    tokenizer.add_tokens([AddedToken("[UNK]", normalized=True, special=True)])
    for token_id, token in sorted(_added_tokens(folder, config, len(spm.pieces)).items()):
        tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != token_id:
            raise CheckpointError(
                f"{folder}: the added token {token.content!r} should have id {token_id}, {SPM_FILE} gives it "
                f"{tokenizer.token_to_id(token.content)}; the tokenizer files do not belong together"
            )
    return tokenizer


def read_spm(path: Path) -> SentencePieceModel:
    """Parse spm.model. Raises CheckpointError if it is missing, damaged, or no Unigram model."""
    try:
        model = _parse_model(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; download the checkpoint again") from None
    except (ValueError, LookupError, TypeError, AttributeError, struct.error):  # what random bytes lead to
        raise CheckpointError(f"{path} is not a sentencepiece model; download the checkpoint again") from None
    return model


def _normalizer(charsmap: bytes, lowercase: bool, path: Path) -> normalizers.Sequence:
    steps: list[Any] = [normalizers.Lowercase()] if lowercase else []
    steps.append(normalizers.Strip())
    if charsmap:
        try:
            steps.append(normalizers.Precompiled(charsmap))
        except Exception as error:  # tokenizers raises bare Exception
            raise CheckpointError(f"{path} has a damaged normalisation map: {error}") from None
    steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    return normalizers.Sequence(steps)


def _added_tokens(folder: Path, config: Mapping[str, Any], vocab_size: int) -> dict[int, AddedToken]:
    """Tokens beyond the vocabulary by id: those the folder's files list, and [MASK], which the class adds."""
    tokens = {}
    for text, token_id in _optional(folder / "added_tokens.json").items():
        tokens[int(token_id)] = AddedToken(text, normalized=True)
    for token_id, entry in (config.get("added_tokens_decoder") or {}).items():
        flags = {name: bool(entry[name]) for name in _FLAGS if name in entry}
        tokens[int(token_id)] = AddedToken(entry["content"], **flags)
    mask_id = next((token_id for token_id, token in tokens.items() if token.content == "[MASK]"), vocab_size)
    tokens[mask_id] = AddedToken("[MASK]", normalized=False, special=True)
    return {token_id: token for token_id, token in tokens.items() if token_id >= vocab_size}


def _parse_model(message: bytes) -> SentencePieceModel:
    """ModelProto of sentencepiece_model.proto: 1 pieces, 2 trainer_spec, 3 normalizer_spec."""
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(message):
        if number == 1:
            fields = dict(_fields(value))
            (score,) = struct.unpack("<f", fields.get(2, bytes(4)))
            pieces.append((fields.get(1, b"").decode("utf-8"), score, fields.get(3, 1)))
        elif number == 2:
            trainer = dict(_fields(value))
        elif number == 3:
            normalizer = dict(_fields(value))
    model = SentencePieceModel(pieces, trainer.get(40, 0), normalizer.get(2, b""))
    if trainer.get(3, _UNIGRAM) != _UNIGRAM or not 0 <= model.unk_id < len(pieces):
        raise ValueError("not a Unigram model with an unknown token")
    return model


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of one protobuf message: int for varints, bytes for everything else."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        kind = key & 7
        if kind == _VARINT:
            number, place = _varint(message, place)
            yield key >> 3, number
            continue
        if kind == _LENGTH_DELIMITED:
            size, place = _varint(message, place)
        else:
            size = _FIXED_SIZES[kind]
        if place + size > len(message):
            raise ValueError("the message ends inside a field")
        yield key >> 3, message[place : place + size]
        place += size


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """The base-128 integer at `place`, and the place after it."""
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 127) << shift
        place += 1
        if byte < 128:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("varint of more than 64 bits")


def _optional(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.exists() else {}
