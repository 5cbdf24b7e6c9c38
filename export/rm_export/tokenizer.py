"""The checkpoint's tokenizer and chat template, as data, and the prompt specs made from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from rm_export.checkpoint import read_json_object
from rm_export.errors import CheckpointError
from rm_export.options import Options
from rm_runtime.prompt_spec import ChatPrompt
from rm_runtime.templates import render_chat

_TOKEN_KEYS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_USER, _ASSISTANT = "\ue000user\ue000", "\ue000assistant\ue000"


@dataclass(frozen=True)
class TokenizerFiles:
    """tokenizer.json's text, the special token texts by role ("bos_token", ...), and the chat template if any."""

    json: str
    special_tokens: Mapping[str, str]
    chat_template: str | None
    model_max_length: int | None

    def load(self) -> Tokenizer:
        """The tokenizer itself."""
        return Tokenizer.from_str(self.json)


def read_tokenizer(folder: Path) -> TokenizerFiles:
    """Read tokenizer.json, tokenizer_config.json and the chat template of a checkpoint folder."""
    path = folder / "tokenizer.json"
    if not path.exists():
        raise CheckpointError(
            f"{folder} holds no tokenizer.json; save one: AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
        )
    text = path.read_text("utf-8")
    try:
        Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{path} is not a tokenizer this version of tokenizers reads: {error}") from None
    config = _optional(folder / "tokenizer_config.json")
    special = {**_optional(folder / "special_tokens_map.json"), **config}
    tokens = {key: _token_text(special[key]) for key in _TOKEN_KEYS if special.get(key)}
    limit = config.get("model_max_length")
    return TokenizerFiles(
        json=text,
        special_tokens=tokens,
        chat_template=_chat_template(folder, config),
        model_max_length=int(limit) if isinstance(limit, int | float) and limit < 1e9 else None,
    )


def chat_prompt(
    tokenizer: TokenizerFiles,
    options: Options,
    *,
    where: str,
    max_length: int,
    template: str | None = None,
    add_special_tokens: bool = False,
    add_generation_prompt: bool = False,
    remove_bos_text: bool = False,
    truncation_side: str = "right",
) -> ChatPrompt:
    """The chat prompt spec of a checkpoint; the arguments are the family's reference, `options` overrule them.

    The number of BOS tokens is counted on a rendered probe, so that the manifest states what is really fed.
    """
    source = options.chat_template or template or tokenizer.chat_template
    if source is None:
        raise CheckpointError(f"{where} has no chat template; pass one with --chat-template FILE")
    if options.add_special_tokens is not None:
        add_special_tokens = options.add_special_tokens
    loaded = tokenizer.load()
    bos_text = tokenizer.special_tokens.get("bos_token")
    bos_id = loaded.token_to_id(bos_text) if bos_text else None
    limit = options.max_length or max_length
    spec = ChatPrompt(
        template=source,
        variables={
            **tokenizer.special_tokens,
            "add_generation_prompt": add_generation_prompt,
            "date_string": f"{_parse_date(options.date):%d %b %Y}",
        },
        date=options.date,
        remove_bos_text=remove_bos_text,
        add_special_tokens=add_special_tokens,
        bos_token_id=bos_id,
        max_length=limit,
        truncation_side=options.truncation_side or ("left" if truncation_side == "left" else "right"),
    )
    return _counted(spec, loaded)


def assistant_header(tokenizer: TokenizerFiles, spec: ChatPrompt, where: str) -> tuple[int, ...]:
    """Ids between the end of a user turn and the assistant's text: `<|eot_id|>...assistant...\\n\\n` in Llama 3."""
    rendered = probe_text(spec)
    _, found_user, rest = rendered.partition(_USER)
    header, found_assistant, _ = rest.partition(_ASSISTANT)
    if not (found_user and found_assistant and header):
        raise CheckpointError(f"{where}: its chat template does not render a user turn followed by an assistant turn")
    ids: list[int] = tokenizer.load().encode(header, add_special_tokens=False).ids
    return tuple(ids)


def probe_text(spec: ChatPrompt) -> str:
    """One user turn and one assistant turn with marked contents, rendered."""
    messages = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _ASSISTANT}]
    return render_chat(spec, messages)


def token_id(tokenizer: TokenizerFiles, text: str, where: str) -> int:
    """The id of a text that must be a single token."""
    ids = tokenizer.load().encode(text, add_special_tokens=False).ids
    if len(ids) != 1:
        raise CheckpointError(f"{where}: {text!r} is {len(ids)} tokens in its tokenizer, one is needed")
    return int(ids[0])


def _counted(spec: ChatPrompt, tokenizer: Tokenizer) -> ChatPrompt:
    text = probe_text(spec)
    if spec.remove_bos_text and spec.variables.get("bos_token"):
        text = text.replace(spec.variables["bos_token"], "")
    ids = tokenizer.encode(text, add_special_tokens=spec.add_special_tokens).ids
    count = 0
    while spec.bos_token_id is not None and count < len(ids) and ids[count] == spec.bos_token_id:
        count += 1
    return dataclasses.replace(spec, bos_count=count)


def _parse_date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise CheckpointError(f"--date {text!r} is not a date of the form YYYY-MM-DD") from None


def _optional(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.exists() else {}


def _token_text(value: Any) -> str:
    return str(value["content"]) if isinstance(value, Mapping) else str(value)


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text("utf-8")
    stored = _optional(folder / "chat_template.json").get("chat_template") or config.get("chat_template")
    if isinstance(stored, list):  # several named templates
        named = {entry.get("name"): entry.get("template") for entry in stored if isinstance(entry, Mapping)}
        stored = named.get("default")
    return stored if isinstance(stored, str) else None
