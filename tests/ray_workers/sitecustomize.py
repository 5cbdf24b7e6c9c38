"""Python runs this at its start in the workers of the tests' Ray cluster: an answer may say what befalls its worker.

"dies" kills each worker that answers it; "dies once PATH" the first that does; "waits for PATH" until it is there.
"""

import os
import re
import signal
import time
from pathlib import Path

import rm_runtime.jsonl

answer_chunk = rm_runtime.jsonl.answer_chunk


def befallen(model, chunk):
    for what, path in re.findall(r"(dies once|dies|waits for)(?: (/[\w/.-]+))?", repr(chunk)):
        if what == "waits for":
            while not Path(path).exists():
                time.sleep(0.01)
        elif not path or not Path(path).exists():
            if path:
                Path(path).touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return answer_chunk(model, chunk)


rm_runtime.jsonl.answer_chunk = befallen
