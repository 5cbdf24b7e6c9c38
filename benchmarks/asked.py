"""What a checkpoint is asked, and how two precisions of its answers agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from rm_calibration.comparison import compare_margins, compare_scores
from rm_calibration.conversations import Example
from rm_export import families
from rm_export.checkpoint import open_checkpoint
from rm_export.demo.preferences import Comparison, comparisons
from rm_export.options import Options
from rm_export.questions import Question, encode_questions, questions_of
from rm_runtime import load
from rm_runtime.batching import run_rows
from rm_runtime.bundle import open_bundle
from rm_runtime.engines import open_engine
from rm_runtime.prompt_spec import ChatPrompt
from rm_runtime.prompts import Prompt

JUDGING = 500
"""Held-out comparisons of the demo's generator."""


@dataclass(frozen=True)
class Asked:
    """Questions and their rows of ids. pairwise: both orders of two answers stand one after the other."""

    questions: tuple[Question, ...]
    rows: tuple[NDArray[np.int64], ...]
    pairwise: bool

    def answers(self, bundle: Path, threads: int, engine: str = "onnxruntime") -> NDArray[np.float64]:
        """Scores [questions], or of pairwise models margins [pairs]: A before B minus B before A."""
        opened = open_bundle(bundle)
        outputs = run_rows(open_engine(opened, engine, threads=threads), self.rows, opened.manifest.pad_token_id)
        scores = outputs["score"].astype(np.float64)
        return scores[::2] - scores[1::2] if self.pairwise else scores

    def agreement(self, expected: NDArray[np.float64], actual: NDArray[np.float64]) -> dict[str, Any]:
        """The table's figures. Flips: over all pairs of scores, or signs of margins."""
        agreement = compare_scores(expected, actual)
        flips = compare_margins(expected, actual) if self.pairwise else agreement.order
        return {
            "flips_%": 100 * flips.rate,
            "clear_flips_%": 100 * flips.clear_rate,
            "pairs": flips.pairs,
            "clear_pairs": flips.clear_pairs,
            "spearman": agreement.spearman,
            "max_error_std": agreement.relative_max_error,
            "mean_error_std": agreement.relative_mean_error,
        }


def ask(checkpoint: Path, examples: Sequence[Example]) -> Asked:
    """The rows that the checkpoint's family makes of the examples' answers."""
    opened = open_checkpoint(checkpoint)
    plan = families.recognise(opened).plan(opened, Options())
    pairwise = not isinstance(plan.prompt, ChatPrompt)
    questions = questions_of(examples, pairwise)
    prompts = encode_questions(plan.prompt, Tokenizer.from_str(plan.tokenizer_json), examples, questions)
    rows = [np.asarray(prompt.ids, np.int64) for prompt in prompts if isinstance(prompt, Prompt)]
    if len(rows) != len(questions):
        raise SystemExit(f"{checkpoint}: {len(questions) - len(rows)} of {len(questions)} prompts cannot be made")
    return Asked(tuple(questions), tuple(rows), pairwise)


def judging_comparisons() -> list[Comparison]:
    """Held-out comparisons of four answers."""
    return list(comparisons(JUDGING, 4242, "held_out"))


def judging_examples(answers: int) -> list[Example]:
    """Held-out comparisons with their first `answers` answers."""
    return [example_of(one, answers) for one in judging_comparisons()]


def training_examples(count: int, answers: int, seed: int = 777) -> list[Example]:
    """Comparisons of training questions with their first `answers` answers."""
    return [example_of(one, answers) for one in comparisons(count, seed, "train")]


def chats(examples: Sequence[Example]) -> list[list[dict[str, str]]]:
    """Every answer as a conversation."""
    return [example.conversation(place) for example in examples for place in range(len(example.responses))]


def scores_of(bundle: Path, conversations: Sequence[list[dict[str, str]]]) -> NDArray[np.float64]:
    """The bundle's scores on ONNX Runtime."""
    return np.array([score.score for score in load(bundle, engine="onnxruntime").score(conversations)])


def example_of(one: Comparison, answers: int) -> Example:
    """The comparison's question with its first `answers` answers."""
    return Example(tuple(one.messages), tuple(answer.text for answer in one.answers[:answers]))
