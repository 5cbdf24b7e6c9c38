"""The fixture tokenizers with the templates and BOS habits of real reward models (semantics 0.2)."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

import chat_templates
from rm_runtime.prompt_spec import ChatPrompt

FOLDER = Path(__file__).parent / "data" / "tokenizers"
FAMILIES = ("llama3", "llama31", "gemma", "mistral", "qwen", "deberta")
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@dataclass(frozen=True)
class Case:
    """A ChatPrompt on a fixture tokenizer; system: whether its template takes system messages."""

    family: str
    spec: ChatPrompt
    system: bool = True

    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.family)

    def limited(self, **limits: Any) -> ChatPrompt:
        return dataclasses.replace(self.spec, **limits)


def load_tokenizer(family: str) -> Tokenizer:
    """A fresh Tokenizer: a prompter takes the one it is given over."""
    return Tokenizer.from_file(str(FOLDER / family / "tokenizer.json"))


@cache
def special_names(family: str) -> dict[str, str]:
    """bos_token, eos_token, ... as transformers hands them to a template."""
    names = json.loads((FOLDER / family / "special_tokens_map.json").read_text())
    return {role: name["content"] for role, name in names.items() if isinstance(name, dict)}


@cache
def reference(family: str) -> Any:
    """The same tokenizer.json in transformers."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=load_tokenizer(family), **special_names(family))


def _case(
    family: str, template: str, bos_count: int, *, add: bool = False, header: bool = False, **fields: Any
) -> Case:
    names = special_names(family)
    bos = names.get("bos_token")
    bos_id = load_tokenizer(family).token_to_id(bos) if bos else None
    variables = {**names, "add_generation_prompt": header}
    system = fields.pop("system", True)
    spec = ChatPrompt(
        template,
        variables,
        add_special_tokens=add,
        bos_token_id=bos_id,
        bos_count=bos_count,
        max_length=100_000,
        **fields,
    )
    return Case(family, spec, system)


CASES = {
    "armorm: Llama-3, one BOS from the template": _case("llama3", chat_templates.LLAMA3, 1),
    "armorm: Llama-3, two BOS as RewardBench": _case("llama3", chat_templates.LLAMA3, 2, add=True),
    "armorm training: BOS text removed, BOS added": _case(
        "llama3", chat_templates.LLAMA3, 1, add=True, remove_bos_text=True
    ),
    "pair-pm: Llama-3 with its header, no BOS": _case(
        "llama3", chat_templates.LLAMA3_ALWAYS_HEADER, 0, remove_bos_text=True
    ),
    "grm: Llama-3.1 date block, two BOS": _case("llama31", chat_templates.LLAMA31, 2, add=True, date="2024-07-26"),
    "grm: Gemma, two BOS": _case("gemma", chat_templates.GEMMA, 2, add=True, system=False),
    "gemma with generation prompt": _case("gemma", chat_templates.GEMMA, 1, header=True, system=False),
    "dpa: Mistral, one BOS": _case("mistral", chat_templates.MISTRAL, 1, system=False),
    "mistral, two BOS": _case("mistral", chat_templates.MISTRAL, 2, add=True, system=False),
    "mistral, text without control tokens": _case("mistral", PLAIN, 1, add=True),
    "qwen: ChatML, no BOS": _case("qwen", chat_templates.QWEN, 0),
    "deberta: CLS and SEP added": _case("deberta", PLAIN, 1, add=True),
}
