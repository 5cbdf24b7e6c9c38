"""(source, candidates) -> rows of ids as PairRM's references make them (semantics.md 5.2, 5.3).

A row is `[CLS] <|source|> s [SEP] [CLS] <|candidate1|> a [SEP] [CLS] <|candidate2|> b [SEP]`. The
references are LLM-Blender, which encodes batches, and PairRM-hf's tokenize_pair, which encodes rows. Source
and candidates are tokenised and cut once; any two candidates of a source then make a row.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from rm_runtime.errors import BundleError, PromptError
from rm_runtime.results import Truncation
from rm_runtime.special_text import ControlText, PlainTextTokenizer, control_tokens
from rm_runtime.templates import validate_text
from rm_runtime.tokenization import Ids, Prompt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Encoding, Tokenizer

    from rm_runtime.options import SpecialText, TruncationPolicy
    from rm_runtime.prompt_spec import SegmentsPrompt

Group = tuple[str, "Sequence[str]"]
"""A source text and the texts of its candidates."""


@dataclass(frozen=True, eq=False)
class Segment:
    """One tokenised text, [CLS] and [SEP] included. cut: how many tokens of the text were lost.

    prefix_places: where a candidate's prefix stands, which differs between first and second candidate.
    """

    ids: Ids
    cut: int
    prefix_places: Ids


@dataclass(frozen=True, eq=False)
class Segments:
    """A source with its candidates, all within their budgets. number: which input of a request it is."""

    source: Segment
    candidates: tuple[Segment, ...]
    prefix_ids: tuple[int, int]
    side: str
    number: int = 0

    def row(self, first: int, second: int) -> Prompt:
        """The row that asks how much better candidate `first` is than candidate `second`."""
        parts = [self.source.ids]
        cuts = self.cut_of(self.source, "source")
        for place, candidate in enumerate((self.candidates[first], self.candidates[second])):
            ids = candidate.ids.copy()
            ids[candidate.prefix_places] = self.prefix_ids[place]
            parts.append(ids)
            cuts += self.cut_of(candidate, f"candidate{place + 1}")
        row = np.concatenate(parts)
        row.flags.writeable = False
        return Prompt(row, cuts)

    def longest_row(self, candidate: int) -> int:
        """Ids of the longest row that candidate is part of; 0 if there is no other."""
        lengths = [len(segment.ids) for segment in self.candidates]
        others = lengths[:candidate] + lengths[candidate + 1 :]
        return len(self.source.ids) + lengths[candidate] + max(others) if others else 0

    def truncation(self, candidate: int) -> tuple[Truncation, ...]:
        """What was cut from the source, and from that candidate."""
        return self.cut_of(self.source, "source") + self.cut_of(self.candidates[candidate], "candidate")

    def cut_of(self, segment: Segment, part: str) -> tuple[Truncation, ...]:
        """The segment's truncation under that name, () if there is none."""
        return (Truncation(segment.cut, self.side, part),) if segment.cut else ()


class SegmentsPrompter:
    """Groups of texts -> Segments by a SegmentsPrompt. Safe to share between threads.

    Takes the tokenizer over: its padding and truncation settings are switched off. Raises BundleError if
    the tokenizer does not know the prefixes or does not put one where the graph looks for it.
    """

    def __init__(self, spec: SegmentsPrompt, tokenizer: Tokenizer) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.spec = spec
        self._tokenizer = tokenizer
        # LLM-Blender puts one prefix before all candidates and replaces its id later
        self._candidate_text = spec.candidate_prefix or spec.candidate1_prefix
        self._candidate_id = self._token_id(self._candidate_text)
        self._prefix_ids = (self._token_id(spec.candidate1_prefix), self._token_id(spec.candidate2_prefix))
        prefixes = [spec.source_prefix, spec.candidate1_prefix, spec.candidate2_prefix, self._candidate_text]
        self._control_text = ControlText(tokenizer, control_tokens(tokenizer, prefixes))
        self._plain_text: PlainTextTokenizer | None = None
        self._plain_text_lock = threading.Lock()
        self._check_layout()
        if min(spec.source_max_length, spec.candidate_max_length) < 4:
            raise BundleError("the prompt spec's limits leave no room for a source and its candidates")

    def encode(
        self,
        groups: Sequence[Group],
        truncation: TruncationPolicy = "cut",
        special_text: SpecialText = "token",
    ) -> list[Segments | PromptError]:
        """One Segments a group, in order; a group that cannot be encoded gives its error in its place.

        The groups are one batch: under LLM-Blender's rule its longest source decides how long candidates
        may be. special_text="token" reads special-token text in a text as the reference does, after a
        literal "[SEP]" became a space; "text" keeps it as plain text; "error" refuses it.
        truncation="error" refuses a cut.
        """
        sources = [self._source(text, truncation, special_text) for text, _ in groups]
        longest = max((len(source.ids) for source in sources if isinstance(source, Segment)), default=0)
        return [
            source
            if isinstance(source, PromptError)
            else self._with_candidates(source, candidates, longest, truncation, special_text)
            for source, (_, candidates) in zip(sources, groups, strict=True)
        ]

    def with_limits(self, source_max_length: int | None, candidate_max_length: int | None) -> SegmentsPrompter:
        """The same prompter with other limits; None keeps one. PromptError for a limit without room."""
        spec = replace(
            self.spec,
            source_max_length=source_max_length or self.spec.source_max_length,
            candidate_max_length=candidate_max_length or self.spec.candidate_max_length,
        )
        if spec == self.spec:
            return self
        try:
            return SegmentsPrompter(spec, self._tokenizer)
        except BundleError as error:
            raise PromptError(str(error)) from None

    def candidate_budget(self, source_length: int, longest_source: int) -> int:
        """Ids a candidate may have beside a source of that length, in a batch with that longest source."""
        spec = self.spec
        if spec.budget == "row":
            return (spec.max_length - source_length) // 2
        return spec.candidate_max_length + (spec.source_max_length - longest_source) // 2

    def _source(self, text: object, truncation: TruncationPolicy, special_text: SpecialText) -> Segment | PromptError:
        try:
            encoding = self._encode(self.spec.source_prefix, text, "the source", special_text)
            return self._cut(encoding, self.spec.source_max_length, "the source", truncation)
        except PromptError as error:
            return error

    def _with_candidates(
        self,
        source: Segment,
        texts: Sequence[object],
        longest_source: int,
        truncation: TruncationPolicy,
        special_text: SpecialText,
    ) -> Segments | PromptError:
        budget = self.candidate_budget(len(source.ids), longest_source)
        candidates = []
        try:
            for number, text in enumerate(texts):
                place = f"candidate {number}"
                encoding = self._encode(self._candidate_text, text, place, special_text)
                candidates.append(self._cut(encoding, budget, place, truncation))
        except PromptError as error:
            return error
        return Segments(source, tuple(candidates), self._prefix_ids, self.spec.truncation_side)

    def _encode(self, prefix: str, text: object, place: str, special_text: SpecialText) -> Encoding:
        text = validate_text(text, place)
        try:
            if special_text != "token" and (token := self._control_text.find(text)) is not None:
                if special_text == "error":
                    raise PromptError(f"{place} holds the text of the special token {token!r}")
                masked = self._control_text.mask([text])
                return self._plain_text_tokenizer().encode(prefix + masked.texts[0], masked, add_special_tokens=True)
            for literal in self.spec.replace:
                text = text.replace(literal, " ")
            return self._tokenizer.encode(prefix + text)
        except PromptError:
            raise
        except Exception as error:  # tokenizers raises bare Exception
            raise PromptError(f"{place}: the tokenizer failed: {' '.join(str(error).split())}") from None

    def _cut(self, encoding: Encoding, limit: int, place: str, truncation: TruncationPolicy) -> Segment:
        """The encoding without what is beyond the limit; prefix and post-processor's tokens stay."""
        ids = np.asarray(encoding.ids, np.int64)
        too_many = max(0, len(ids) - limit)
        of_text = np.flatnonzero(np.asarray(encoding.special_tokens_mask) == 0)
        prefix, rest = of_text[:1], of_text[1:]
        if too_many:
            if truncation == "error":
                raise PromptError(f"{place} has {len(ids)} tokens, the limit is {limit}; shorten it")
            lost = rest[:too_many] if self.spec.truncation_side == "left" else rest[-too_many:]
            ids = np.delete(ids, lost)
        if self.spec.candidate_prefix is not None:
            prefix = np.flatnonzero(ids == self._candidate_id)
        return Segment(ids, too_many, prefix)

    def _plain_text_tokenizer(self) -> PlainTextTokenizer:
        """Built on first use: with 128,000 pieces it takes a second and the tokenizer's memory again."""
        with self._plain_text_lock:
            if self._plain_text is None:
                self._plain_text = PlainTextTokenizer(self._tokenizer, self._control_text)
            return self._plain_text

    def _check_layout(self) -> None:
        """Raises BundleError unless a text becomes one added token, its prefix, ..., one added token."""
        for prefix in (self.spec.source_prefix, self._candidate_text):
            encoding = self._tokenizer.encode(f"{prefix}a")
            mask = encoding.special_tokens_mask
            if len(mask) < 4 or sum(mask) != 2 or not mask[0] or not mask[-1]:
                raise BundleError("the bundle's tokenizer does not put one token before and one after a text")
            if encoding.ids[1] != self._tokenizer.token_to_id(prefix):
                raise BundleError(f"the bundle's tokenizer does not know the prefix {prefix!r} as one token")

    def _token_id(self, prefix: str) -> int:
        token = self._tokenizer.token_to_id(prefix)
        if token is None:
            raise BundleError(f"the bundle's tokenizer lacks the prefix {prefix!r}; export the bundle again")
        return int(token)
