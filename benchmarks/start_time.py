"""What a fresh process pays: `python benchmarks/start_time.py BUNDLE`.

Import of rm_runtime, and import + load + first score, each in new processes (median of 7), and the modules that
import brings in although it must not.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

IMPORT = "import rm_runtime"
FIRST_SCORE = """
import sys, rm_runtime
chat = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]
rm_runtime.load(sys.argv[1]).score([chat])
"""
HEAVY = ("torch", "transformers", "onnx", "onnxscript", "fastapi", "onnxruntime")


def seconds(*arguments: str) -> float:
    """Median wall time of a Python process with these arguments."""
    times = []
    for _ in range(7):
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    bare = seconds("-c", "pass")
    print(f"bare interpreter           {bare:.2f} s")
    print(f"import rm_runtime          {seconds('-c', IMPORT):.2f} s")
    print(f"import, load, first score  {seconds('-c', FIRST_SCORE, sys.argv[1]):.2f} s")
    loaded = subprocess.run(
        [sys.executable, "-c", f"import sys, rm_runtime; print(*[m for m in {HEAVY!r} if m in sys.modules])"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    print(f"heavy modules imported     {', '.join(loaded) or 'none'}")


if __name__ == "__main__":
    main()
