"""What a user may set for an export of any family."""

from __future__ import annotations

from dataclasses import dataclass

from rm_runtime.prompt_spec import TruncationSide


@dataclass(frozen=True)
class Options:
    """None leaves a choice to the family's reference.

    max_length: ids a prompt may have. truncation_side: the end a longer one is cut at. chat_template: Jinja source
    instead of the checkpoint's. add_special_tokens: let the tokenizer add its own tokens to the rendered text.
    date: ISO date that templates see. score_label: which label of a several-label head is `score`. backbone: folder or
    hub id of PairRM's backbone.
    """

    max_length: int | None = None
    truncation_side: TruncationSide | None = None
    chat_template: str | None = None
    add_special_tokens: bool | None = None
    date: str = "2024-07-26"
    score_label: int = 0
    backbone: str | None = None
