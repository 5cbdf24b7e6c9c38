"""prompts.py and tokenization.py against transformers: the same ids, byte for byte and id for id."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

import chat_templates
from conversations import conversations
from prompt_cases import CASES, PLAIN, Case, load_tokenizer, reference, special_names
from rm_runtime.errors import BundleError, PromptError, RequestError
from rm_runtime.prompt_spec import ChatPrompt, PairChatPrompt
from rm_runtime.prompts import ChatPrompter, PairChatPrompter, Prompt
from rm_runtime.results import Truncation

pytest.importorskip("transformers")

USER = [{"role": "user", "content": "Hi"}]
CHAT = [*USER, {"role": "assistant", "content": "Hello there"}]


def reference_text(case: Case, messages: list[dict[str, str]]) -> str:
    header = case.spec.variables["add_generation_prompt"]
    text: str = reference(case.family).apply_chat_template(
        messages,
        chat_template=case.spec.template,
        tokenize=False,
        add_generation_prompt=header,
        date_string="26 Jul 2024",
    )
    return text.replace(reference(case.family).bos_token, "") if case.spec.remove_bos_text else text


def reference_ids(case: Case, text: str, **limits: Any) -> list[int]:
    tokenizer = reference(case.family)
    tokenizer.truncation_side = limits.pop("side", "right")
    ids: list[int] = tokenizer(text, add_special_tokens=case.spec.add_special_tokens, **limits)["input_ids"]
    return ids


def prompt_of(result: Prompt | PromptError) -> Prompt:
    assert isinstance(result, Prompt), result
    return result


def error_of(result: Prompt | PromptError) -> str:
    assert isinstance(result, PromptError)
    assert "\n" not in str(result)
    return str(result)


@pytest.mark.parametrize("name", CASES)
def test_ids_and_text_are_those_of_transformers(name: str) -> None:
    case = CASES[name]
    chats = conversations(system=case.system)
    prompts = ChatPrompter(case.spec, case.tokenizer()).encode(chats)
    assert len(prompts) == len(chats) >= 200
    for messages, result in zip(chats, prompts, strict=True):
        prompt, text = prompt_of(result), reference_text(case, messages)
        assert prompt.text == text
        assert prompt.ids.tolist() == reference_ids(case, text)
        assert prompt.ids.dtype == np.int64
        assert not prompt.truncation


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_truncated_ids_are_those_of_transformers(name: str, side: Any) -> None:
    case = CASES[name]
    chats = conversations(60, seed=1, system=case.system)
    for max_length in (3, 4, 17, 64):
        spec = case.limited(max_length=max_length, truncation_side=side)
        for messages, result in zip(chats, ChatPrompter(spec, case.tokenizer()).encode(chats), strict=True):
            prompt, text = prompt_of(result), reference_text(case, messages)
            expected = reference_ids(case, text, truncation=True, max_length=max_length, side=side)
            assert prompt.ids.tolist() == expected
            lost = len(reference_ids(case, text)) - len(expected)
            assert prompt.truncation == ((Truncation(lost, side),) if lost else ())
            assert prompt.text == text


@settings(deadline=None, max_examples=120)
@given(
    st.sampled_from([name for name in CASES if CASES[name].system]),
    st.lists(
        st.text(max_size=20) | st.sampled_from(["<|eot_id|>", "<s>", "[SEP]", "<|im_end|> ", "ﬁ Ａ½"]),
        min_size=1,
    ),
    st.integers(3, 40),
)
def test_any_text_gives_the_ids_of_transformers(name: str, texts: list[str], max_length: int) -> None:
    case = CASES[name]
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    spec = case.limited(max_length=max_length, truncation_side="left")
    prompt = prompt_of(ChatPrompter(spec, case.tokenizer()).encode([messages])[0])
    text = reference_text(case, messages)
    assert prompt.text == text
    assert prompt.ids.tolist() == reference_ids(case, text, truncation=True, max_length=max_length, side="left")


def test_left_truncation_keeps_the_bos_that_the_tokenizer_adds() -> None:
    case = CASES["mistral, text without control tokens"]
    spec = case.limited(max_length=8, truncation_side="left")
    (result,) = ChatPrompter(spec, case.tokenizer()).encode([CHAT])
    prompt = prompt_of(result)
    assert prompt.ids[0] == spec.bos_token_id
    assert str(prompt.truncation[0]).endswith("tokens cut from the left of the conversation")


def test_a_tokenizers_own_truncation_and_padding_settings_are_ignored() -> None:
    case = CASES["qwen: ChatML, no BOS"]
    tokenizer = case.tokenizer()
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=400)
    (ours,) = ChatPrompter(case.spec, tokenizer).encode([CHAT])
    (expected,) = ChatPrompter(case.spec, case.tokenizer()).encode([CHAT])
    assert prompt_of(ours).ids.tolist() == prompt_of(expected).ids.tolist()


def test_a_prompt_too_long_is_refused_on_request_naming_length_and_limit() -> None:
    case = CASES["qwen: ChatML, no BOS"]
    prompter = ChatPrompter(case.limited(max_length=30), case.tokenizer())
    long = [*USER, {"role": "assistant", "content": "no " * 50}]
    refused, kept = prompter.encode([long, []], truncation="error")[0], prompter.encode([long])[0]
    assert "limit is 30" in error_of(refused)
    lost = prompt_of(kept).truncation[0].tokens
    assert f"has {30 + lost} tokens" in error_of(refused)


def test_a_bad_row_does_not_touch_its_neighbours() -> None:
    case = CASES["dpa: Mistral, one BOS"]
    rows: list[Any] = [
        CHAT,
        [],
        "Hi",
        [{"role": "assistant", "content": "x"}],
        CHAT,
        [{"role": "user", "content": "\ud800"}],
    ]
    results = ChatPrompter(case.spec, case.tokenizer()).encode(rows)
    assert [type(result) for result in results] == [
        Prompt,
        PromptError,
        PromptError,
        PromptError,
        Prompt,
        PromptError,
    ]
    assert "roles must alternate" in error_of(results[3])
    assert prompt_of(results[0]).ids.tolist() == prompt_of(results[4]).ids.tolist()


def test_a_text_the_tokenizer_cannot_encode_is_an_error_of_its_row() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    prompter = ChatPrompter(ChatPrompt("{{ messages[-1].content }}"), tokenizer)
    good, bad, also_good = prompter.encode([[{"role": "user", "content": text}] for text in ("a b", "c", "b")])
    assert prompt_of(good).ids.tolist() == [0, 1]
    assert "tokenizer failed" in error_of(bad)
    assert prompt_of(also_good).ids.tolist() == [1]


def test_unknown_options_are_named_with_the_known_ones() -> None:
    prompter = ChatPrompter(CASES["qwen: ChatML, no BOS"].spec, load_tokenizer("qwen"))
    with pytest.raises(RequestError, match=r"unknown truncation 'left'; choose one of 'cut', 'error'"):
        prompter.encode([CHAT], truncation="left")  # type: ignore[arg-type]  # the error under test
    with pytest.raises(RequestError, match="unknown special_text 'keep'"):
        prompter.encode([CHAT], special_text="keep")  # type: ignore[arg-type]  # the error under test


def test_ids_cannot_be_changed_by_accident() -> None:
    (result,) = ChatPrompter(CASES["qwen: ChatML, no BOS"].spec, load_tokenizer("qwen")).encode([CHAT])
    with pytest.raises(ValueError, match="read-only"):
        prompt_of(result).ids[0] = 1


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.spec.bos_token_id is not None])
def test_every_prompt_begins_with_exactly_the_specs_bos_tokens(name: str) -> None:
    case = CASES[name]
    for result in ChatPrompter(case.spec, case.tokenizer()).encode(
        conversations(50, system=case.system, special_text=False)
    ):
        ids = prompt_of(result).ids.tolist()
        count = case.spec.bos_count
        assert ids[:count] == [case.spec.bos_token_id] * count
        assert ids[count] != case.spec.bos_token_id


@pytest.mark.parametrize("found", [0, 1, 2])
@pytest.mark.parametrize("declared", [0, 1, 2, 3])
def test_a_bundle_with_another_bos_count_is_broken(found: int, declared: int) -> None:
    template = chat_templates.LLAMA3 if found else chat_templates.QWEN
    names = special_names("llama3")
    spec = ChatPrompt(template, names, add_special_tokens=found == 2, bos_token_id=1280, bos_count=declared)
    if found == declared:
        ChatPrompter(spec, load_tokenizer("llama3"))
    else:
        with pytest.raises(BundleError, match=f"begins with {found} BOS tokens .*, the model needs {declared}"):
            ChatPrompter(spec, load_tokenizer("llama3"))


def test_a_conversation_that_changes_the_bos_count_is_refused() -> None:
    template = "{% if messages[0].role == 'user' %}{{ bos_token }}{% endif %}{{ messages[-1].content }}"
    spec = ChatPrompt(template, special_names("llama3"), bos_token_id=1280, bos_count=1)
    results = ChatPrompter(spec, load_tokenizer("llama3")).encode([CHAT, CHAT[1:]])
    assert prompt_of(results[0]).ids[0] == 1280
    assert "begins with 0 BOS tokens" in error_of(results[1])


def test_bos_text_typed_by_a_user_is_what_the_reference_makes_of_it() -> None:
    spec = ChatPrompt("{{ messages[0].content }}", special_names("llama3"), bos_token_id=1280)
    prompter = ChatPrompter(spec, load_tokenizer("llama3"))
    typed = [{"role": "user", "content": "<|begin_of_text|><|begin_of_text|>a"}]
    assert prompt_of(prompter.encode([typed])[0]).ids[:2].tolist() == [1280, 1280]
    removing = dataclasses.replace(spec, remove_bos_text=True)
    prompter = ChatPrompter(removing, load_tokenizer("llama3"))
    assert prompt_of(prompter.encode([typed])[0]).text == "a"


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"template": "{% if %}"}, "not valid Jinja, line 1"),
        ({"template": "{{ raise_exception('never') }}"}, "never"),
        ({"remove_bos_text": True}, "names no BOS token"),
        ({"remove_bos_text": True, "variables": {"bos_token": 3}}, "bos_token must be a string, not int"),
        ({"max_length": 0}, "max_length 0 leaves no room"),
        ({"required_suffix": (7, 8)}, r"does not end in the ids \[7, 8\]; the template lacks them"),
        ({"date": "soon"}, "not an ISO date"),
    ],
)
def test_a_spec_that_cannot_work_is_a_broken_bundle(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BundleError, match=complaint):
        ChatPrompter(dataclasses.replace(ChatPrompt(PLAIN), **fields), load_tokenizer("qwen"))


def test_a_prompt_without_its_required_suffix_is_refused_unless_it_was_cut() -> None:
    template = "{{ messages[0].content }}{% if messages | length > 1 %}<|im_end|>{% endif %}"
    spec = ChatPrompt(template, required_suffix=(1202,), max_length=6)
    prompter = ChatPrompter(spec, load_tokenizer("qwen"))
    whole, without, cut = prompter.encode([CHAT, USER, [{"role": "user", "content": "x y " * 20}, *CHAT]])
    assert prompt_of(whole).ids[-1] == 1202
    assert "does not end in the ids [1202]" in error_of(without)
    assert prompt_of(cut).truncation


def test_a_rendered_string_is_encoded_like_a_rendered_conversation() -> None:
    for case in CASES.values():
        prompter = ChatPrompter(case.spec, case.tokenizer())
        chats = conversations(20, system=case.system, special_text=False)
        by_text = prompter.encode_rendered(prompt_of(prompt).text for prompt in prompter.encode(chats))
        for prompt, same in zip(prompter.encode(chats), by_text, strict=True):
            assert prompt_of(prompt).ids.tolist() == prompt_of(same).ids.tolist()


def test_a_rendered_string_with_another_bos_count_is_refused() -> None:
    case = CASES["armorm: Llama-3, one BOS from the template"]
    bos = "<|begin_of_text|>"
    texts = [f"{bos}a", "a", f"{bos}{bos}a", 3]
    good, none, two, number = ChatPrompter(case.spec, case.tokenizer()).encode_rendered(texts)
    assert isinstance(good, Prompt)
    assert "begins with 0 BOS tokens" in error_of(none)
    assert "begins with 2 BOS tokens" in error_of(two)
    assert "the rendered prompt must be a string, not int" in error_of(number)


def test_more_rows_than_one_tokenizer_call_keep_their_order() -> None:
    case = CASES["qwen: ChatML, no BOS"]
    chats = [[{"role": "user", "content": f"number {i}"}] for i in range(700)]
    prompts = ChatPrompter(case.spec, case.tokenizer()).encode(chat for chat in chats)
    assert [f"number {i}<" in prompt_of(prompt).text for i, prompt in enumerate(prompts)] == [True] * 700


def test_threads_share_a_prompter() -> None:
    case = CASES["armorm: Llama-3, one BOS from the template"]
    prompter = ChatPrompter(case.spec, case.tokenizer())
    chats = conversations(40)
    expected = [prompt_of(p).ids.tolist() for p in prompter.encode(chats, special_text="text")]
    fresh = ChatPrompter(case.spec, case.tokenizer())
    found: list[list[list[int]]] = []

    def encode() -> None:
        found.append([prompt_of(p).ids.tolist() for p in fresh.encode(chats, special_text="text")])

    threads = [threading.Thread(target=encode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


@pytest.mark.parametrize("text", ["word ", "<|", "a", " ", "\n", "<|eot_id|>", "é🙂"], ids=repr)
@pytest.mark.parametrize("special_text", ["token", "text", "error"])
def test_a_long_document_takes_time_in_proportion(text: str, special_text: Any) -> None:
    case = CASES["armorm: Llama-3, one BOS from the template"]
    prompter = ChatPrompter(case.spec, case.tokenizer())
    prompter.encode([[{"role": "user", "content": "<|eot_id|>"}]], special_text="text")  # builds what it needs
    document = (text * 200_000)[:200_000]
    start = time.perf_counter()
    prompter.encode([[{"role": "user", "content": document}]], special_text=special_text)
    assert time.perf_counter() - start < 3, "200,000 characters take 0.1 s; quadratic work would take minutes"


def test_importing_prompts_loads_no_heavy_library() -> None:
    code = (
        "import sys; import rm_runtime.prompts; "
        "print([m for m in ('torch', 'transformers', 'onnx', 'onnxruntime', 'fastapi') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.strip() == "[]"


# The pairwise preference model (semantics 2.2), whose strings are pinned here literally.

CONTEXT_TEMPLATE = (
    "\n{% for message in messages %}{% if loop.index0 % 2 == 0 %}\n\n<turn> user\n {{ message['content'] }}"
    "{% else %}\n\n<turn> assistant\n {{ message['content'] }}{% endif %}{% endfor %}\n\n\n"
)
PAIR_MESSAGE = "[CONTEXT] {context} [RESPONSE A] {a} [RESPONSE B] {b} \n"
HEADER = "<|start_header_id|>assistant<|end_header_id|>\n\n"


def pair_spec(**fields: Any) -> PairChatPrompt:
    header = tuple(load_tokenizer("llama3").encode("<|eot_id|>" + HEADER, add_special_tokens=False).ids)
    chat = ChatPrompt(
        chat_templates.LLAMA3_ALWAYS_HEADER,
        special_names("llama3"),
        remove_bos_text=True,
        bos_token_id=1280,
        bos_count=0,
        required_suffix=header,
    )
    return PairChatPrompt(CONTEXT_TEMPLATE, PAIR_MESSAGE, dataclasses.replace(chat, **fields))


def pair_prompt(context: list[dict[str, str]], a: str, b: str, **options: Any) -> Prompt:
    return prompt_of(PairChatPrompter(pair_spec(), load_tokenizer("llama3")).encode([(context, a, b)], **options)[0])


def test_a_pair_with_one_turn_of_context_is_the_string_of_the_reference() -> None:
    prompt = pair_prompt([{"role": "user", "content": "U one"}], "answer a", "answer b")
    assert prompt.text == (
        "<|start_header_id|>user<|end_header_id|>\n\n[CONTEXT] \n\n<turn> user\n U one\n "
        "[RESPONSE A] answer a [RESPONSE B] answer b<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    tokenizer = load_tokenizer("llama3")
    assert prompt.ids.tolist() == tokenizer.encode(prompt.text, add_special_tokens=False).ids
    assert [tokenizer.id_to_token(i) for i in prompt.ids[-5:]] == [
        "<|eot_id|>", "<|start_header_id|>", "assistant", "<|end_header_id|>", "ĊĊ",
    ]  # fmt: skip


def test_a_pair_with_three_turns_of_context_takes_roles_by_position() -> None:
    context = [
        {"role": role, "content": content} for role, content in (("user", "U1"), ("user", " A1 "), ("system", "U2"))
    ]
    assert pair_prompt(context, " a ", "b").text == (
        "<|start_header_id|>user<|end_header_id|>\n\n"
        "[CONTEXT] \n\n<turn> user\n U1\n<turn> assistant\n  A1 \n<turn> user\n U2\n "
        "[RESPONSE A]  a  [RESPONSE B] b<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_pairs_are_encoded_as_the_reference_code_does() -> None:
    tokenizer = reference("llama3")
    pairs = [(chat[:-1], chat[-1]["content"], "other {a} {context} {") for chat in conversations(100, system=False)]
    for (context, a, b), result in zip(
        pairs, PairChatPrompter(pair_spec(), load_tokenizer("llama3")).encode(pairs), strict=True
    ):
        rendered = tokenizer.apply_chat_template(context, chat_template=CONTEXT_TEMPLATE, tokenize=False)
        message = [{"role": "user", "content": PAIR_MESSAGE.format(context=rendered, a=a, b=b)}]
        text = tokenizer.apply_chat_template(message, chat_template=chat_templates.LLAMA3_ALWAYS_HEADER, tokenize=False)
        text = text.replace(tokenizer.bos_token, "")
        assert prompt_of(result).text == text
        assert prompt_of(result).ids.tolist() == tokenizer.encode(text, add_special_tokens=False)


def test_braces_in_texts_mean_nothing() -> None:
    prompt = pair_prompt([{"role": "user", "content": "{a} {0} {{b}}"}], "{b} {", "} {context}")
    assert "<turn> user\n {a} {0} {{b}}\n [RESPONSE A] {b} { [RESPONSE B] } {context}<|eot_id|>" in prompt.text


def test_special_text_in_a_pair_can_be_plain_text_or_refused() -> None:
    pair = (USER, "fine", "x<|eot_id|>" + HEADER)
    prompter = PairChatPrompter(pair_spec(), load_tokenizer("llama3"))
    as_text = prompt_of(prompter.encode([pair], special_text="text")[0])
    as_token = prompt_of(prompter.encode([pair])[0])
    assert as_text.text == as_token.text
    assert as_text.ids.tolist().count(1289) == 1
    assert as_token.ids.tolist().count(1289) == 2
    assert "answer B holds the text of the special token '<|eot_id|>'" in error_of(
        prompter.encode([pair], special_text="error")[0]
    )
    in_context = ([{"role": "user", "content": "[PAD]"}], "a", "b")
    assert "the content of context message 0" in error_of(prompter.encode([in_context], special_text="error")[0])


@pytest.mark.parametrize(
    ("pair", "complaint"),
    [
        ((USER, "a"), r"a pair is \(context messages, answer A, answer B\)"),
        (None, "a pair is"),
        ((USER, "a", 3), "answer B must be a string, not int"),
        ((USER, "\udfff", "b"), "answer A holds the lone surrogate U.DFFF"),
        (([], "a", "b"), "the conversation is empty"),
    ],
)
def test_what_is_no_pair_is_refused(pair: Any, complaint: str) -> None:
    (result,) = PairChatPrompter(pair_spec(), load_tokenizer("llama3")).encode([pair])
    assert re.search(complaint, error_of(result))


def test_a_pair_template_without_the_header_is_a_broken_bundle() -> None:
    with pytest.raises(BundleError, match="the template lacks them"):
        PairChatPrompter(pair_spec(template=chat_templates.LLAMA3), load_tokenizer("llama3"))


@pytest.mark.parametrize(
    "message",
    [
        "{context} {a}",
        "{context} {a} {b} {b}",
        "{context} {a!r} {b}",
        "{a.__class__} {b} {context}",
        "{} {a} {b}",
        "{a",
    ],
)
def test_a_pair_message_with_other_fields_is_a_broken_bundle(message: str) -> None:
    with pytest.raises(BundleError, match="prompt spec's message"):
        PairChatPrompter(dataclasses.replace(pair_spec(), message=message), load_tokenizer("llama3"))
