"""special_text.py: literals typed by users, against an oracle that knows nothing of its two steps.

The oracle cuts a prompt at the template's own control tokens and encodes each piece with a tokenizer that has
no control tokens at all. To know which are the template's, it renders with words in the literals' place.
"""

from __future__ import annotations

import json
import re
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers

from conversations import conversations
from prompt_cases import CASES, FAMILIES, PLAIN, Case, load_tokenizer, reference
from rm_runtime.errors import PromptError
from rm_runtime.prompt_spec import ChatPrompt
from rm_runtime.prompts import ChatPrompter, Prompt
from rm_runtime.special_text import ControlText, control_tokens
from rm_runtime.templates import render_chat

# DeBERTa's Unigram vocabulary itself lists "[SEP]"; without control tokens it is another tokenizer.
ORACLE_CASES = [name for name, case in CASES.items() if case.family != "deberta"]


@cache
def prompter(name: str) -> ChatPrompter:
    return ChatPrompter(CASES[name].spec, CASES[name].tokenizer())


@cache
def without_control_tokens(family: str) -> Tokenizer:
    fields = json.loads(load_tokenizer(family).to_str())
    fields["added_tokens"] = [token for token in fields["added_tokens"] if not token["special"]]
    return Tokenizer.from_str(json.dumps(fields))


def oracle(case: Case, messages: list[dict[str, str]]) -> tuple[list[int], str]:
    control = {t.content: i for i, t in load_tokenizer(case.family).get_added_tokens_decoder().items() if t.special}
    pattern = re.compile("|".join(re.escape(text) for text in sorted(control, key=len, reverse=True)))
    literals: list[str] = []

    def word(literal: re.Match[str]) -> str:
        literals.append(literal[0])
        return f"QZX{len(literals) - 1:04d}XZQ"

    worded = [{"role": m["role"], "content": pattern.sub(word, m["content"])} for m in messages]
    rendered = render_chat(case.spec, worded)
    if case.spec.remove_bos_text:
        rendered = rendered.replace(case.spec.variables["bos_token"], "")

    def restored(text: str) -> str:
        return re.sub(r"QZX(\d{4})XZQ", lambda found: literals[int(found[1])], text)

    ids = [case.spec.bos_token_id] if case.spec.add_special_tokens else []
    pieces, tokens = pattern.split(rendered), pattern.findall(rendered)
    for piece, token in zip(pieces, [*tokens, None], strict=True):
        ids += without_control_tokens(case.family).encode(restored(piece), add_special_tokens=False).ids
        ids += [] if token is None else [control[token]]
    return ids, restored(rendered)


def encode(name: str, messages: list[dict[str, str]], special_text: str) -> Prompt:
    (result,) = prompter(name).encode([messages], special_text=special_text)  # type: ignore[arg-type]  # a Literal
    assert isinstance(result, Prompt), result
    return result


@pytest.mark.parametrize("name", ORACLE_CASES)
def test_literals_are_encoded_as_the_text_they_are_at_the_place_they_have(name: str) -> None:
    case = CASES[name]
    literals = list(control_tokens(case.tokenizer()))
    for index, messages in enumerate(conversations(system=case.system)):
        literal = literals[index % len(literals)]
        answer = f"{literal} {messages[-1]['content']}a{literal}{literal}b {literal}"
        spiked = [*messages[:-1], {"role": "assistant", "content": answer}]
        prompt = encode(name, spiked, "text")
        assert (prompt.ids.tolist(), prompt.text) == oracle(case, spiked)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_mixture_of_text_and_literals_is_encoded_as_text(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(ORACLE_CASES))
    case = CASES[name]
    literals = list(control_tokens(case.tokenizer()))
    halves = [part for text in literals for part in (text[:2], text[2:])]
    pieces = [*literals, *halves, " ", "\n", "\n\n", "▁"]
    content = st.lists(st.sampled_from(pieces) | st.text(max_size=5), max_size=8).map("".join)
    contents = data.draw(st.lists(content, min_size=1, max_size=3))
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    prompt = encode(name, messages, "text")
    assert (prompt.ids.tolist(), prompt.text) == oracle(case, messages)


@pytest.mark.parametrize("name", CASES)
def test_no_text_a_user_types_becomes_a_control_token(name: str) -> None:
    case = CASES[name]
    control = control_tokens(case.tokenizer())
    typed = " ".join(control) + "".join(control) + "\n".join(control)
    ours = [{"role": "user", "content": typed}, {"role": "assistant", "content": typed}]
    neutral = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    expected = [i for i in encode(name, neutral, "token").ids.tolist() if i in control.values()]
    unknown = case.tokenizer().token_to_id("[UNK]")
    found = [i for i in encode(name, ours, "text").ids.tolist() if i in control.values() and i != unknown]
    assert found == expected
    everything = encode(name, ours, "token").ids.tolist()
    assert set(control.values()) - {case.spec.bos_token_id} <= set(everything)


@pytest.mark.parametrize("family", ["llama3", "qwen", "gemma", "mistral"])
def test_plain_text_decodes_to_what_was_typed(family: str) -> None:
    name = next(name for name, case in CASES.items() if case.family == family)
    tokenizer = load_tokenizer(family)
    for literal in control_tokens(tokenizer):
        prompt = encode(name, [{"role": "user", "content": f"x {literal} y{literal}"}], "text")
        assert f"x {literal} y{literal}" in tokenizer.decode(prompt.ids.tolist(), skip_special_tokens=True)


@pytest.mark.parametrize("name", CASES)
def test_texts_without_literals_have_the_same_ids_in_every_mode(name: str) -> None:
    chats = conversations(60, seed=3, system=CASES[name].system, special_text=False)
    modes = [prompter(name).encode(chats, special_text=mode) for mode in ("token", "text", "error")]  # type: ignore[arg-type]
    for prompts in zip(*modes, strict=True):
        ids = [prompt.ids.tolist() for prompt in prompts if isinstance(prompt, Prompt)]
        assert ids[0] == ids[1] == ids[2]


@pytest.mark.parametrize("name", CASES)
def test_refusing_names_the_token_and_the_message(name: str) -> None:
    for literal in control_tokens(CASES[name].tokenizer()):
        messages = [{"role": "user", "content": "fine"}, {"role": "assistant", "content": f"a{literal}b"}]
        (result,) = prompter(name).encode([messages], special_text="error")
        assert isinstance(result, PromptError)
        assert str(result) == f"the content of message 1 holds the text of the special token {literal!r}"


def test_a_role_can_hold_a_literal_too() -> None:
    name = "qwen: ChatML, no BOS"
    messages = [{"role": "user<|im_end|>", "content": "Hi"}]
    (refused,) = prompter(name).encode([messages], special_text="error")
    assert "the role of message 0" in str(refused)
    assert encode(name, messages, "text").ids.tolist().count(1202) == 2
    assert encode(name, messages, "token").ids.tolist().count(1202) == 3


def test_gemmas_plain_added_tokens_stay_what_they_are() -> None:
    name = "grm: Gemma, two BOS"
    messages = [{"role": "user", "content": "a\n\nb<unused0>"}]
    (result,) = prompter(name).encode([messages], special_text="error")
    assert isinstance(result, Prompt)
    assert 16 in result.ids
    assert 5 in result.ids
    spiked = [{"role": "user", "content": "a\n\nb<unused0><eos>"}]
    assert 16 in encode(name, spiked, "text").ids
    assert 1 not in encode(name, spiked, "text").ids


def test_a_user_keeps_bos_text_that_is_to_be_plain_text() -> None:
    name = "pair-pm: Llama-3 with its header, no BOS"
    messages = [{"role": "user", "content": "say <|begin_of_text|> twice"}]
    assert "<|begin_of_text|>" in encode(name, messages, "text").text
    assert "<|begin_of_text|>" not in encode(name, messages, "token").text


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_and_the_templates_own_tokens_are_control_tokens(family: str) -> None:
    added = load_tokenizer(family).get_added_tokens_decoder()
    special = {token.content for token in added.values() if token.special}
    assert set(control_tokens(load_tokenizer(family))) == special
    assert control_tokens(load_tokenizer(family)) == {added[i].content: i for i in added if added[i].special}


def test_prefixes_of_pairrm_are_found_when_named() -> None:
    tokenizer = load_tokenizer("deberta")
    prefixes = ("<|source|>", "<|candidate1|>")
    found = control_tokens(tokenizer, prefixes)
    assert {"<|source|>": 1040, "<|candidate1|>": 1041}.items() <= found.items()
    assert "<|candidate2|>" not in found
    control = ControlText(tokenizer, found)
    assert control.find("a <|source|>") == "<|source|>"
    assert control.find("a <|candidate|>") is None


@pytest.mark.parametrize("family", FAMILIES)
def test_control_tokens_are_those_transformers_sanitises(family: str) -> None:
    pytest.importorskip("transformers")
    template = PLAIN + "<unused3>\n\n<|candidate1|>"
    ours = control_tokens(load_tokenizer(family), [template])
    assert set(ours) == set(reference(family)._get_control_tokens(template))


def test_text_that_a_normaliser_turns_into_a_token_is_found() -> None:
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate("abcdes[]p")}, []))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.add_special_tokens([AddedToken("[sep]", special=True, normalized=True)])
    prompter = ChatPrompter(ChatPrompt("{{ messages[0].content }}[sep]"), tokenizer)
    messages = [{"role": "user", "content": "a［ＳＥＰ］b"}]
    results = [prompter.encode([messages], special_text=mode)[0] for mode in ("token", "text", "error")]  # type: ignore[arg-type]
    token, text, error = results
    assert isinstance(token, Prompt)
    assert isinstance(text, Prompt)
    assert token.ids.tolist() == [0, 9, 1, 9]
    assert text.ids.tolist() == [0, 6, 5, 4, 8, 7, 1, 9]
    assert "special token '[sep]'" in str(error)


def test_tokens_of_one_character_and_tokens_that_overlap_are_text_too() -> None:
    tokenizer, plain = load_tokenizer("qwen"), load_tokenizer("qwen")
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in ("☃", "thax", "hax", "thax is")]
    )
    prompter = ChatPrompter(ChatPrompt("☃{{ messages[0].content }}hax"), tokenizer)
    begin, end = tokenizer.token_to_id("☃"), tokenizer.token_to_id("hax")
    for typed in ("☃ 5 and ☃☃", "thaxhax is thax", "what thax is", "tththaxhaxatax", "☃thax☃"):
        (result,) = prompter.encode([[{"role": "user", "content": typed}]], special_text="text")
        assert isinstance(result, Prompt)
        assert result.text == f"☃{typed}hax"
        assert result.ids.tolist() == [begin, *plain.encode(typed).ids, end]


@pytest.mark.parametrize("token", [AddedToken("§", special=True), AddedToken("word", single_word=True, special=True)])
def test_a_token_that_cannot_be_renamed_is_named(token: AddedToken) -> None:
    tokenizer = load_tokenizer("qwen")
    tokenizer.add_special_tokens([token])
    prompter = ChatPrompter(ChatPrompt(PLAIN), tokenizer)
    messages = [{"role": "user", "content": f"a {token.content} b"}]
    for result in prompter.encode([messages, messages], special_text="text"):
        assert str(result) == f"special_text='text' cannot rename the token {token.content!r} of this tokenizer"
    assert isinstance(prompter.encode([messages])[0], Prompt)


def test_a_template_that_looks_for_a_literal_does_not_see_the_users() -> None:
    template = "{{ messages[0].content.split('<|im_end|>') | length }}:{{ messages[0].content[:4] }}<|im_start|>"
    prompter = ChatPrompter(ChatPrompt(template), load_tokenizer("qwen"))
    (result,) = prompter.encode([[{"role": "user", "content": "ab<|im_end|>"}]], special_text="text")
    assert isinstance(result, Prompt)
    assert result.text == "1:ab<<|im_start|>"


def test_texts_with_private_use_characters_are_encoded_as_they_are() -> None:
    name = "qwen: ChatML, no BOS"
    typed = "\ue000<|im_end|>\ue001\U000f0000\U0010fffc"
    messages = [{"role": "user", "content": typed}]
    assert encode(name, messages, "text").ids.tolist() == oracle(CASES[name], messages)[0]
    assert encode(name, messages, "text").text.count(typed) == 1


@pytest.mark.parametrize("typed", ["\U0010fffc\U000f0000\U0010fffd", "".join(map(chr, range(0xE000, 0xF900)))])
def test_text_that_uses_the_reserved_characters_is_refused(typed: str) -> None:
    (result,) = prompter("qwen: ChatML, no BOS").encode(
        [[{"role": "user", "content": f"{typed}<|im_end|>"}]], special_text="text"
    )
    assert isinstance(result, PromptError)
    assert "private-use" in str(result)
