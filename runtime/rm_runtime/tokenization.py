"""Rendered string -> token ids: BOS rule, required suffix and truncation of a ChatPrompt.

The ids are those of transformers' `tokenizer(text, add_special_tokens=..., truncation=True, max_length=...)`
with the spec's truncation side; what the spec promises beyond that (BOS count, suffix) is checked on every
prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from rm_runtime.errors import BundleError, PromptError
from rm_runtime.results import Truncation

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokenizers import Encoding, Tokenizer

    from rm_runtime.prompt_spec import ChatPrompt

Ids = npt.NDArray[np.int64]

OnTooLong = Literal["cut", "error"]
"""What becomes of a prompt longer than the spec's max_length: cut on the spec's side, or refused."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """One row for the graph.

    ids: int64 [sequence], read-only, at most the spec's max_length; truncation: what was cut, empty when
    nothing was; text: the string that was tokenised, before any cut.
    """

    ids: Ids
    truncation: tuple[Truncation, ...] = ()
    text: str = ""


class PromptTokenizer:
    """A ChatPrompt's rules applied to rendered strings. Safe to share between threads.

    Takes the tokenizer over: its padding and truncation settings are switched off. Raises BundleError if the
    spec names no BOS text to remove, or max_length leaves no room beside the tokens the post-processor adds.
    """

    def __init__(self, spec: ChatPrompt, tokenizer: Tokenizer) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.spec = spec
        self.tokenizer = tokenizer
        self.bos_text = self._bos_text()
        added = tokenizer.num_special_tokens_to_add(False) if spec.add_special_tokens else 0
        if spec.max_length <= added:
            raise BundleError(f"the prompt spec's max_length {spec.max_length} leaves no room for a conversation")

    def without_bos(self, rendered: str) -> str:
        """The string after the spec's remove_bos_text; like the reference's, it reaches into users' text."""
        return rendered.replace(self.bos_text, "") if self.spec.remove_bos_text else rendered

    def encode(self, texts: Sequence[str]) -> list[Encoding | PromptError]:
        """The whole, uncut encodings; an error in the place of a text the tokenizer cannot encode."""
        try:
            add = self.spec.add_special_tokens
            return list(self.tokenizer.encode_batch_fast(texts, add_special_tokens=add))
        except Exception as error:  # tokenizers raises bare Exception, for the whole batch
            if len(texts) == 1:
                return [PromptError(f"the tokenizer failed: {' '.join(str(error).split())}")]
            return [encoding for text in texts for encoding in self.encode([text])]

    def finish(self, encoding: Encoding, text: str, user_texts: Iterable[str], on_too_long: OnTooLong) -> Prompt:
        """An encoding checked and cut to max_length.

        user_texts: the texts users wrote; one that holds BOS text excuses another BOS count, as in the
        reference. Raises PromptError for a missing suffix, a wrong BOS count, or (on_too_long="error") a
        prompt too long.
        """
        spec = self.spec
        ids = np.asarray(encoding.ids, dtype=np.int64)
        suffix = spec.required_suffix
        if suffix and tuple(ids[-len(suffix) :].tolist()) != suffix:
            raise PromptError(f"the prompt does not end in the ids {list(suffix)}; the template lacks them")
        self._check_bos(ids, user_texts)
        too_many = len(ids) - spec.max_length
        cut: tuple[Truncation, ...] = ()
        if too_many > 0:
            if on_too_long == "error":
                raise PromptError(f"the prompt has {len(ids)} tokens, the limit is {spec.max_length}; shorten it")
            ids = self._cut(ids, np.asarray(encoding.special_tokens_mask, dtype=np.bool_), too_many)
            cut = (Truncation(too_many, spec.truncation_side),)
        ids.flags.writeable = False
        return Prompt(ids, cut, text)

    def _cut(self, ids: Ids, added: npt.NDArray[np.bool_], too_many: int) -> Ids:
        """`ids` without `too_many` of the text's; those the post-processor added stay (as in tokenizers)."""
        of_text = np.flatnonzero(~added)
        lost = of_text[:too_many] if self.spec.truncation_side == "left" else of_text[-too_many:]
        return np.delete(ids, lost)

    def _check_bos(self, ids: Ids, user_texts: Iterable[str]) -> None:
        bos, expected = self.spec.bos_token_id, self.spec.bos_count
        if bos is None:
            return
        others = np.flatnonzero(ids != bos)
        count = int(others[0]) if len(others) else len(ids)
        if count != expected and not any(self.bos_text and self.bos_text in text for text in user_texts):
            raise PromptError(f"the prompt begins with {count} BOS tokens (id {bos}), the model needs {expected}")

    def _bos_text(self) -> str:
        spec = self.spec
        text = spec.variables.get("bos_token")
        if text is None and spec.bos_token_id is not None:
            text = self.tokenizer.id_to_token(spec.bos_token_id)
        if text is not None and not isinstance(text, str):
            raise BundleError(f"the prompt spec's bos_token must be a string, not {type(text).__name__}")
        if spec.remove_bos_text and not text:
            raise BundleError("the prompt spec removes BOS text but names no BOS token")
        return text or ""
