"""PairRM's logits for groups of candidates, and what LLM-Blender makes of them: score matrix and bubble pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from rm_runtime.batching import run_rows
from rm_runtime.errors import PromptError, RequestError, UnscorableError
from rm_runtime.results import competition_ranks
from rm_runtime.templates import validate_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from numpy.typing import NDArray

    from rm_runtime.engines.protocol import Engine
    from rm_runtime.options import RequestOptions
    from rm_runtime.segments import Segments, SegmentsPrompter

    Pair = tuple[int, int, int]
    Logits = NDArray[np.float32]

BOTH_ORDERS = "[A,B]+[B,A]"
_ROWS_AT_A_TIME = 2048
"""Rows made before the engine runs them: enough to sort into full batches, few enough to hold."""


@dataclass(frozen=True)
class PairScorer:
    """A loaded graph and its prompter, for one call's options."""

    engine: Engine
    prompter: SegmentsPrompter
    pad_token_id: int
    options: RequestOptions

    def segments(
        self,
        inputs: Sequence[str],
        candidates: Sequence[Sequence[str]],
        instructions: Sequence[str] | None,
        batch_size: int,
    ) -> list[Segments]:
        """The inputs encoded in batches of batch_size, as LLM-Blender's loader does.

        Raises RequestError for lists that do not fit together, PromptError for the first input that cannot
        be encoded.
        """
        candidate_count(inputs, candidates)
        if instructions is not None and not isinstance(instructions, (list, tuple)):
            raise RequestError("instructions must be a list of texts, one an input")
        if instructions is not None and len(instructions) != len(inputs):
            raise RequestError(f"{len(instructions)} instructions for {len(inputs)} inputs; one each is needed")
        if batch_size < 1:
            raise RequestError(f"batch_size={batch_size}: at least 1")
        sources = [validate_text(text, f"input {place}") for place, text in enumerate(inputs)]
        if instructions is not None:
            texts = [validate_text(text, f"instruction {place}") for place, text in enumerate(instructions)]
            sources = [instruction + source for instruction, source in zip(texts, sources, strict=True)]
        groups: list[Segments] = []
        for start in range(0, len(sources), batch_size):
            batch = slice(start, start + batch_size)
            encoded = self.prompter.encode(
                list(zip(sources[batch], candidates[batch], strict=True)),
                self.options.truncation,
                self.options.special_text,
            )
            for place, group in enumerate(encoded, start=start):
                if isinstance(group, PromptError):
                    raise PromptError(f"input {place}: {group}" if len(sources) > 1 else str(group))
                groups.append(replace(group, number=place))
        return groups

    def logits(self, groups: Sequence[Segments], pairs: Sequence[Pair]) -> Logits:
        """f(first, second) for each (group, first, second): [pairs]. Equal rows run once, so equals tie exactly."""
        rows = [groups[group].row(first, second).ids for group, first, second in pairs]
        unique = {row.tobytes(): row for row in rows}
        outputs = run_rows(self.engine, list(unique.values()), self.pad_token_id, self.options.batch_tokens)
        places = {key: place for place, key in enumerate(unique)}
        chosen = [places[row.tobytes()] for row in rows]
        logits: Logits = outputs["logit"][chosen] if pairs else np.zeros(0, np.float32)
        for (group, first, second), logit in zip(pairs, logits, strict=True):
            if not np.isfinite(logit):
                raise UnscorableError(
                    f"input {groups[group].number}, candidates {first} and {second}: the model gave no "
                    "number for them; its weights or activations are not finite"
                )
        return logits

    def comparisons(self, groups: Sequence[Segments]) -> Logits:
        """M[g, i, j] = f(i, j) of group g, 0 on the diagonal: [groups, n, n]."""
        count = len(groups[0].candidates) if groups else 0
        matrices = np.zeros((len(groups), count, count), np.float32)
        ordered = [(i, j) for i in range(count) for j in range(count) if i != j]
        step = max(1, _ROWS_AT_A_TIME // max(1, len(ordered)))
        for start in range(0, len(groups), step):
            pairs = [(group, i, j) for group in range(start, min(start + step, len(groups))) for i, j in ordered]
            for place, logit in zip(pairs, self.logits(groups, pairs), strict=True):
                matrices[place] = logit
        return matrices

    def compared(self, groups: Sequence[Segments], mode: str) -> Logits:
        """The logit of each group's two candidates, by the mode of LLM-Blender's `compare`: [groups]."""
        if mode in ("[A,B]", "[B,A]"):
            first, second = (0, 1) if mode == "[A,B]" else (1, 0)
            return self.logits(groups, [(group, first, second) for group in range(len(groups))])
        scores = scores_of(self.comparisons(groups)).reshape(len(groups), 2)
        logits: Logits = scores[:, 0] - scores[:, 1]
        return logits

    def bubble(self, groups: Sequence[Segments], order: NDArray[np.int64], sign: int) -> NDArray[np.int64]:
        """One bubble pass through each group's candidates: the winner, then the losers in the order they
        lost.

        order: [groups, n], where each group starts. sign: 1 carries the better of two on, -1 the worse.
        Each step asks in both orders; where these say "equal", the later candidate is carried on.
        """
        order = order.copy()
        lost = []
        numbers = range(len(groups))
        for place in range(order.shape[1] - 1):
            current, following = order[:, place].copy(), order[:, place + 1].copy()
            forward = self.logits(groups, list(zip(numbers, current, following, strict=True)))
            backward = self.logits(groups, list(zip(numbers, following, current, strict=True)))
            stays = sign * (forward - backward) > 0
            lost.append(np.where(stays, following, current))
            order[:, place + 1] = np.where(stays, current, following)
        return np.column_stack([order[:, -1], *lost])


def candidate_count(inputs: Sequence[str], candidates: Sequence[Sequence[str]]) -> int:
    """Candidates an input has. Raises RequestError unless all have as many, at least one."""
    if not isinstance(inputs, (list, tuple)) or not isinstance(candidates, (list, tuple)):
        raise RequestError("inputs must be a list of texts, and candidates a list of lists of texts")
    if len(inputs) != len(candidates):
        raise RequestError(f"{len(inputs)} inputs and {len(candidates)} lists of candidates; one each is needed")
    counts = {len(texts) if isinstance(texts, (list, tuple)) else 0 for texts in candidates}
    if 0 in counts or len(counts) > 1:
        raise RequestError("every input needs a list of candidates, all of the same length and not empty")
    return counts.pop() if counts else 0


def scores_of(matrices: Logits) -> Logits:
    """LLM-Blender's get_scores_from_cmps: mean over all n candidates of M[i, j] - M[j, i]; [groups, n]."""
    if not matrices.size:
        return matrices.reshape(len(matrices), 0)
    scores: Logits = (matrices - matrices.swapaxes(1, 2)).mean(axis=-1)
    return scores


def ranks_of(scores: NDArray[Any]) -> NDArray[np.int32]:
    """[groups, n] scores -> competition ranks of the same shape: 1 = best, ties share it, the next is skipped."""
    return np.array([competition_ranks(row.tolist()) for row in scores], np.int32).reshape(scores.shape)


def bubble_starts(
    inputs: int, count: int, batch_size: int, permutation: Sequence[int] | None, seed: int | None
) -> NDArray[np.int64]:
    """[inputs, count]: where each input's bubble pass starts, the same within a batch."""
    if permutation is not None:
        if sorted(permutation) != list(range(count)):
            raise RequestError(f"permutation={list(permutation)} is no order of {count} candidates")
        return np.tile(np.array(permutation, np.int64), (inputs, 1))
    generator = np.random.default_rng(seed)
    batches = [generator.permutation(count) for _ in range(0, inputs, batch_size)]
    starts = [batches[place // batch_size] for place in range(inputs)]
    return np.array(starts, np.int64).reshape(inputs, count)
