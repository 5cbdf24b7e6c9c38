"""A real tritonserver over repositories of rm-export triton: what it answers is what the runtime itself answers."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

import checkpoints
from conversations import conversations
from rm_export.checkpoint import open_checkpoint
from rm_export.demo import write_demo
from rm_export.exporter import export_checkpoint
from rm_export.triton.options import TritonOptions
from rm_export.triton.repository import write_repository
from rm_runtime import EngineError, load
from rm_runtime.bench.measure import BenchSettings, bench
from rm_runtime.bench.report_schema import report_fault
from rm_runtime.prompts import ChatPrompter, Prompt
from rm_runtime.triton.lengths import bucket_length
from served import PATIENCE, Reply, eventually
from triton_graph import run_graph_in_python
from tritonserver import TritonServer, launched, tritonserver, until

CHATS = [*conversations(10, seed=5, system=False), *conversations(2, seed=6, system=True)]
QUESTION = [{"role": "user", "content": "Which is a prime number?"}]
ANSWERS = ["7 is", "9 is", "Nobody knows.", "7 is"]
TOLERANCE = 1e-5
"""Of the scores' standard deviation: other batches round otherwise."""
CLIENTS: dict[str, Any] = {"REST": tritonclient.http, "gRPC": tritonclient.grpc}
ALONE = TritonOptions(backend="python", engine="onnxruntime", threads=1)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    write_demo(folder / "armo-demo")
    made: dict[str, Path] = {"armo": folder / "armo-demo"}
    makers: dict[str, Callable[[Path], Path]] = {"pm": checkpoints.pair_pm, "pairrm": checkpoints.pairrm}
    made |= {name: make(folder / f"{name}-checkpoint") for name, make in makers.items()}
    return {name: export_checkpoint(open_checkpoint(at), folder / name) for name, at in made.items()}


@pytest.fixture(scope="module")
def models(bundles: dict[str, Path]) -> dict[str, Any]:
    return {name: load(path, engine="onnxruntime", threads=1) for name, path in bundles.items()}


@pytest.fixture(scope="module")
def server(
    bundles: dict[str, Path], triton_environment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """Every bundle with an engine of its own, and as a graph with models before it: split, split-pm, split-pairrm."""
    folder = tmp_path_factory.mktemp("repositories")
    for name, bundle in bundles.items():
        options = (
            replace(ALONE, priorities=2, queue_delay_us=100, queue_size=99, queue_timeout_us=10**8)
            if name == "pairrm"
            else ALONE
        )
        write_repository(bundle, folder / name, options)
    for name, family in (("split", "armo"), ("split-pm", "pm"), ("split-pairrm", "pairrm")):
        write_repository(bundles[family], folder / name, TritonOptions(name=name, graph_batch=4))
        run_graph_in_python(folder / name, name)
    others = [f"--model-repository={path}" for path in sorted(folder.iterdir())]
    with tritonserver(triton_environment, folder / "armo", *others[1:]) as running:
        yield running


def request_of(chat: Any) -> dict[str, Any]:
    return {"messages": chat}


def infer(server: TritonServer, model: str, *requests: Any) -> Reply:
    data = [request if isinstance(request, str) else json.dumps(request) for request in requests]
    tensor = {"name": "chats", "datatype": "BYTES", "shape": [len(data), 1], "data": data}
    return server.client.post(f"/v2/models/{model}/infer", {"inputs": [tensor]})


def outputs_of(reply: Reply) -> dict[str, Any]:
    assert reply.status == 200, reply.body
    return {output["name"]: output for output in reply.json["outputs"]}


def replies_of(reply: Reply) -> list[Any]:
    return [json.loads(text) for text in outputs_of(reply)["replies"]["data"]]


def counts(server: TritonServer, model: str) -> tuple[int, int]:
    """Chats answered and batches run since the server began."""
    (of_model,) = server.client.get(f"/v2/models/{model}/stats").json["model_stats"]
    return of_model["inference_count"], of_model["execution_count"]


def batches_of(server: TritonServer, model: str, before: tuple[int, int], chats: int) -> int:
    """Batches in which so many chats were run since then; Triton counts a batch a moment after it has answered."""
    eventually(lambda: counts(server, model)[0] - before[0] >= chats)
    assert counts(server, model)[0] - before[0] == chats
    return counts(server, model)[1] - before[1]


@pytest.mark.parametrize("protocol", CLIENTS)
@pytest.mark.parametrize("model", ["armo", "split"])
def test_scores_and_replies_are_the_runtimes_own_over_both_protocols(
    server: TritonServer, models: dict[str, Any], protocol: str, model: str
) -> None:
    library = CLIENTS[protocol]
    port = server.client.port if protocol == "REST" else server.grpc_port
    client = library.InferenceServerClient(f"127.0.0.1:{port}")
    assert client.is_server_ready()
    assert client.is_model_ready(model)
    chats = library.InferInput("chats", [len(CHATS), 1], "BYTES")
    chats.set_data_from_numpy(np.array([[json.dumps(request_of(chat))] for chat in CHATS], np.object_))
    inferred = client.infer(model, [chats])
    client.close()
    expected = models["armo"].score(CHATS)
    scores = [score.score for score in expected]
    assert inferred.as_numpy("score").shape == (len(CHATS), 1)
    np.testing.assert_allclose(inferred.as_numpy("score")[:, 0], scores, atol=TOLERANCE * float(np.std(scores)))
    for text, score in zip(inferred.as_numpy("replies")[:, 0], expected, strict=True):
        reply = json.loads(text)
        assert list(reply) == list(score.as_json())
        np.testing.assert_allclose(reply["gating"], list(score.gating.values()), atol=TOLERANCE)


@pytest.mark.parametrize(("model", "bundle"), [("armo", "armo"), ("split", "armo"), ("pm", "pm"), ("split-pm", "pm")])
def test_answers_are_ranked_as_the_runtime_ranks_them(
    server: TritonServer, models: dict[str, Any], model: str, bundle: str
) -> None:
    (reply,) = replies_of(infer(server, model, {"messages": QUESTION, "responses": ANSWERS}))
    ranking = models[bundle].rank(QUESTION, ANSWERS)
    assert reply["ranks"] == list(ranking.ranks)
    np.testing.assert_allclose(reply["scores"], ranking.scores, rtol=TOLERANCE)
    assert reply["scores"][0] == reply["scores"][3], "equal answers tie"


@pytest.mark.parametrize("model", ["pm", "split-pm"])
def test_two_answers_are_compared_in_both_orders(server: TritonServer, models: dict[str, Any], model: str) -> None:
    answered = infer(server, model, {"messages": QUESTION, "responses": ANSWERS[:2]})
    comparison = models["pm"].compare(QUESTION, *ANSWERS[:2])
    (reply,) = replies_of(answered)
    np.testing.assert_allclose(reply["probability"], comparison.probability, rtol=TOLERANCE)
    np.testing.assert_allclose(reply["order_probabilities"], comparison.order_probabilities, rtol=TOLERANCE)
    assert "score" not in outputs_of(answered)


@pytest.mark.parametrize("model", ["pairrm", "split-pairrm"])
def test_pairrm_takes_its_own_form_too(server: TritonServer, models: dict[str, Any], model: str) -> None:
    (reply,) = replies_of(infer(server, model, {"input": "Say hello", "candidates": ANSWERS[:3]}))
    (scores,) = models["pairrm"].rank(["Say hello"], [ANSWERS[:3]], return_scores=True)
    np.testing.assert_allclose(reply["scores"], scores, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_ensemble_gives_the_graphs_outputs_from_chats(server: TritonServer, models: dict[str, Any]) -> None:
    outputs = outputs_of(infer(server, "split_ensemble", *map(request_of, CHATS[:4])))
    expected = models["armo"].score(CHATS[:4])
    scores = [score.score for score in expected]
    assert set(outputs) == {"score", "rewards", "gating", "coefficients"}
    assert outputs["rewards"]["shape"] == [4, 19]
    np.testing.assert_allclose(outputs["score"]["data"], scores, atol=TOLERANCE * float(np.std(scores)))
    rewards = np.reshape(outputs["rewards"]["data"], (4, 19))
    np.testing.assert_allclose(rewards, [list(score.rewards.values()) for score in expected], atol=TOLERANCE)


def test_the_ensembles_tokenizer_gives_the_ids_of_the_prompt(server: TritonServer, models: dict[str, Any]) -> None:
    bundle = models["armo"].bundle
    spec, pad = bundle.manifest.prompt, bundle.manifest.pad_token_id
    prompts = ChatPrompter(spec, bundle.tokenizer()).encode(CHATS[:4])
    outputs = outputs_of(infer(server, "split_tokenizer", *map(request_of, CHATS[:4])))
    ids = np.reshape(outputs["input_ids"]["data"], outputs["input_ids"]["shape"])
    mask = np.reshape(outputs["attention_mask"]["data"], outputs["attention_mask"]["shape"])
    lengths = []
    for row, of_row, prompt in zip(ids, mask, prompts, strict=True):
        assert isinstance(prompt, Prompt)
        lengths.append(len(prompt.ids))
        assert row[: lengths[-1]].tolist() == prompt.ids.tolist()
        assert set(row[lengths[-1] :]) <= {pad}
        assert of_row.tolist() == [1] * lengths[-1] + [0] * (len(row) - lengths[-1])
    assert ids.shape[1] == bucket_length(max(lengths), spec.max_length)


def test_concurrent_clients_are_answered_in_common_batches(server: TritonServer, models: dict[str, Any]) -> None:
    requests = [CHATS[place % len(CHATS)] for place in range(48)]
    before = counts(server, "armo")
    with ThreadPoolExecutor(12) as clients:
        answered = list(clients.map(lambda chat: infer(server, "armo", request_of(chat)), requests))
    expected = [score.score for score in models["armo"].score(requests)]
    given = [outputs_of(reply)["score"]["data"][0] for reply in answered]
    np.testing.assert_allclose(given, expected, atol=TOLERANCE * float(np.std(expected)))
    assert batches_of(server, "armo", before, 48) < 48


def test_rows_of_one_bucket_are_joined_before_the_graph(server: TritonServer) -> None:
    rows = [request_of([*QUESTION, {"role": "assistant", "content": answer}]) for answer in ("a", "b b", "c c c")]
    before = counts(server, "split_graph")
    with ThreadPoolExecutor(12) as clients:
        answered = list(clients.map(lambda place: infer(server, "split_ensemble", rows[place % 3]), range(48)))
    assert {reply.status for reply in answered} == {200}
    assert batches_of(server, "split_graph", before, 48) < 48


@pytest.mark.parametrize("model", ["armo", "split", "split_ensemble"])
def test_a_bad_request_fails_alone_and_says_which_chat_and_why(
    server: TritonServer, models: dict[str, Any], model: str
) -> None:
    bad = ["not JSON", {"messages": []}, {"messages": "hi"}, {"prompt": "hi"}, {"messages": [{"role": "user"}]}]
    requests = [chat for one in bad for chat in (request_of(CHATS[0]), one)] * 2
    with ThreadPoolExecutor(len(requests)) as clients:
        answered = list(clients.map(lambda request: infer(server, model, request), requests))
    expected = models["armo"].score(CHATS[:1])[0].score
    for reply in answered[::2]:
        assert outputs_of(reply)["score"]["data"] == [pytest.approx(expected, abs=1e-5)]
    for reply in answered[1::2]:
        assert reply.status == 400
        assert "row 0: " in reply.json["error"]
    many = infer(server, model, request_of(CHATS[0]), "not JSON", request_of(CHATS[1]))
    assert "1 of 3 rows could not be scored: row 1: not JSON" in many.json["error"]


def test_the_words_of_a_refusal_are_the_runtimes(server: TritonServer) -> None:
    alone = infer(server, "pm", request_of(CHATS[0]))
    assert (alone.status, "compares answers" in alone.json["error"]) == (400, True)
    responses = infer(server, "split_ensemble", {"messages": QUESTION, "responses": ANSWERS})
    assert (responses.status, "one conversation a chat" in responses.json["error"]) == (400, True)
    huge = infer(server, "armo", {"messages": QUESTION, "responses": ["x"] * 2000})
    assert (huge.status, "2000 prompts, 1024 is the limit" in huge.json["error"]) == (400, True)


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        ({"name": "chats", "datatype": "INT64", "shape": [1, 1], "data": [1]}, "INT64"),
        ({"name": "chats", "datatype": "BYTES", "shape": [1], "data": ["{}"]}, "unexpected shape"),
        ({"name": "chats", "datatype": "BYTES", "shape": [129, 1], "data": ["{}"] * 129}, "batch-size must be <= 128"),
        ({"name": "texts", "datatype": "BYTES", "shape": [1, 1], "data": ["{}"]}, "texts"),
    ],
)
def test_tensors_that_do_not_fit_the_configuration_are_refused(
    server: TritonServer, tensor: dict[str, Any], reason: str
) -> None:
    refused = server.client.post("/v2/models/armo/infer", {"inputs": [tensor]})
    assert (refused.status, reason in refused.json["error"]) == (400, True)


def test_only_outputs_that_are_asked_for_are_sent(server: TritonServer) -> None:
    client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.client.port}")
    chats = tritonclient.http.InferInput("chats", [1, 1], "BYTES")
    chats.set_data_from_numpy(np.array([[json.dumps(request_of(CHATS[0]))]], np.object_))
    inferred = client.infer("armo", [chats], outputs=[tritonclient.http.InferRequestedOutput("score")])
    assert [output["name"] for output in inferred.get_response()["outputs"]] == ["score"]
    chats.set_data_from_numpy(np.array([["[]"]], np.object_))
    with pytest.raises(InferenceServerException, match="a request is a JSON object"):
        client.infer("armo", [chats])
    client.close()


def damage_weights(model: Path) -> None:
    weights = model / "1" / "bundle" / "model.onnx.data"
    content = bytearray(weights.read_bytes())
    content[1000] ^= 1
    weights.unlink()  # it is the bundle's own file
    weights.write_bytes(content)


def spoil_warm_up(model: Path) -> None:
    (model / "warmup" / "chats").write_bytes(b"\x02\0\0\0{}")


def test_bench_drives_triton_as_it_drives_our_own_server(server: TritonServer) -> None:
    address = f"http://127.0.0.1:{server.client.port}"
    with pytest.raises(EngineError, match=r"several models that answer chats: --model armo \| pairrm \| pm \| split"):
        bench(None, BenchSettings(urls=(address,)))
    settings = BenchSettings(urls=(address,), model="split", queries=4, warmup=0, rounds=1, rate=20.0)
    report = bench(None, settings)
    assert report_fault(report) is None
    (measured,) = report["contenders"]
    assert measured["versions"] == {"triton": "2.51.0"}
    assert measured["server"]["goodput"] > 0


@pytest.mark.parametrize(
    ("spoil", "reason"), [(damage_weights, "does not match its sha256"), (spoil_warm_up, "a request needs")]
)
def test_a_server_is_never_ready_with_a_model_that_was_not_checked_and_warmed_up(
    bundles: dict[str, Path],
    triton_environment: Path,
    tmp_path: Path,
    spoil: Callable[[Path], None],
    reason: str,
) -> None:
    write_repository(bundles["armo"], tmp_path / "repository", replace(ALONE, name="rm"))
    spoil(tmp_path / "repository" / "rm")
    with launched(triton_environment, tmp_path / "repository") as server:
        with pytest.raises(pytest.fail.Exception, match="tritonserver is not ready"):
            until(server, "ready")
        eventually(lambda: server.process.poll() is not None)
    told = any(reason in line for line in server.log)
    crashed = server.process.returncode == -signal.SIGSEGV  # as this release may, before or after it has told why
    assert crashed or (told and server.process.returncode == 1), (server.process.returncode, server.log[-12:])


def test_nothing_of_a_server_is_left_when_it_was_stopped(
    bundles: dict[str, Path], triton_environment: Path, tmp_path: Path
) -> None:
    write_repository(bundles["armo"], tmp_path / "repository", ALONE)
    with tritonserver(triton_environment, tmp_path / "repository") as server:
        server.process.terminate()
        server.process.wait(PATIENCE)
    assert server.process.returncode == 0
