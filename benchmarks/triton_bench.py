"""The demo bundle in the local engine, behind `rm-runtime serve` and behind Triton's Python backend.

    python benchmarks/triton_bench.py [--bundle BUNDLE] [--queries N] [--queue-size N] [--json F.json]

Installs a tritonserver (the nvidia-pytriton wheel) into --environment first. One engine thread each, servers and their
clients on this machine: what is measured is what a server costs, not what a larger machine would give.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "tests"))  # where servers are started and stopped

from rm_export.checkpoint import open_checkpoint
from rm_export.demo import write_demo
from rm_export.exporter import export_checkpoint
from rm_export.triton.options import TritonOptions
from rm_export.triton.repository import write_repository
from rm_runtime.bench.endpoint_contender import EndpointContender, EndpointSpec
from rm_runtime.bench.measure import BenchSettings, bench
from rm_runtime.bench.rows import rows_of
from rm_runtime.bench.table import report_lines
from rm_runtime.bundle import open_bundle
from served import served_process
from tritonserver import install, tritonserver

IN_A_ROW = 500
LATE_SECONDS = 0.4
"""No row of the demo takes that long; a queue that forgot a request does."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="default: the demo")
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1, help="of Triton's engine")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--queue-size", type=int, help="of Triton; default: no queue policy")
    parser.add_argument("--environment", type=Path, default=Path(tempfile.gettempdir()) / "rm-export-tritonserver")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the servers stop too
    if reason := install(arguments.environment):
        sys.exit(reason)
    with tempfile.TemporaryDirectory() as folder:
        bundle = arguments.bundle or _demo(Path(folder))
        options = TritonOptions(
            name="rm",
            backend="python",
            engine="onnxruntime",
            threads=arguments.threads,
            queue_size=arguments.queue_size,
        )
        write_repository(bundle, Path(folder) / "repository", options)
        with (
            served_process(f"rm={bundle}", "--engine", "onnxruntime") as (_, client, _),
            tritonserver(arguments.environment, Path(folder) / "repository") as triton,
        ):
            names = {
                f"http://127.0.0.1:{client.port}": "rm-runtime serve",
                f"http://127.0.0.1:{triton.client.port}": "Triton, python",
            }
            settings = BenchSettings(
                ("onnxruntime",),
                queries=arguments.queries,
                rounds=arguments.rounds,
                p99_ms=500.0,
                threads=1,
                urls=tuple(names),
            )
            report = bench(bundle, settings, on_step=lambda step: print(step, "...", file=sys.stderr))
            requests = rows_of(open_bundle(bundle), arguments.queries, settings.seed).requests
            late = {name: _late(url, requests) for url, name in names.items()}
    for contender in report["contenders"]:
        contender["name"] = names.get(contender["name"], contender["name"])
    print("\n".join(report_lines(report)))
    for name, count in late.items():
        print(f"{name}: {count} of {IN_A_ROW} rows one after the other took over {1000 * LATE_SECONDS:g} ms")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _late(url: str, requests: Sequence[str]) -> int:
    """Of rows that one client sends as soon as it has the answer before."""
    contender = EndpointContender(EndpointSpec(url, None, 1), requests)
    seconds = [contender.run([place % len(requests)]) for place in range(IN_A_ROW)]
    contender.stop()
    return sum(each > LATE_SECONDS for each in seconds)


def _demo(folder: Path) -> Path:
    write_demo(folder / "checkpoint")
    return export_checkpoint(open_checkpoint(folder / "checkpoint"), folder / "bundle")


if __name__ == "__main__":
    main()
