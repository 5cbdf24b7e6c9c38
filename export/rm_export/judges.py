"""Held-out rows that judge a quantised graph: what the float graph makes of them, and how decisions compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rm_calibration.comparison import compare_margins, compare_scores
from rm_calibration.conversations import Example
from rm_calibration.errors import CalibrationError
from rm_calibration.holdout import prompt_digest, split_examples
from rm_export.bundle import Progress
from rm_export.families import Plan
from rm_export.lowering.gemms import find_gemms
from rm_export.questions import Question, both_orders, encode_questions, questions_of
from rm_export.stage_runner import Outputs, StageRunner, run_stages
from rm_runtime.prompt_spec import ChatPrompt
from rm_runtime.prompts import Prompt

Rows = list[NDArray[np.int64]]

_PASS_OPERATIONS = 120e12
_FEWEST_TOKENS, _MOST_TOKENS = 8192, 65536
"""One float32 pass over a side of the split takes some minutes on a laptop: all of the built-in set below 2 billion
parameters, 8,192 ids (sixty chats) for 8 billion."""


@dataclass(frozen=True)
class Asked:
    """Questions about examples, and their prompts.

    examples: those that a question's line counts. pairwise: whether a question compares two answers.
    """

    examples: tuple[Example, ...]
    questions: tuple[Question, ...]
    prompts: tuple[Prompt, ...]
    pairwise: bool

    @property
    def rows(self) -> Rows:
        """The rows of ids."""
        return [np.asarray(prompt.ids, np.int64) for prompt in self.prompts]

    @property
    def tokens(self) -> int:
        """Ids of all rows."""
        return sum(len(prompt.ids) for prompt in self.prompts)


@dataclass(frozen=True)
class Judges:
    """Held-out questions, and what the float graph makes of them."""

    asked: Asked
    outputs: Outputs

    def flip_rate(self, outputs: Outputs) -> float:
        """Share of clear preferences that another precision decides otherwise, over all pairs of rows.

        For pairwise families also over the preferences themselves, which are few: the larger rate counts.
        """
        scorable = np.isfinite(self.outputs["score"]) & np.isfinite(outputs["score"])
        expected, actual = self.outputs["score"][scorable], outputs["score"][scorable]
        between_rows = compare_scores(expected, actual).order.clear_rate
        if not self.asked.pairwise:
            return between_rows
        orders = both_orders([one for one, kept in zip(self.asked.questions, scorable, strict=True) if kept])
        margins = [[side[i] - side[j] for i, j in orders] for side in (expected, actual)]
        return max(between_rows, compare_margins(*margins).clear_rate) if orders else between_rows


def ask_both_sides(plan: Plan, examples: Sequence[Example], max_tokens: int) -> tuple[Asked, Asked]:
    """(calibrating, judging): the two sides of the split, each cut to about `max_tokens` ids, whole examples.

    Raises CalibrationError if a side has fewer than two rows.
    """
    split = split_examples(examples)
    return _ask(plan, split.calibration, max_tokens), _ask(plan, split.held_out, max_tokens)


def affordable_tokens(model: ir.Model) -> int:
    """How many ids of either side are used unless the user says: 8,192 to 65,536, fewer for larger models."""
    sizes = [gemm.weight.const_value.size for gemm in find_gemms(model.graph) if gemm.weight.const_value is not None]
    return int(np.clip(_PASS_OPERATIONS / max(1, 2 * sum(sizes)), _FEWEST_TOKENS, _MOST_TOKENS))


def float_judges(
    build: Callable[[], ir.Model],
    plan: Plan,
    examples: Sequence[Example],
    max_tokens: int | None,
    threads: int | None,
    progress: Progress,
) -> Judges:
    """Judges for a precision that needs no calibration; errors as ask_both_sides."""
    model = build()
    _, asked = ask_both_sides(plan, examples, max_tokens or affordable_tokens(model))
    return Judges(asked, run_stages(model, asked.rows, StageRunner(threads), layers_done(progress, "running in float")))


def layers_done(progress: Progress, what: str) -> Callable[[int, int], None]:
    """A callback (layers done, layers) that tells `progress`."""

    def on_stage(done: int, total: int) -> None:
        if done == 1:
            progress.begin(what, total, "layers")
        progress.advance(1)

    return on_stage


def _ask(plan: Plan, examples: Sequence[Example], max_tokens: int) -> Asked:
    """All questions about the examples, examples in the order of their digests until the budget is spent."""
    from tokenizers import Tokenizer

    pairwise = not isinstance(plan.prompt, ChatPrompt)
    questions = questions_of(examples, pairwise)
    encoded = encode_questions(plan.prompt, Tokenizer.from_str(plan.tokenizer_json), examples, questions)
    of_line: dict[int, list[tuple[Question, Prompt]]] = {}
    for question, prompt in zip(questions, encoded, strict=True):
        if isinstance(prompt, Prompt):
            of_line.setdefault(question.line, []).append((question, prompt))
    kept: list[tuple[Question, Prompt]] = []
    for line in sorted(of_line, key=lambda line: prompt_digest(examples[line])):
        spent = sum(len(prompt.ids) for _, prompt in kept)
        if len(kept) < 2 or spent + sum(len(prompt.ids) for _, prompt in of_line[line]) <= max_tokens:
            kept += of_line[line]
    if len(kept) < 2:
        refused = next((str(prompt) for prompt in encoded if not isinstance(prompt, Prompt)), "none was given")
        raise CalibrationError(f"calibration needs at least two conversations on either side of its split: {refused}")
    kept.sort(key=lambda pair: (pair[0].line, pair[0].responses))
    return Asked(tuple(examples), tuple(q for q, _ in kept), tuple(prompt for _, prompt in kept), pairwise)
