"""Answers as columns: a Parquet file again, with its own columns and those of its answers."""

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING, Any

from rm_runtime.errors import RequestError
from rm_runtime.parquet import open_parquet, reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

ANSWER_COLUMNS = (
    "score",
    "rewards",
    "gating",
    "coefficients",
    "helpsteer",
    "ranks",
    "scores",
    "probability",
    "order_probabilities",
    "logits",
    "truncated",
    "error",
)
"""Every key of an answer, in the order of the columns. A file gets those its answers have, and always the last two."""

_ALWAYS = {"truncated", "error"}
_ROWS_AT_ONCE = 4096  # of all columns: what a row group of the output holds at most


def check_columns(path: Path, prefix: str) -> None:
    """Raises RequestError if the Parquet file has a column that an answer's column could hide."""
    taken = [name for name in open_parquet(path).schema_arrow.names if name.removeprefix(prefix) in ANSWER_COLUMNS]
    taken = [name for name in taken if name.startswith(prefix)]
    if taken:
        raise RequestError(
            f"{path} has a column {taken[0]!r} already; --column-prefix rm_ names those of the answers otherwise"
        )


def write_with_answers(source: Path, answers: Path, output: Path, prefix: str) -> None:
    """Write the rows of `source` with the answer to each behind it.

    answers: a JSON line for each row. prefix: goes before the names of the columns that are added. Row groups stay as
    they are but for large ones, which are split. Raises RequestError if `source` cannot be read.
    """
    import pyarrow
    from pyarrow import parquet

    with answers.open("rb") as lines:
        fields = _fields(map(json.loads, lines))
    stored = open_parquet(source)
    schema = stored.schema_arrow
    for name, kind in fields.items():
        schema = schema.append(pyarrow.field(prefix + name, kind))
    with answers.open("rb") as lines, parquet.ParquetWriter(output, schema, compression="zstd") as writer:
        for group in range(stored.num_row_groups):
            batches = stored.iter_batches(_ROWS_AT_ONCE, row_groups=[group])
            while True:
                with reading(source):
                    batch = next(batches, None)
                if batch is None:
                    break
                answered = [json.loads(line) for line in islice(lines, len(batch))]
                added = [pyarrow.array(_column(name, answered), kind) for name, kind in fields.items()]
                writer.write_table(pyarrow.Table.from_arrays([*batch.columns, *added], schema=schema))


def _fields(answers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Arrow types of the columns that these answers need, by name."""
    import pyarrow

    number, numbers = pyarrow.float64(), pyarrow.list_(pyarrow.float64())
    cut = pyarrow.struct([("tokens", pyarrow.int64()), ("side", pyarrow.string()), ("part", pyarrow.string())])
    types = dict.fromkeys(ANSWER_COLUMNS, numbers) | {
        "score": number,
        "probability": number,
        "ranks": pyarrow.list_(pyarrow.int64()),
        "truncated": pyarrow.list_(pyarrow.list_(cut)),
        "error": pyarrow.string(),
    }
    found = set(_ALWAYS)
    for answer in answers:
        found.update(answer)
        if isinstance(answer.get("logits", [None])[0], list):  # both orders of a comparison
            types["logits"] = pyarrow.list_(numbers)
    return {name: types[name] for name in ANSWER_COLUMNS if name in found}


def _column(name: str, answers: Sequence[Mapping[str, Any]]) -> list[Any]:
    values = [answer.get(name) for answer in answers]
    if name == "truncated":  # a list for each text that was read: one if it is the row's only text
        return [[cuts] if cuts and isinstance(cuts[0], dict) else cuts for cuts in values]
    return values
