"""The same model behind several servers: `python benchmarks/serve_peers.py --openrlhf PYTHON --infinity INFINITY_EMB`.

Two layers of Llama-3.2-1B as a sequence classifier with random weights, in the hub layout that all of them load. Each
server is a process of its own on one core (taskset), the client is on the other; the same rendered chats, singles and
several at once, in a closed loop. What is compared:

- rm-runtime serve, fp32 and int8 (/get_reward);
- OpenRLHF 0.11.2: `python -m openrlhf.cli.serve_rm` (transformers and FastAPI, /get_reward), in bfloat16, the one type
  it has beside float16. flash_attn has no CPU build: an empty stub in its place, since only packing calls it;
- infinity_emb 0.0.78 (/rerank), torch, float32.

Environments, each of its own:

    python -m venv openrlhf
    openrlhf/bin/pip install torch transformers fastapi uvicorn aiohttp psutil pylatexenc sympy wheel
    openrlhf/bin/pip install --no-deps openrlhf==0.11.2 peft accelerate einops hjson py-cpuinfo msgpack ninja
    DS_BUILD_OPS=0 openrlhf/bin/pip install --no-deps --no-build-isolation deepspeed
    python -m venv infinity; infinity/bin/pip install 'infinity-emb[server,torch]==0.0.78'

text-embeddings-inference is a Rust program that PyPI does not have. A few minutes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import full_size
from engines import CALIBRATION
from http_load import Answered, closed_loop, post
from load_requests import LoadRequest, load_requests
from rm_export.exporter import export_checkpoint
from rm_export.hub import open_checkpoint_at
from rm_runtime.bench.machine import machine_facts
from rm_runtime.bench.statistics import percentile
from rm_runtime.bundle import open_bundle
from rm_runtime.prompt_spec import ChatPrompt
from rm_runtime.templates import render_chat
from server_process import free_port, rm_runtime_serve, started

LAYERS = 2
BEST_OF = (1, 1, 1, 2, 4)
REQUESTS, CLIENTS, ALONE = 24, 8, 6
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
SERVER_CORE = 0


@dataclass(frozen=True)
class Peer:
    """command: port -> what starts it. path, body: of a request for texts. scores: of its answer's JSON."""

    name: str
    command: Callable[[int], list[str]]
    path: str
    body: Callable[[list[str]], dict[str, Any]]
    scores: Callable[[Any], list[float]]


def peers(bundles: dict[str, Path], checkpoint: Path, openrlhf: Path | None, infinity: Path | None) -> Iterator[Peer]:
    """Those whose environments are there."""

    def ours(bundle: Path) -> Callable[[int], list[str]]:
        return lambda port: rm_runtime_serve(bundle, port, "--threads", "1")

    def query(texts: list[str]) -> dict[str, Any]:
        return {"query": texts, "prompts": texts}

    def rewards(reply: Any) -> list[float]:
        return list(reply["rewards"])

    for precision, bundle in bundles.items():
        yield Peer(f"rm-runtime serve, {precision}", ours(bundle), "/get_reward", query, rewards)
    if openrlhf:
        options = f"--reward.model_name_or_path {checkpoint} --ds.attn_implementation sdpa --host 127.0.0.1".split()
        yield Peer(
            "OpenRLHF serve_rm, bfloat16",
            lambda port: [str(openrlhf), "-m", "openrlhf.cli.serve_rm", *options, "--port", str(port)],
            "/get_reward",
            query,
            rewards,
        )
    if infinity:
        known = f"v2 --model-id {checkpoint} --served-model-name rm --engine torch --device cpu --dtype float32".split()
        quiet = ["--no-bettertransformer", "--no-model-warmup", "--host", "127.0.0.1", "--log-level", "warning"]
        yield Peer(
            "infinity_emb, float32",
            lambda port: [str(infinity), *known, *quiet, "--port", str(port)],
            "/rerank",
            _reranked,
            lambda reply: [one["relevance_score"] for one in sorted(reply["results"], key=lambda one: one["index"])],
        )


def _reranked(texts: list[str]) -> dict[str, Any]:
    """A model with one label only reranks there: the query is all up to the answer, which is the document."""
    split = [text.rpartition("<|end_header_id|>\n\n") for text in texts]
    query = "".join(split[0][:2])
    return {"model": "rm", "query": query, "documents": [answer for _, _, answer in split], "raw_scores": True}


def rendered(request: LoadRequest, spec: ChatPrompt) -> list[str]:
    """A text a chat, as a trainer renders it."""
    document = request.document
    answers = [[{"role": "assistant", "content": text}] for text in document.get("responses", [])] or [[]]
    return [render_chat(spec, [*document["messages"], *answer]) for answer in answers]


def measured(peer: Peer, texts: Sequence[list[str]]) -> dict[str, Any]:
    """Requests a second and latencies with CLIENTS clients, and of one alone; the scores of the first request."""
    posts = [post(peer.path, json.dumps(peer.body(of)).encode()) for of in texts]
    port = free_port()
    with started(peer.command(port), port, [SERVER_CORE], ONE_THREAD) as server:
        first = _all_answered(closed_loop(port, posts[:2], 1))  # warms it up
        cpu, began = server.usage().cpu_seconds, time.monotonic()
        busy = _all_answered(closed_loop(port, posts, CLIENTS))
        seconds, cpu = time.monotonic() - began, server.usage().cpu_seconds - cpu
        alone = _all_answered(closed_loop(port, posts[:ALONE], 1))
        peak = server.usage().peak_bytes
    latencies = [answer.seconds for answer in busy]
    return {
        "requests_per_second": len(busy) / seconds,
        "requests_per_cpu_second": len(busy) / cpu,
        "p50_seconds": median(latencies),
        "p99_seconds": percentile(latencies, 99),
        "alone_p50_seconds": median(answer.seconds for answer in alone),
        "peak_bytes": peak,
        "scores": peer.scores(json.loads(first[0].body)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--openrlhf", type=Path, help="the python of its environment")
    parser.add_argument("--infinity", type=Path, help="the infinity_emb of its environment")
    parser.add_argument("--only", default="", help="those whose names hold this")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"machine": machine_facts(), "peers": {}}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = full_size.llama_1b(Path(folder) / "checkpoint", LAYERS)
        opened = open_checkpoint_at(str(checkpoint), None)
        bundles = {
            precision: export_checkpoint(
                opened, Path(folder) / precision, precision=precision, quantisation=CALIBRATION
            )
            for precision in ("fp32", "int8")
        }
        bundle = open_bundle(bundles["fp32"])
        assert isinstance(bundle.manifest.prompt, ChatPrompt)
        requests = load_requests(bundle, REQUESTS, seed=5, best_of=BEST_OF)
        texts = [rendered(request, bundle.manifest.prompt) for request in requests]
        print(f"{figures['machine']}\n{len(texts)} requests, {sum(map(len, texts))} chats, {CLIENTS} clients\n")
        print("| server | requests/s | per CPU second | p50 | p99 | one alone, p50 | peak memory | first scores |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for peer in peers(bundles, checkpoint, arguments.openrlhf, arguments.infinity):
            if arguments.only not in peer.name:
                continue
            of = figures["peers"][peer.name] = measured(peer, texts)
            seconds = " | ".join(f"{of[key]:.2f} s" for key in ("p50_seconds", "p99_seconds", "alone_p50_seconds"))
            scores = ", ".join(f"{score:.3f}" for score in of["scores"])
            print(
                f"| {peer.name} | {of['requests_per_second']:.2f} | {of['requests_per_cpu_second']:.2f} | {seconds} | "
                f"{of['peak_bytes'] / 2**20:.0f} MiB | {scores} |",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def _all_answered(answers: Sequence[Answered]) -> Sequence[Answered]:
    wrong = [answer for answer in answers if answer.status != 200]
    if wrong:
        raise RuntimeError(
            f"{len(wrong)} of {len(answers)} failed, one with {wrong[0].status}: {wrong[0].body[:300]!r}"
        )
    return answers


if __name__ == "__main__":
    main()
