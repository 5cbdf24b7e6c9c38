"""templates.py against transformers' apply_chat_template, and against templates that mean harm."""

from __future__ import annotations

import datetime
import locale
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import chat_templates
from conversations import conversations
from rm_runtime import templates
from rm_runtime.errors import PromptError, RequestError
from rm_runtime.prompt_spec import ChatPrompt
from rm_runtime.templates import render_chat, validate_conversation

transformers_templates = pytest.importorskip("transformers.utils.chat_template_utils")

NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
USER = [{"role": "user", "content": "Hi"}]
GENERATION = (
    "{% for m in messages %}{% set n = m.content | length %}{% if m.role == 'assistant' %}"
    "{% generation %}{% set n = 0 %}{{ m.content }}{{ n }}{% endgeneration %}{{ n }}"
    "{% else %}{{ m.role }}: {{ m['content'] }}\n{% endif %}{% endfor %}"
)
WHITESPACE = """
  {% for m in messages %}
    {%- if loop.index0 > 3 %}{% break %}{% endif %}
    {% if m.role == 'system' %}{% continue %}{% endif %}
  [{{ m.role }}] {{ m.content | tojson }} {{ m | tojson(indent=2) }}
  {% endfor %}

"""
NAMESPACES = (
    "{% set ns = namespace(n=0, self=1) %}{% for m in messages %}{% set ns.n = ns.n + m.content|length %}"
    "{% endfor %}{{ ns.n }}{{ dict(a=1).items() | list }}{{ tools is none }}{{ documents }}{{ missing }}"
    "{{ add_generation_prompt }}{{ '-' * 3 }}{{ 2 ** 10 }}{{ messages[::-1][0]['content'][:5] | upper }}"
)
TEMPLATES = {
    "llama3": chat_templates.LLAMA3,
    "llama3-always-header": chat_templates.LLAMA3_ALWAYS_HEADER,
    "llama31": chat_templates.LLAMA31,
    "gemma": chat_templates.GEMMA,
    "mistral": chat_templates.MISTRAL,
    "qwen": chat_templates.QWEN,
    "generation-blocks": GENERATION,
    "whitespace-and-loop-controls": WHITESPACE,
    "namespaces": NAMESPACES,
}


def transformers_rendering(template: str, messages: list[dict[str, str]], **variables: object) -> str:
    (rendered,), _ = transformers_templates.render_jinja_template([messages], chat_template=template, **variables)
    return rendered


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("header", [False, True], ids=["answer", "generation-prompt"])
def test_renders_what_transformers_renders(name: str, header: bool) -> None:
    variables = {**NAMES, "add_generation_prompt": header, "date_string": "26 Jul 2024"}
    spec = ChatPrompt(TEMPLATES[name], variables)
    for messages in conversations(system=name not in ("gemma", "mistral")):
        assert render_chat(spec, messages) == transformers_rendering(spec.template, messages, **variables)


text = st.text(max_size=30) | st.sampled_from(["{{ x }}", "{% if %}", " a ", "\n", "\r\n", "\x00", "{#", "<|eot_id|>"])


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]) | text, text), min_size=1, max_size=4))
def test_renders_any_text_as_transformers_does(turns: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": content} for role, content in turns]
    for name in ("llama3", "llama31", "qwen", "whitespace-and-loop-controls"):
        spec = ChatPrompt(TEMPLATES[name], NAMES)
        expected = transformers_rendering(spec.template, messages, **NAMES, date_string="26 Jul 2024")
        assert render_chat(spec, messages) == expected


def test_the_date_is_the_specs_and_never_the_clocks() -> None:
    ask = "{{ strftime_now('%d %b %Y, %A %B %-d %H:%M %% %j') }}|{{ date_string }}"
    assert render_chat(ChatPrompt(ask), USER) == "26 Jul 2024, Friday July 26 00:00 % 208|26 Jul 2024"
    assert render_chat(ChatPrompt(ask, date="2025-01-05"), USER).endswith("|05 Jan 2025")
    llama31 = ChatPrompt(chat_templates.LLAMA31, NAMES, date="2025-12-31")
    assert "Today Date: 31 Dec 2025\n" in render_chat(llama31, USER)


def test_a_date_string_among_the_variables_wins() -> None:
    spec = ChatPrompt("{{ date_string }}", {"date_string": "today"}, date="2025-01-05")
    assert render_chat(spec, USER) == "today"


def test_strftime_now_equals_strftime_in_the_c_locale() -> None:
    assert locale.setlocale(locale.LC_TIME) == "C"
    day = datetime.datetime(2024, 2, 29)
    for code in "aAbBcdHIjmMpSUwWxXyYZ%":
        spec = ChatPrompt(f"{{{{ strftime_now('%{code}!') }}}}", date="2024-02-29")
        assert render_chat(spec, USER) == day.strftime(f"%{code}!")


def test_a_date_that_is_none_is_named() -> None:
    with pytest.raises(PromptError, match=r"date is 'yesterday', not an ISO date"):
        render_chat(ChatPrompt("x", date="yesterday"), USER)


def test_a_template_is_compiled_once() -> None:
    template = "compiled {{ messages[0].content }} once"
    before = templates.compile_template.cache_info()
    for _ in range(5):
        assert render_chat(ChatPrompt(template), USER) == "compiled Hi once"
    after = templates.compile_template.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 4)


def test_rendering_leaves_the_callers_messages_alone() -> None:
    messages = [{"role": "user", "content": " Hi "}]
    with pytest.raises(PromptError, match="unsafe"):
        render_chat(ChatPrompt("{{ messages[0].update({'content': 'x'}) }}"), messages)
    assert messages == [{"role": "user", "content": " Hi "}]


@pytest.mark.parametrize(
    ("template", "cause"),
    [
        ("{{ raise_exception('roles must\nalternate') }}", "roles must alternate"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ messages[0].content.nope() }}", "has no attribute 'nope'"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% include 'other' %}", "no loader"),
        ("{{ 'x' | random }}", "No filter named 'random'"),
        ("{{ lipsum() }}", "'lipsum' is undefined"),
        ("{% if %}", "line 1"),
        ("a\n{% for %}", "line 2"),
        ("{% for m in messages %}", "Unexpected end of template"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "Error"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ],
)
def test_a_template_that_fails_is_an_error_of_one_line_naming_the_cause(template: str, cause: str) -> None:
    with pytest.raises(PromptError, match=re.escape(cause)) as caught:
        render_chat(ChatPrompt(template), USER)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__ }}{{ messages.__class__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ raise_exception.__globals__.json }}",
        "{{ strftime_now.__closure__[0].cell_contents }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ namespace(__class__=1) }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{{ dict.mro() }}",
        "{{ '%s' | attr('__class__') | attr('mro') }}{{ ('' | attr('format_map'))({}) }}{{ x.y }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'content': 'x'}) }}",
        "{{ range(999999999) | length }}",
        "{{ 'a' * 999999999 }}",
        "{{ [1] * 999999999 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{% set x = 99999999 ** 99999999 %}",
    ],
)
def test_a_template_cannot_leave_the_sandbox(template: str) -> None:
    with pytest.raises(PromptError):
        render_chat(ChatPrompt(template), USER)


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ("Hi", "a list of messages, not str"),
        (None, "a list of messages, not null"),
        ({"role": "user", "content": "Hi"}, "a list of messages, not dict"),
        ([], "empty"),
        (["Hi"], 'message 0 must be {"role": ..., "content": ...}, not str'),
        ([*USER, None], "message 1 must be .*, not null"),
        ([{"role": "user"}], "message 0 has no 'content'"),
        ([{"content": "Hi"}], "message 0 has no 'role'"),
        ([{"role": "user", "content": None}], "the content of message 0 must be a string, not null"),
        ([{"role": "user", "content": [{"type": "text"}]}], "must be a string, not list"),
        ([*USER, {"role": 1, "content": "Hi"}], "the role of message 1 must be a string, not int"),
        ([{"role": "user", "content": "Hi", "name": "x"}], "message 0 has the unknown key 'name'"),
        (
            [{"role": "user", "content": "a\ud83d"}],
            r"content of message 0 .* lone surrogate U\+D83D at character 1",
        ),
        ([{"role": "\udc00", "content": "a"}], r"role of message 0 .* lone surrogate U\+DC00 at character 0"),
    ],
)
def test_what_is_not_a_conversation_is_refused_naming_the_item_and_its_type(messages: object, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        validate_conversation(messages)


def test_a_validated_conversation_is_a_fresh_copy_of_plain_strings() -> None:
    class Role(str):
        __slots__ = ()

    messages = ({"role": Role("user"), "content": "Hi"},)
    validated = validate_conversation(messages)
    assert validated == [{"role": "user", "content": "Hi"}]
    assert type(validated[0]["role"]) is str
    assert validated[0] is not messages[0]
