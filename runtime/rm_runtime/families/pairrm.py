"""PairRM with LLM-Blender's API: the same results for the same calls, quirks included (semantics.md 5.5).

A logit f(A, B) says how much better A is than B when A comes first. It is not antisymmetric, so all but one-order
comparisons ask in both orders. Under LLM-Blender's rule the inputs of one batch share a budget for candidates, so
`batch_size` changes the scores of long candidates, here as there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn, overload

import numpy as np

from rm_runtime.errors import BundleError, RequestError, RewardModelError
from rm_runtime.families.pairrm_generation import sampled_candidates
from rm_runtime.families.pairrm_scoring import (
    BOTH_ORDERS,
    PairScorer,
    bubble_starts,
    candidate_count,
    ranks_of,
    scores_of,
)
from rm_runtime.families.pairrm_texts import MULTI_TURN_INSTRUCTION, compared_texts, ranked_texts
from rm_runtime.preferences import Preferences, preferences_of_logits
from rm_runtime.prompt_spec import SegmentsPrompt
from rm_runtime.results import Ranking
from rm_runtime.segments import Segments, SegmentsPrompter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from rm_runtime.bundle import Bundle
    from rm_runtime.engines.protocol import Engine
    from rm_runtime.options import RequestOptions

    Messages = Sequence[Mapping[str, Any]]

_REFERENCES: dict[str, Callable[[Sequence[str]], str]] = {
    "longest": lambda texts: max(texts, key=len),
    "shortest": lambda texts: min(texts, key=len),
    "median_length": lambda texts: sorted(texts, key=len)[len(texts) // 2],
    "first": lambda texts: texts[0],
    "last": lambda texts: texts[-1],
}


class PairRM:
    """A loaded bundle that compares answers.

    All methods take RequestOptions fields (truncation, special_text, batch_tokens) by keyword, for that call. `inputs`
    are prompts, `candidates` one list of answers an input, all of one length, `instructions` texts put before the
    inputs without a separator. They raise RequestError for a malformed call, PromptError for a text that cannot be
    encoded, UnscorableError where the model gives no number; each names the input.
    """

    def __init__(self, bundle: Bundle, engine: Engine, options: RequestOptions) -> None:
        prompt = bundle.manifest.prompt
        if not isinstance(prompt, SegmentsPrompt):
            raise BundleError(f"{bundle.path}: family {bundle.manifest.family} needs a segments prompt")
        self.bundle = bundle
        self.engine = engine
        self.options = options
        self._prompter = SegmentsPrompter(prompt, bundle.tokenizer())

    @property
    def family(self) -> str:
        """The bundle's family name."""
        return self.bundle.manifest.family

    def score(self, *_: Any, **__: Any) -> NoReturn:
        """Raises RequestError: there is no score of one answer."""
        raise RequestError(
            f"a {self.family} model compares answers and cannot score one alone; "
            "use rank(messages, responses) or compare(inputs, candidates_A, candidates_B)"
        )

    def probe(self) -> None:
        """Compare two short answers. Raises BundleError if the bundle gives no number for them."""
        try:
            self.compare(["Hello"], ["Hi"], ["Bye"])
        except RewardModelError as error:
            raise BundleError(f"{self.bundle.path} cannot compare two plain answers: {error}") from None

    @overload
    def rank(self, inputs: Messages, candidates: Sequence[str], **options: Any) -> Ranking: ...

    @overload
    def rank(
        self,
        inputs: Sequence[str],
        candidates: Sequence[Sequence[str]],
        instructions: Sequence[str] | None = None,
        return_scores: bool = False,
        batch_size: int = 8,
        disable_tqdm: bool = False,
        source_max_length: int | None = None,
        candidate_max_length: int | None = None,
        **options: Any,
    ) -> NDArray[Any]: ...

    def rank(
        self,
        inputs: Sequence[Any],
        candidates: Sequence[Any],
        instructions: Sequence[str] | None = None,
        return_scores: bool = False,
        batch_size: int = 8,
        disable_tqdm: bool = False,
        source_max_length: int | None = None,
        candidate_max_length: int | None = None,
        **options: Any,
    ) -> Ranking | NDArray[Any]:
        """Rank answers, every pair of them in both orders.

        `rank(messages, responses)` with {"role", "content"} messages ranks the answers to one chat and returns a
        Ranking; pairrm_texts.ranked_texts tells what is asked for a chat of several turns.

        `rank(inputs, candidates, ...)` with texts is LLM-Blender's: int32 ranks [inputs, candidates], 1 = best, equal
        scores sharing the better rank; or, with return_scores, float32 scores: the mean of f(A, other) - f(other, A)
        over all n candidates, the one itself (0) included. disable_tqdm is accepted and has no use.
        """
        if isinstance(inputs, (list, tuple)) and inputs and isinstance(inputs[0], Mapping):
            return self._rank_responses(inputs, candidates, **options)
        scorer = self._scorer(options, source_max_length, candidate_max_length)
        groups = scorer.segments(inputs, candidates, instructions, batch_size)
        scores = scores_of(scorer.comparisons(groups))
        return scores if return_scores else ranks_of(scores)

    def preferences(
        self, inputs: Messages | str, candidates: Sequence[str], instruction: str | None = None, **options: Any
    ) -> Preferences:
        """Every pair of the answers to one chat, or to one text as LLM-Blender's inputs are."""
        source, texts = (inputs, candidates) if isinstance(inputs, str) else ranked_texts(inputs, candidates)
        scorer = self._scorer(options)
        (group,) = scorer.segments([source], [texts], None if instruction is None else [instruction], 1)
        matrices = scorer.comparisons([group])
        tokens = [group.longest_row(place) for place in range(len(texts))]
        return preferences_of_logits(matrices[0], _ranking_of(group, scores_of(matrices)[0]), tokens)

    def rank_with_ref(
        self,
        inputs: Sequence[str],
        candidates: Sequence[Sequence[str]],
        instructions: Sequence[str] | None = None,
        return_scores: bool = False,
        batch_size: int = 8,
        ref_mode: str = "longest",
        ref_candidates: Sequence[str] | None = None,
        mode: str = BOTH_ORDERS,
        **options: Any,
    ) -> NDArray[Any]:
        """Rank answers by comparing each with one reference answer.

        ref_mode: which candidate is the reference, by its length in characters or its place: "longest", "shortest",
        "median_length", "first", "last". ref_candidates: reference texts instead, one an input. mode: as in `compare`.
        Returns int32 ranks [inputs, candidates], or float64 scores: minus the reference's advantage. Asked in both
        orders, the reference itself scores 0 exactly.
        """
        count = candidate_count(inputs, candidates)
        if ref_candidates is None:
            if ref_mode not in _REFERENCES:
                raise RequestError(f"ref_mode={ref_mode!r}: {', '.join(map(repr, _REFERENCES))}")
            ref_candidates = [_REFERENCES[ref_mode](texts) for texts in candidates]
        elif len(ref_candidates) != len(inputs):
            raise RequestError(f"{len(ref_candidates)} ref_candidates, {len(inputs)} inputs; one each is needed")
        scorer = self._scorer(options)
        columns = []
        for place in range(count):
            pairs = [(reference, texts[place]) for reference, texts in zip(ref_candidates, candidates, strict=True)]
            columns.append(scorer.segments(inputs, pairs, instructions, batch_size))
        groups = [group for of_input in zip(*columns, strict=True) for group in of_input]
        scores = -scorer.compared(groups, mode).astype(np.float64).reshape(len(inputs), count)
        return scores if return_scores else ranks_of(scores)

    def compare(
        self,
        inputs: Sequence[str],
        candidates_A: Sequence[str],  # noqa: N803 - LLM-Blender's names
        candidates_B: Sequence[str],  # noqa: N803
        instructions: Sequence[str] | None = None,
        batch_size: int = 4,
        return_logits: bool = False,
        mode: str = BOTH_ORDERS,
        disable_tqdm: bool = False,
        **options: Any,
    ) -> NDArray[Any]:
        """Compare two answers an input: bool [inputs], true where A is better (not for ties), or float32 logits.

        mode, as LLM-Blender computes and not as it documents: "[A,B]" is f(A, B); "[B,A]" is f(B, A) with no change of
        sign, so positive means B; any other is f(A, B) - f(B, A), twice the mean of both orders.
        """
        if not len(inputs) == len(candidates_A) == len(candidates_B):
            raise RequestError(
                f"{len(inputs)} inputs, {len(candidates_A)} candidates_A and {len(candidates_B)} candidates_B; "
                "their numbers must be the same"
            )
        scorer = self._scorer(options)
        pairs = list(zip(candidates_A, candidates_B, strict=True))
        logits = scorer.compared(scorer.segments(inputs, pairs, instructions, batch_size), mode)
        return logits if return_logits else logits > 0

    def compare_conversations(
        self,
        conversations_a: Sequence[Messages],
        conversations_b: Sequence[Messages],
        batch_size: int = 4,
        return_logits: bool = False,
        mode: str = BOTH_ORDERS,
        **options: Any,
    ) -> NDArray[Any]:
        """`compare` for whole conversations with equal user turns; roles are "USER" and "ASSISTANT" in turn."""
        inputs, candidates_a, candidates_b = compared_texts(conversations_a, conversations_b)
        return self.compare(
            inputs,
            candidates_a,
            candidates_b,
            [MULTI_TURN_INSTRUCTION] * len(inputs),
            batch_size,
            return_logits,
            mode,
            **options,
        )

    def get_best_of_n(
        self,
        inputs: Sequence[str],
        candidates: Sequence[Sequence[str]],
        instructions: Sequence[str] | None = None,
        pairrm_cmp_type: str = "bubble",
        return_all: bool = False,
        batch_size: int = 8,
        **options: Any,
    ) -> list[Any]:
        """The best candidate of each input; with return_all all candidates, the best one first.

        pairrm_cmp_type: "bubble" carries the better of two through all candidates once, 2(n - 1) forwards; the others
        follow in the order they lost. Anything else ranks them fully, n(n - 1) forwards; equals keep their order.
        A bubble pass starts from a random order, one for each batch, as LLM-Blender's does; `seed=...` makes it
        repeatable, `permutation=[...]` fixes it.
        """
        return self._first_of_n(1, inputs, candidates, instructions, pairrm_cmp_type, return_all, batch_size, options)

    def get_worst_of_n(
        self,
        inputs: Sequence[str],
        candidates: Sequence[Sequence[str]],
        instructions: Sequence[str] | None = None,
        pairrm_cmp_type: str = "bubble",
        return_all: bool = False,
        batch_size: int = 8,
        **options: Any,
    ) -> list[Any]:
        """The worst candidate of each input; otherwise as `get_best_of_n`."""
        return self._first_of_n(-1, inputs, candidates, instructions, pairrm_cmp_type, return_all, batch_size, options)

    def best_of_n_generate(
        self,
        model: Any,
        model_tokenizer: Any,
        inputs: Sequence[str],
        instructions: Sequence[str] | None = None,
        n: int = 5,
        sampling_mode: str | None = "top_p_sampling",
        batch_size: int = 4,
        pairrm_cmp_type: str = "bubble",
        return_all: bool = False,
        *,
        seed: int | None = None,
        permutation: Sequence[int] | None = None,
        **generate_kwargs: Any,
    ) -> list[Any]:
        """Sample n answers to each input and return what `get_best_of_n` makes of them.

        model, model_tokenizer: a transformers model with its tokenizer, or a function (prompts, n, **generate_kwargs)
        -> n texts a prompt, with None. It is prompted with instruction, newline and input; PairRM reads them without
        the newline. sampling_mode: "top_p_sampling" (top_p 1), "top_k_sampling" (top_k 50), both at temperature 0.7,
        or None for generate_kwargs alone.
        """
        prompts = list(inputs)
        if instructions is not None:
            prompts = [f"{instruction}\n{text}" for instruction, text in zip(instructions, inputs, strict=True)]
        candidates = sampled_candidates(model, model_tokenizer, prompts, n, sampling_mode, batch_size, generate_kwargs)
        return self.get_best_of_n(
            inputs,
            candidates,
            instructions,
            pairrm_cmp_type,
            return_all,
            min(batch_size, 32),
            seed=seed,
            permutation=permutation,
        )

    def _scorer(
        self,
        options: Mapping[str, Any],
        source_max_length: int | None = None,
        candidate_max_length: int | None = None,
    ) -> PairScorer:
        prompter = self._prompter.with_limits(source_max_length, candidate_max_length)
        chosen = replace(self.options, **options)
        return PairScorer(self.engine, prompter, self.bundle.manifest.pad_token_id, chosen)

    def _rank_responses(self, messages: Messages, responses: Sequence[str], **options: Any) -> Ranking:
        source, candidates = ranked_texts(messages, responses)
        scorer = self._scorer(options)
        (group,) = scorer.segments([source], [candidates], None, 1)
        (scores,) = scores_of(scorer.comparisons([group]))
        return _ranking_of(group, scores)

    def _first_of_n(
        self,
        sign: int,
        inputs: Sequence[str],
        candidates: Sequence[Sequence[str]],
        instructions: Sequence[str] | None,
        pairrm_cmp_type: str,
        return_all: bool,
        batch_size: int,
        options: dict[str, Any],
    ) -> list[Any]:
        """Candidates with the best (sign 1) or worst (-1) first, or only that one."""
        seed, permutation = options.pop("seed", None), options.pop("permutation", None)
        count = candidate_count(inputs, candidates)
        scorer = self._scorer(options)
        if count <= 1:
            order = np.zeros((len(inputs), count), np.int64)
        else:
            groups = scorer.segments(inputs, candidates, instructions, batch_size)
            if pairrm_cmp_type == "bubble":
                starts = bubble_starts(len(inputs), count, batch_size, permutation, seed)
                order = scorer.bubble(groups, starts, sign)
            else:
                ranks = ranks_of(scores_of(scorer.comparisons(groups)))
                order = np.argsort(sign * ranks, axis=1, kind="stable")
        chosen = [[texts[place] for place in places] for texts, places in zip(candidates, order, strict=True)]
        return chosen if return_all else [texts[0] for texts in chosen]


def _ranking_of(group: Segments, scores: NDArray[Any]) -> Ranking:
    """Of one input's candidates; scores [n]."""
    return Ranking.from_scores(scores.tolist(), [group.truncation(place) for place in range(len(group.candidates))])
