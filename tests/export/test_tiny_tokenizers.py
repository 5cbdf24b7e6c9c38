"""The fixture tokenizers keep the traits of the published ones that the families rely on."""

import json

import pytest
from tokenizers import Tokenizer

from checkpoints.hub_folder import TOKENIZERS
from conversations import conversations

transformers = pytest.importorskip("transformers")


def tokenizer(family: str) -> Tokenizer:
    return Tokenizer.from_file(str(TOKENIZERS / family / "tokenizer.json"))


def tokens(family: str, text: str, *, special: bool = False) -> list[str]:
    return tokenizer(family).encode(text, add_special_tokens=special).tokens


@pytest.mark.parametrize("family", ["llama3", "llama31"])
@pytest.mark.parametrize("text", ["assistant", "user", "system", "\n\n", "A", "B"])
def test_llama_keeps_the_words_of_its_header_whole(family: str, text: str) -> None:
    assert len(tokens(family, text)) == 1


def test_llama_special_tokens_have_the_published_order() -> None:
    ids = [
        tokenizer("llama3").token_to_id(name)
        for name in (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        )
    ]
    assert [token - ids[0] for token in ids] == [0, 1, 6, 7, 9]


def test_gemma_gate_pattern_is_five_tokens() -> None:
    assert tokens("gemma", "<end_of_turn>\n<start_of_turn>model\n") == [
        "<end_of_turn>",
        "\n",
        "<start_of_turn>",
        "model",
        "\n",
    ]


@pytest.mark.parametrize(
    ("family", "first"),
    [
        ("llama3", "<|begin_of_text|>"),
        ("gemma", "<bos>"),
        ("mistral", "<s>"),
        ("qwen", "Hi"),
        ("deberta", "[CLS]"),
    ],
)
def test_each_adds_its_own_bos(family: str, first: str) -> None:
    assert tokens(family, "Hi", special=True)[0] == first


@pytest.mark.parametrize("family", ["gemma", "mistral"])
def test_bytes_stand_in_for_unknown_characters(family: str) -> None:
    assert tokens(family, "龘")[-3:] == ["<0xE9>", "<0xBE>", "<0x98>"]


def test_deberta_normalises_as_nmt_nfkc_and_has_no_byte_fallback() -> None:
    plain = tokens("deberta", "find 1⁄2 Full...")
    assert tokens("deberta", "ﬁnd\n½  Ｆｕｌｌ… ") == plain
    assert tokenizer("deberta").encode("龘").ids == [1, tokenizer("deberta").token_to_id("▁"), 3, 2]


def test_deberta_prefix_tokens_follow_mask() -> None:
    names = ("[MASK]", "<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>")
    ids = [tokenizer("deberta").token_to_id(name) for name in names]
    assert [token - ids[0] for token in ids] == [0, 1, 2, 3, 4]
    added = json.loads((TOKENIZERS / "deberta" / "added_tokens.json").read_text())
    assert added == dict(zip(names, ids, strict=True))


@pytest.mark.parametrize(
    ("family", "system", "last"),
    [
        ("llama3", True, "<|eot_id|>"),
        ("llama31", True, "<|eot_id|>"),
        ("gemma", False, "<end_of_turn>\n"),
        ("mistral", False, "</s>"),
        ("qwen", True, "<|im_end|>\n"),
    ],
)
def test_every_conversation_renders_and_ends_the_turn(family: str, system: bool, last: str) -> None:
    template = transformers.AutoTokenizer.from_pretrained(TOKENIZERS / family)
    for chat in conversations(system=system):
        assert template.apply_chat_template(chat, tokenize=False).endswith(last)


def test_llama31_template_dates_the_system_block() -> None:
    template = transformers.AutoTokenizer.from_pretrained(TOKENIZERS / "llama31")
    chat = [{"role": "user", "content": " Hi "}, {"role": "assistant", "content": ""}]
    text = template.apply_chat_template(chat, tokenize=False, date_string="26 Jul 2024")
    assert text == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n<|eot_id|>"
    )
    assert "Today Date: 26 Jul 2024" not in template.apply_chat_template(chat, tokenize=False)
