"""Does cost grow with the tokens alone? `python benchmarks/linearity.py [--layers N] [--backbones B,..]`.

Two layers of each backbone at full width with random weights (benchmarks/full_size.py), one thread, CPU time, the
fastest of the rounds; all engines and precisions take turns. Tokens per second
- by number of conversations of 128 ids, 1 to 64, through run_rows, so batching is included;
- by length of one conversation, 64 to 4,096 ids (PairRM 64 to 2,048).
Then where ONNX Runtime's time goes by length: the share of everything whose work grows with the square of the length.
A drawing (benchmarks/results/linearity.svg) and tables; about ten minutes on an idle machine, and 7 GiB.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

import full_size
import line_chart
from engines import CALIBRATION
from rm_export.checkpoint import open_checkpoint
from rm_export.exporter import export_checkpoint
from rm_runtime.batching import run_rows
from rm_runtime.bundle import Bundle, open_bundle
from rm_runtime.engines import chosen_engine, open_engine
from rm_runtime.engines.choice import cpu_flags
from rm_runtime.token_budget import default_batch_tokens

PRECISIONS, ENGINES = ("fp32", "int8"), ("onnxruntime", "openvino")
NUMBERS, LENGTH = (1, 2, 4, 8, 16, 32, 40, 64), 128
LENGTHS = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
LONGEST_PAIR = 2048
PAIRRM, LLAMA = "PairRM", "Llama-3.2-1B"

Rows = Sequence[NDArray[np.int64]]
Run = Callable[[Rows], object]


def rows_of(number: int, length: int) -> Rows:
    """Random rows that share no beginning."""
    rng = np.random.default_rng(number * length)
    return list(rng.integers(5, 900, (number, length)))


def seconds(runs: Mapping[str, Run], rows: Rows, rounds: int) -> dict[str, float]:
    """CPU time of each engine in its fastest round, after one that warms it up."""
    best = dict.fromkeys(runs, math.inf)
    for turn in range(rounds + 1):
        for name, run in runs.items():
            began = time.process_time()
            run(rows)
            if turn:
                best[name] = min(best[name], time.process_time() - began)
    return best


def rates(runs: Mapping[str, Run], cases: Mapping[int, Rows], rounds: int) -> dict[str, dict[int, float]]:
    """Tokens per second of each engine by case."""
    found: dict[str, dict[int, float]] = {name: {} for name in runs}
    for case, rows in cases.items():
        for name, taken in seconds(runs, rows, rounds).items():
            found[name][case] = sum(map(len, rows)) / taken
    return found


def square_share(bundle: Bundle, length: int) -> float:
    """Share of ONNX Runtime's kernel time, second run, in operators whose work grows with the square of the length."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling = 1, True
    options.profile_file_prefix = str(bundle.path / "profile")
    session = onnxruntime.InferenceSession(str(bundle.graph_path("plain")), options, ["CPUExecutionProvider"])
    (ids,) = rows_of(1, length)
    for _ in range(2):
        session.run(None, {"input_ids": ids[None], "attention_mask": np.ones_like(ids)[None]})
    path = Path(session.end_profiling())
    kernels = [event for event in json.loads(path.read_text()) if event["name"].endswith("_kernel_time")]
    path.unlink()
    second = kernels[len(kernels) // 2 :]
    return sum(event["dur"] for event in second if _is_square(event["args"], length)) / sum(e["dur"] for e in second)


def _is_square(kernel: Mapping[str, Any], length: int) -> bool:
    """Attention itself, and what gives an array [batch, heads, length, length]; products with distances do not."""
    shapes = [shape for output in kernel["output_type_shape"] for shape in output.values()]
    squares = (len(shape) == 4 and shape[-2:] == [length, length] for shape in shapes)
    return kernel["op_name"] == "Attention" or (kernel["op_name"] != "MatMul" and any(squares))


def opened(kind: str, folder: Path, layers: int) -> tuple[dict[str, Bundle], dict[str, Run]]:
    """Bundles by precision, runs by "engine precision"; the one that engine="auto" takes is marked."""
    write = full_size.llama_1b if kind == LLAMA else full_size.pairrm_layers
    checkpoint = open_checkpoint(write(folder / kind, layers))
    bundles: dict[str, Bundle] = {}
    runs: dict[str, Run] = {}
    for precision in PRECISIONS:
        path = export_checkpoint(
            checkpoint, folder / f"{kind} {precision}", precision=precision, quantisation=CALIBRATION
        )
        bundles[precision] = open_bundle(path)
        for name in ENGINES:
            mark = " (auto)" if name == chosen_engine(bundles[precision]) else ""
            engine = open_engine(bundles[precision], name, threads=1)
            budget = default_batch_tokens(bundles[precision], "cpu")
            runs[f"{name} {precision}{mark}"] = partial(run_rows, engine, pad_token_id=0, batch_tokens=budget)
    return bundles, runs


def table(title: str, found: Mapping[str, Mapping[int, float]], format_: str) -> str:
    """Markdown, a column a case."""
    cases = list(next(iter(found.values())))
    lines = [f"| {title} | {' | '.join(f'{case:,}' for case in cases)} |", f"|---|{'---|' * len(cases)}"]
    for name, values in found.items():
        lines.append(f"| {name} | {' | '.join(format(value, format_) for value in values.values())} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--backbones", default=f"{LLAMA},{PAIRRM}")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--svg", type=Path, default=Path(__file__).parent / "results" / "linearity.svg")
    arguments = parser.parse_args()
    flags = sorted(cpu_flags() & {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"})
    figures: dict[str, Any] = {"machine": platform.platform(), "flags": flags, "layers": arguments.layers}
    panels = []
    print(f"one thread, {' '.join(flags)}; tokens per second of CPU time, {arguments.layers} layers\n", flush=True)
    for kind in arguments.backbones.split(","):
        with tempfile.TemporaryDirectory() as folder:
            bundles, runs = opened(kind, Path(folder), arguments.layers)
            lengths = [length for length in LENGTHS if kind == LLAMA or length <= LONGEST_PAIR]
            sweeps = {
                f"conversations of {LENGTH} ids": {number: rows_of(number, LENGTH) for number in NUMBERS},
                "ids of one conversation": {length: rows_of(1, length) for length in lengths},
            }
            for axis, cases in sweeps.items():
                found = rates(runs, cases, arguments.rounds)
                figures[f"{kind}, {axis}"] = found
                lines = {name: list(values.items()) for name, values in found.items()}
                panels.append(line_chart.Panel(f"{kind}, {arguments.layers} layers: tokens per second", axis, lines))
                print(table(f"{kind}, {axis}", found, ",.0f"), flush=True)
            runs.clear()
            shares = {
                f"onnxruntime {precision}": {length: square_share(bundle, length) for length in lengths}
                for precision, bundle in bundles.items()
            }
            figures[f"{kind}, share of the square"] = shares
            print(table(f"{kind}, share of the time that grows with the square", shares, ".0%"), flush=True)
    arguments.svg.parent.mkdir(exist_ok=True)
    arguments.svg.write_text(line_chart.svg(panels))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
