"""Outputs of the reference and of the bundle on the same rows -> a Parity."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rm_calibration.comparison import compare_margins, compare_scores, compare_within_groups, spread
from rm_export.errors import ExportError
from rm_export.parity import LengthBucket, OutputError, Parity, ScoredRow
from rm_export.questions import both_orders
from rm_runtime.prompt_spec import ChatPrompt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from rm_calibration.comparison import Flips
    from rm_export.questions import Question
    from rm_runtime.manifest import Manifest
    from rm_runtime.prompts import Prompt

    Outputs = Mapping[str, NDArray[np.float32]]

_BUCKETS = 6


def measure(
    manifest: Manifest,
    asked: Sequence[tuple[Question, Prompt]],
    expected: Outputs,
    measured: Outputs,
    **facts: Any,
) -> Parity:
    """Compare the reference's outputs with the bundle's; row i of both belongs to asked[i].

    facts: the fields of Parity that are not measured here (engine, versions, examples, not_rendered).
    Raises ExportError if the two sides have other outputs, or no row was scored by both.
    """
    different = sorted(set(expected) ^ set(measured))
    if different:
        raise ExportError(f"only one of bundle and reference has the output {', '.join(different)}")
    rows = tuple(
        ScoredRow(
            line=question.line,
            responses=question.responses,
            tokens=len(prompt.ids),
            cut=sum(truncation.tokens for truncation in prompt.truncation),
            reference=_or_none(expected["score"][place]),
            bundle=_or_none(measured["score"][place]),
        )
        for place, (question, prompt) in enumerate(asked)
    )
    both = np.flatnonzero([row.reference is not None and row.bundle is not None for row in rows])
    if not len(both):
        raise ExportError(f"none of {len(rows)} rows could be scored by both the bundle and its reference")
    scores, ours = (side["score"][both].astype(np.float64) for side in (expected, measured))
    scored = [rows[place] for place in both]
    agreement = compare_scores(scores, ours)
    agreement = replace(agreement, worst=tuple(replace(worst, row=int(both[worst.row])) for worst in agreement.worst))
    pairwise = not isinstance(manifest.prompt, ChatPrompt)
    return Parity(
        family=manifest.family,
        precision=manifest.precision,
        target=manifest.target,
        source=manifest.source.id,
        pairwise=pairwise,
        rows=rows,
        agreement=agreement,
        preferences=_preferences(scored, scores, ours, pairwise),
        outputs=tuple(_output_errors(manifest.parameters, expected, measured, both)),
        lengths=_length_buckets([row.tokens for row in scored], np.abs(ours - scores)),
        **facts,
    )


def _or_none(score: np.float32) -> float | None:
    return float(score) if np.isfinite(score) else None


def _preferences(
    rows: Sequence[ScoredRow], expected: NDArray[np.float64], measured: NDArray[np.float64], pairwise: bool
) -> Flips:
    """Answers to the same prompt: which one each side prefers."""
    if not pairwise:
        return compare_within_groups(expected, measured, [row.line for row in rows])
    orders = both_orders(rows)
    if not orders:
        raise ExportError("no pair of answers could be scored in both orders")
    forward, backward = np.array(orders).T
    return compare_margins(expected[forward] - expected[backward], measured[forward] - measured[backward])


def _output_errors(
    parameters: Mapping[str, Any], expected: Outputs, measured: Outputs, rows: NDArray[np.intp]
) -> list[OutputError]:
    errors = []
    for name, values in expected.items():
        reference = values[rows].reshape(len(rows), -1).astype(np.float64)
        difference = np.abs(measured[name][rows].reshape(len(rows), -1) - reference)
        names = parameters.get("objectives") or parameters.get("choices") or ()
        for column in range(reference.shape[1]):
            objective = None if values.ndim == 1 else str(names[column]) if len(names) > column else str(column)
            errors.append(
                OutputError(
                    output=name,
                    objective=objective,
                    std=spread(reference[:, column]),
                    max_error=float(difference[:, column].max()),
                    mean_error=float(difference[:, column].mean()),
                )
            )
    return errors


def _length_buckets(tokens: Sequence[int], errors: NDArray[np.float64]) -> tuple[LengthBucket, ...]:
    """Rows of about equal number in each bucket; rows of one length are never parted."""
    lengths = np.asarray(tokens)
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, _BUCKETS + 1)[1:], method="higher"))
    place = np.searchsorted(edges, lengths)
    buckets = []
    for index in range(len(edges)):
        inside = place == index
        buckets.append(
            LengthBucket(
                shortest=int(lengths[inside].min()),
                longest=int(lengths[inside].max()),
                rows=int(inside.sum()),
                max_error=float(errors[inside].max()),
                mean_error=float(errors[inside].mean()),
            )
        )
    return tuple(buckets)
