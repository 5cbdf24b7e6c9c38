"""parity.html: a Parity as one self-contained page. Conversations are untrusted text and are escaped."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

from jinja2 import Environment

from rm_export import charts
from rm_export.report_recipe import recipe_rows, smoothing_told

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rm_calibration.conversations import Example
    from rm_calibration.recipe import Recipe
    from rm_export.parity import OutputError, Parity, ScoredRow

_TEXT_LENGTH = 220
_WORST = 6
_POINTS = 4000
"""Dots that a scatter plot can show; of more rows every k-th is drawn."""
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def render_report(parity: Parity, examples: Sequence[Example], recipe: Recipe | None = None) -> str:
    """The page. examples: the conversations that were compared, by `line` of the parity's rows. recipe: if any."""
    environment = Environment(autoescape=True, trim_blocks=True, keep_trailing_newline=True)
    template = environment.from_string(resources.files("rm_export").joinpath("report.html").read_text("utf-8"))
    scored = [
        (row.reference, row.bundle) for row in parity.rows if row.reference is not None and row.bundle is not None
    ]
    count, rest = parity.verdict.split(" ", 1)
    return template.render(
        parity=parity,
        headline={"count": count, "rest": f" {rest}"},
        lead=_lead(parity),
        warnings=_warnings(parity),
        figures=_figures(parity),
        scatter=charts.scatter(scored[:: 1 + len(scored) // _POINTS]),
        lengths=charts.error_by_length(parity.lengths),
        outputs=_objectives(parity.outputs),
        worst=[_worst(parity, row.row, examples) for row in parity.agreement.worst[:_WORST]],
        facts=_facts(parity),
        recipe=recipe_rows(recipe, parity.precision) if recipe else [],
        narrowing=smoothing_told(list(recipe.activations.values())) if recipe else "",
    )


def _lead(parity: Parity) -> str:
    rows = parity.agreement.n
    told = f"Measured on {rows:,} rows from {parity.examples:,} prompts against {parity.reference}."
    if parity.order.flips:
        told += (
            f" The widest margin that turned is {_short(parity.order.widest)} std of the reference scores;"
            f" of margins beyond 0.1, {parity.order.clear_flips:,} of {parity.order.clear_pairs:,} turned."
        )
    if not parity.pairwise and parity.preferences.pairs:
        flips, pairs = parity.preferences.flips, parity.preferences.pairs
        told += f" Of the {pairs:,} pairs of answers to the same prompt, {flips:,} changed places."
    return told


def _warnings(parity: Parity) -> list[str]:
    warnings = []
    if parity.refused_by_one:
        warnings.append(
            f"{parity.refused_by_one:,} rows are scored by only one of the two sides: this bundle is faulty."
        )
    for reason, rows in sorted(parity.not_rendered.items(), key=lambda item: -item[1])[:5]:
        warnings.append(f"{rows:,} rows are not compared, no prompt could be made of them: {_cut(reason)}")
    return warnings


def _figures(parity: Parity) -> list[dict[str, str]]:
    agreement = parity.agreement
    return [
        {
            "name": "Largest error",
            "value": _short(agreement.max_error),
            "note": _in_std(agreement.relative_max_error),
        },
        {
            "name": "Mean error",
            "value": _short(agreement.mean_error),
            "note": _in_std(agreement.relative_mean_error),
        },
        {
            "name": "Spearman correlation",
            "value": _correlation(agreement.spearman),
            "note": f"Pearson {_correlation(agreement.pearson)}",
        },
        {
            "name": "Clear flips",
            "value": f"{parity.order.clear_flips:,}",
            "note": f"of {parity.order.clear_pairs:,} margins beyond 0.1 std; 95 % interval of the rate "
            f"{_percent(parity.clear_flip_interval)}",
        },
        {
            "name": "Refused rows",
            "value": f"{parity.refused_by_both + parity.refused_by_one:,}",
            "note": f"{parity.refused_by_one:,} by one side only",
        },
        {
            "name": "Truncated rows",
            "value": f"{parity.truncated:,}",
            "note": f"of {len(parity.rows):,}",
        },
    ]


def _objectives(errors: Sequence[OutputError]) -> dict[str, Any]:
    """Objectives down, the outputs that have them across."""
    table = {(error.objective, error.output): error for error in errors if error.objective is not None}
    columns = list(dict.fromkeys(output for _, output in table))
    largest = {
        column: max(_relative(error) for (_, output), error in table.items() if output == column) for column in columns
    }
    rows = []
    for objective in dict.fromkeys(objective for objective, _ in table):
        cells = []
        for column in columns:
            error = table.get((objective, column))
            share = _relative(error) / largest[column] if error and largest[column] else 0.0
            cells.append(
                {"text": _short(_relative(error)), "bar": charts.bar(share)} if error else {"text": "", "bar": ""}
            )
        rows.append({"name": objective, "cells": cells})
    return {"columns": columns, "rows": rows}


def _relative(error: OutputError) -> float:
    return error.max_error / error.std if error.std else 0.0


def _worst(parity: Parity, index: int, examples: Sequence[Example]) -> dict[str, Any]:
    row = parity.rows[index]
    return {
        "error": _short((row.bundle or 0.0) - (row.reference or 0.0)),
        "reference": f"{row.reference:.4f}".replace("-", "−"),
        "bundle": f"{row.bundle:.4f}".replace("-", "−"),
        "tokens": f"{row.tokens:,}",
        "texts": _texts(row, examples[row.line]),
    }


def _texts(row: ScoredRow, example: Example) -> list[dict[str, str]]:
    """The last prompt and what was scored."""
    if not row.responses:
        said = [(message["role"], message["content"]) for message in example.messages[-2:]]
    else:
        last = example.messages[-1]
        names = ("answer",) if len(row.responses) == 1 else ("answer A", "answer B")
        answers = zip(names, (example.responses[place] for place in row.responses), strict=True)
        said = [(last["role"], last["content"]), *answers]
    return [{"who": _cut(who), "text": _cut(text)} for who, text in said]


def _facts(parity: Parity) -> list[tuple[str, str]]:
    return [
        ("Family", parity.family),
        ("Checkpoint", parity.source),
        ("Precision", parity.precision),
        ("Target", parity.target),
        ("Engine", parity.engine),
        *sorted(parity.versions.items()),
    ]


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT_LENGTH else f"{text[:_TEXT_LENGTH].rstrip()} …"


def _short(value: float) -> str:
    """Two significant digits: 0.0012, 3.4 × 10⁻⁷."""
    digits, _, exponent = f"{value:.2g}".partition("e")
    power = f" × 10{str(int(exponent)).translate(_SUPERSCRIPT)}" if exponent else ""
    return f"{digits}{power}".replace("-", "−")


def _percent(interval: tuple[float, float]) -> str:
    return " to ".join(f"{100 * bound:.2f}" for bound in interval) + " %"


def _in_std(share: float | None) -> str:
    return "the scores have no spread" if share is None else f"{_short(share)} std of the scores"


def _correlation(value: float | None) -> str:
    if value is None:
        return "–"
    return "1" if value == 1 else f"{min(value, 0.99999999):.8f}".rstrip("0")
