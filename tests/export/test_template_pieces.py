"""Chat templates as pieces: equal to Jinja on every chat, or refused with the reason."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import chat_templates
import checkpoints
from conversations import SPECIAL_TEXT, conversations
from fake_models import PAIR
from prompt_cases import CASES, Case
from rm_export.cli import main
from rm_export.families import dpa_rm, pair_pm, scalar_encoder
from rm_export.template_pieces import NotCompilableError, chat_pieces, context_pieces, why_not_in_pieces, with_pieces
from rm_runtime.errors import BundleError, PromptError
from rm_runtime.prompt_spec import ChatPrompt, PairChatPrompt, SegmentsPrompt, prompt_from_json, prompt_to_json
from rm_runtime.templates import render_chat, render_template

Chat = list[dict[str, str]]

FAMILY_TEMPLATES = {
    "dpa-rm": ChatPrompt(dpa_rm.TEMPLATE),
    "scalar encoder": ChatPrompt(scalar_encoder.TEMPLATE, {"sep_token": "[SEP]"}),
    "llama 2": ChatPrompt(
        "{% if messages[0].role == 'system' %}"
        "{% set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}"
        "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
        "{% for message in messages %}{% if message.role == 'user' %}"
        "{{ '<s>[INST] ' + (system if loop.first else '') + message.content.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + message.content + ' </s>' }}{% endif %}{% endfor %}"
    ),
    "last message apart": ChatPrompt(
        "{% for m in messages %}{{ '<last>' if loop.last else '<turn>' }}{{ m.content }}{% endfor %}{{ bos_token }}",
        {"bos_token": "<s>"},
    ),
}
NO_PIECES = {
    "{% for m in messages %}{{ m.content | upper }}{% endfor %}": "does not write each content once, in order",
    "{% for m in messages | reverse %}{{ m.content }}{% endfor %}": "does not write each content once, in order",
    "{{ messages[-1].content }}": "does not write each content once, in order",
    "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}": "before a message of even after",
    "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}": "depends on more than roles",
    "{% for m in messages %}{{ m.content if m.content else 'nothing' }}{% endfor %}": "depends on more than roles",
    "{% for m in messages %}{{ m.content }}{% endfor %}{{ messages | length }}": "after a last message of even depends",
    "{{ raise_exception('no') }}": "refuses every order",
    "{% for m in messages %}{{ m.content }}{{ raise_exception('long') if loop.index > 6 }}{% endfor %}": "depends on",
}


def outcome(render: object, messages: Chat) -> str:
    try:
        return str(render(messages))  # type: ignore[operator] - a function of either kind
    except PromptError as error:
        return f"error: {error}"


def assert_renders_as_jinja(spec: ChatPrompt) -> None:
    pieces = chat_pieces(spec)
    for system in (True, False):
        for chat in conversations(220, seed=5, system=system):
            assert outcome(pieces.render, chat) == outcome(lambda messages: render_chat(spec, messages), chat)
    for text in SPECIAL_TEXT:
        chat = [{"role": "user", "content": text}, {"role": "assistant", "content": text + text}]
        assert pieces.render(chat) == render_chat(spec, chat)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_familys_template_has_pieces_that_render_as_jinja(case: Case) -> None:
    assert_renders_as_jinja(case.spec)


@pytest.mark.parametrize("spec", FAMILY_TEMPLATES.values(), ids=FAMILY_TEMPLATES)
def test_templates_of_other_shapes_have_pieces_too(spec: ChatPrompt) -> None:
    assert_renders_as_jinja(spec)


def test_a_context_template_that_goes_by_places_has_pieces_by_places() -> None:
    pair = dataclasses.replace(PAIR, context_template=pair_pm.CONTEXT_TEMPLATE)
    pieces = context_pieces(pair)
    assert pieces.roles == "parity"
    for chat in conversations(100, seed=6):
        assert pieces.render(chat) == render_template(pair.context_template, chat, pair.chat.date)


@pytest.mark.parametrize(("template", "reason"), NO_PIECES.items())
def test_a_template_that_is_no_list_of_pieces_is_refused_with_the_reason(template: str, reason: str) -> None:
    with pytest.raises(NotCompilableError, match=reason):
        chat_pieces(ChatPrompt(template))
    spec = with_pieces(ChatPrompt(template))
    assert isinstance(spec, ChatPrompt)
    assert spec.pieces is None
    assert reason in (why_not_in_pieces(spec) or "")


def test_the_pinned_date_is_part_of_the_pieces() -> None:
    spec = ChatPrompt(chat_templates.LLAMA31, {"bos_token": "<s>"}, date="2025-12-31")
    assert "Today Date: 31 Dec 2025" in chat_pieces(spec).render([{"role": "user", "content": "x"}])


def test_a_role_that_the_pieces_do_not_know_is_an_error_that_names_it() -> None:
    pieces = chat_pieces(ChatPrompt(chat_templates.LLAMA3, {"bos_token": ""}))
    with pytest.raises(PromptError, match="message 1 has the role 'tool' and follows 'user'"):
        pieces.render([{"role": "user", "content": "x"}, {"role": "tool", "content": "y"}])


@pytest.mark.parametrize(
    "spec", [CASES["grm: Gemma, two BOS"].spec, PAIR, SegmentsPrompt()], ids=["chat", "pair", "segments"]
)
def test_a_prompt_with_pieces_survives_the_manifest(spec: ChatPrompt | PairChatPrompt | SegmentsPrompt) -> None:
    stored = with_pieces(spec)
    assert prompt_from_json(json.loads(json.dumps(prompt_to_json(stored)))) == stored
    assert why_not_in_pieces(stored) is None


def test_inspect_says_that_cpp_takes_rendered_text_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{{ bos_token }}{% for m in messages %}{{ m.content | upper }}{% endfor %}")
    checkpoint, bundle = checkpoints.grm(tmp_path / "checkpoint"), str(tmp_path / "bundle")
    assert main(["grm", "--checkpoint", str(checkpoint), "-o", bundle, "--chat-template", str(template)]) == 0
    assert main(["inspect", bundle]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "takes rendered text: the chat template does not write each content once, in order" in told


def test_a_bundle_from_before_pieces_says_so() -> None:
    assert "export it again" in (why_not_in_pieces(CASES["qwen: ChatML, no BOS"].spec) or "")


def test_pieces_with_an_unknown_field_are_refused() -> None:
    fields = prompt_to_json(with_pieces(PAIR))
    fields["chat"]["pieces"]["turns"][0]["surprise"] = 1
    with pytest.raises(BundleError, match="surprise"):
        prompt_from_json(fields)
