"""What a caller may choose for a request, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rm_runtime.batching import DEFAULT_BATCH_TOKENS
from rm_runtime.errors import RequestError

TruncationPolicy = Literal["cut", "error"]
SpecialText = Literal["token", "text", "error"]
ErrorPolicy = Literal["raise", "return"]


@dataclass(frozen=True)
class RequestOptions:
    """How requests are treated.

    truncation: "cut" a prompt that is too long and say so in its result, or make it an "error".
    special_text: special-token text typed inside a message ("<|eot_id|>") becomes that "token", as in the reference;
        stays plain "text"; or is an "error".
    batch_tokens: ids, padding included, that one batch may hold.
    """

    truncation: TruncationPolicy = "cut"
    special_text: SpecialText = "token"
    batch_tokens: int = DEFAULT_BATCH_TOKENS

    def __post_init__(self) -> None:
        if self.truncation not in ("cut", "error"):
            raise RequestError(f"truncation={self.truncation!r}: 'cut' or 'error'")
        if self.special_text not in ("token", "text", "error"):
            raise RequestError(f"special_text={self.special_text!r}: 'token', 'text' or 'error'")
        if self.batch_tokens < 1:
            raise RequestError(f"batch_tokens={self.batch_tokens}: at least 1")


def check_error_policy(errors: str) -> None:
    """Raises RequestError unless errors is "raise" or "return"."""
    if errors not in ("raise", "return"):
        raise RequestError(f"errors={errors!r}: 'raise' or 'return'")
