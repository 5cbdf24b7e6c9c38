"""The bodies that clients of other servers send, and the answers that they read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fake_models import answer_of, pair_pm, pointwise
from rm_runtime.families.pair_pm import sigmoid
from served import Client, serving

QUESTION = [{"role": "user", "content": "How many?"}]
MODEL = pointwise(lambda rendered: {"score": float(answer_of(rendered))})
PAIRWISE = pair_pm(lambda a, b: (float(a), float(b)))


def chat(answer: str) -> list[dict[str, str]]:
    return [*QUESTION, {"role": "assistant", "content": answer}]


def rendered(answer: str) -> str:
    """What a trainer sends: the conversation, rendered."""
    (prompt,) = MODEL._prompter.encode([chat(answer)])
    assert not isinstance(prompt, Exception)
    return prompt.text


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with serving({"rm": MODEL, "pm": PAIRWISE}) as running:
        yield running


def test_score_rank_and_compare_give_what_the_model_gives(client: Client) -> None:
    assert client.post("/v1/score", {"messages": chat("5")}).json == MODEL.score([chat("5")])[0].as_json()
    ranking = MODEL.rank(QUESTION, ["1", "3", "2"]).as_json()
    assert client.post("/v1/rank", {"messages": QUESTION, "responses": ["1", "3", "2"]}).json == ranking
    assert client.post("/v1/rank", {"messages": chat("5")}).status == 422
    pair = {"model": "pm", "messages": QUESTION, "responses": ["1", "3"]}
    direct = PAIRWISE.compare(QUESTION, "1", "3")
    assert client.post("/v1/compare", pair).json == {
        "ranks": [2, 1],
        "scores": [direct.probability, 1 - direct.probability],
        **direct.as_json(),
    }
    assert client.post("/v1/compare", {**pair, "responses": ["1", "2", "3"]}).status == 422


def test_a_tournament_asks_in_rounds_and_ranks_as_the_model_does(client: Client) -> None:
    answers = ["3", "1", "5", "2", "4"]
    direct = PAIRWISE.rank(QUESTION, answers).as_json()
    assert client.post("/v1/rank", {"model": "pm", "messages": QUESTION, "responses": answers}).json == direct


def test_details_are_added_where_they_are_asked_for(client: Client) -> None:
    asked = {"messages": QUESTION, "responses": ["1", "3", "2000"]}
    plain = client.post("/v1/rank", asked).json
    detailed = client.post("/v1/rank", {**asked, "details": True}).json
    scores = MODEL.score([chat(answer) for answer in asked["responses"]])
    assert detailed == {**plain, "answers": [{"score": one.score, "tokens": one.tokens} for one in scores]}
    two = {"requests": [{"messages": chat("1")}, {}], "details": True, "errors": "return"}
    first, second = client.post("/v1/score", two).json["replies"]
    assert first == {"score": 1.0, "tokens": scores[0].tokens}
    assert "error" in second
    (preferences,) = PAIRWISE.preferences_many([(QUESTION, asked["responses"])])
    assert client.post("/v1/rank", {**asked, "model": "pm", "details": True}).json == preferences.as_json()
    assert client.post("/v1/rank", {**asked, "details": "yes"}).status == 422


def test_models_are_listed_with_what_a_client_must_know_of_them(client: Client) -> None:
    listed = client.get("/v1/models").json["data"]
    assert listed[0] == {"id": "rm", "object": "model", "family": "scalar", "max_length": 4096}
    assert [one["family"] for one in listed] == ["scalar", "pair-pm"]


def test_every_answer_says_how_long_it_took(client: Client) -> None:
    timing = client.post("/v1/score", {"messages": chat("1")}).headers["server-timing"]
    assert float(timing.removeprefix("total;dur=")) > 0


def test_rerank_sorts_texts_as_text_embeddings_inference_does(client: Client) -> None:
    body = {"query": "How many?", "texts": ["1", "3", "2"], "raw_scores": True}
    ranked = [{"index": 1, "score": 3.0}, {"index": 2, "score": 2.0}, {"index": 0, "score": 1.0}]
    assert client.post("/rerank", body).json == ranked
    scaled = client.post("/rerank", {**body, "raw_scores": False, "return_text": True}).json
    assert scaled[0] == {"index": 1, "score": sigmoid(3.0), "text": "3"}


def test_predict_takes_a_text_a_pair_and_a_batch(client: Client) -> None:
    for inputs in (rendered("4"), [rendered("4")], ["How many?", "4"]):
        assert client.post("/predict", {"inputs": inputs, "raw_scores": True}).json == [
            {"score": 4.0, "label": "LABEL_0"}
        ]
    batch = client.post("/predict", {"inputs": [["How many?", "1"], [rendered("2")]], "raw_scores": True}).json
    assert batch == [[{"score": 1.0, "label": "LABEL_0"}], [{"score": 2.0, "label": "LABEL_0"}]]
    assert client.post("/predict", {"inputs": ["How many?", "2"]}).json[0]["score"] == sigmoid(2.0)


def test_predict_names_the_inputs_that_cannot_be_scored(client: Client) -> None:
    refused = client.post("/predict", {"inputs": [["How many?", "1"], ["How many?", "NaN"], ["not rendered"]]})
    assert refused.status == 422
    assert [row["row"] for row in refused.json["rows"]] == [1, 2]


def test_truncate_false_refuses_a_prompt_that_is_too_long(client: Client) -> None:
    long = {"query": "How many? " * 4000, "texts": ["1"], "raw_scores": True}
    refused = client.post("/rerank", {**long, "truncate": False})
    assert (refused.status, "the limit is 4096" in refused.json["error"]) == (422, True)


def test_classify_answers_as_vllm_does(client: Client) -> None:
    answered = client.post("/classify", {"model": "rm", "input": [rendered("1"), rendered("2")]}).json
    assert answered["object"] == "list"
    assert answered["model"] == "rm"
    assert [entry["probs"] for entry in answered["data"]] == [[sigmoid(1.0)], [sigmoid(2.0)]]
    assert [(entry["index"], entry["num_classes"]) for entry in answered["data"]] == [(0, 1), (1, 1)]
    assert answered["usage"]["prompt_tokens"] == sum(score.tokens for score in MODEL.score([chat("1"), chat("2")]))
    messages = client.post("/classify", {"messages": chat("3"), "use_activation": False}).json
    assert messages["data"][0]["probs"] == [3.0]


def test_get_reward_answers_as_openrlhf_reads(client: Client) -> None:
    queries = [rendered("1"), rendered("-2")]
    answered = client.post("/get_reward", {"query": queries, "prompts": ["a", "b"], "labels": [None, None]})
    assert answered.json == {"rewards": [1.0, -2.0], "scores": [1.0, -2.0]}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/get_reward", {"query": ["x"]}),
        ("/classify", {"input": "x"}),
        ("/predict", {"inputs": ["a", "b"]}),
        ("/v1/score", {"messages": chat("1")}),
    ],
)
def test_a_model_that_compares_refuses_to_score_one_answer(client: Client, path: str, body: dict[str, Any]) -> None:
    refused = client.post(path, {"model": "pm", **body})
    assert (refused.status, "compares answers" in refused.json["error"]) == (422, True)


def test_kserve_metadata_names_inputs_and_outputs(client: Client) -> None:
    assert client.get("/v2").json["name"] == "rm-runtime"
    metadata = client.get("/v2/models/rm").json
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["chats", "input_ids", "attention_mask"]
    assert {"name": "score", "datatype": "FP32", "shape": [-1]} in metadata["outputs"]
    assert client.get("/v2/models/rm/ready").status == 200
    assert client.get("/v2/models/other").status == 404


def chats(*requests: Any) -> dict[str, Any]:
    data = [json.dumps(request) for request in requests]
    return {"inputs": [{"name": "chats", "datatype": "BYTES", "shape": [len(data)], "data": data}]}


def test_kserve_infers_chats(client: Client) -> None:
    answered = client.post(
        "/v2/models/rm/infer", {**chats({"messages": chat("1")}, {"messages": chat("2")}), "id": "7"}
    )
    assert answered.json["id"] == "7"
    assert answered.json["model_name"] == "rm"
    replies, score = answered.json["outputs"]
    assert [json.loads(reply) for reply in replies["data"]] == [{"score": 1.0}, {"score": 2.0}]
    assert score == {"name": "score", "datatype": "FP32", "shape": [2], "data": [1.0, 2.0]}
    one = {**chats({"messages": chat("1")}), "outputs": [{"name": "score"}]}
    assert [output["name"] for output in client.post("/v2/models/rm/infer", one).json["outputs"]] == ["score"]


def test_kserve_takes_chats_in_tritons_shape_too(client: Client) -> None:
    body = chats({"messages": chat("1")}, {"messages": chat("2")})
    body["inputs"][0]["shape"] = [2, 1]
    replies, score = client.post("/v2/models/rm/infer", body).json["outputs"]
    assert score == {"name": "score", "datatype": "FP32", "shape": [2, 1], "data": [1.0, 2.0]}
    assert replies["shape"] == [2, 1]
    body["inputs"][0]["shape"] = [1, 2]
    assert client.post("/v2/models/rm/infer", body).status == 422


def test_kserve_names_the_chats_that_cannot_be_scored(client: Client) -> None:
    body = chats({"messages": chat("1")}, {"messages": []})
    body["inputs"][0]["data"] += ["not JSON", "\ud800"]
    body["inputs"][0]["shape"] = [4]
    refused = client.post("/v2/models/rm/infer", body)
    assert refused.status == 422
    assert [row["row"] for row in refused.json["rows"]] == [1, 2, 3]


def tensor(name: str, rows: list[list[int]]) -> dict[str, Any]:
    return {"name": name, "datatype": "INT64", "shape": [len(rows), len(rows[0])], "data": rows}


def test_kserve_infers_token_ids_with_their_padding(client: Client) -> None:
    prompts = MODEL._prompter.encode([chat("1"), chat("2000")])
    ids = [prompt.ids.tolist() for prompt in prompts if not isinstance(prompt, Exception)]
    width = max(map(len, ids))
    inputs = [
        tensor("input_ids", [[*row, *[0] * (width - len(row))] for row in ids]),
        tensor("attention_mask", [[1] * len(row) + [0] * (width - len(row)) for row in ids]),
    ]
    (score,) = client.post("/v2/models/rm/infer", {"inputs": inputs}).json["outputs"]
    assert score == {"name": "score", "datatype": "FP32", "shape": [2], "data": [1.0, 2000.0]}


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ([tensor("input_ids", [[10**6]])], "the tokenizer has not"),
        ([tensor("input_ids", [[-1]])], "the tokenizer has not"),
        ([tensor("input_ids", [[1] * 5000])], "more than 4096"),
        ([tensor("input_ids", [[1, 2]]), tensor("attention_mask", [[0, 1]])], "padded on the right"),
        ([tensor("input_ids", [[1, 2]]), tensor("attention_mask", [[0, 0]])], "no token"),
        ([tensor("input_ids", [[1, 2]]), tensor("attention_mask", [[1]])], "shape of input_ids"),
        ([{**tensor("input_ids", [[1, 2]]), "shape": [3, 2]}], "needs 6"),
        ([{**tensor("input_ids", [[1, 2]]), "shape": [-1, -2]}], "one or two sizes"),
        ([{**tensor("input_ids", [[1, 2]]), "shape": [0, 2**62], "data": []}], "one or two sizes"),
        ([{**tensor("input_ids", [[1, 2]]), "shape": [10**4000, 10**4000]}], "one or two sizes"),
        ([{**tensor("input_ids", [[1, 2]]), "shape": [2]}], "must have 2 dimensions"),
        ([{**tensor("input_ids", [[1]]), "data": ["x"]}], "no INT64"),
        ([tensor("input_ids", [[2**63]])], "more than 64 bits"),
        ([{**tensor("input_ids", [[1]]), "datatype": "BYTES", "data": ["x"]}], "must be INT64"),
        ([{**tensor("input_ids", [[1]]), "parameters": {"shared_memory_region": "x"}}], "does not support"),
        ([{**tensor("input_ids", [[1]]), "datatype": "FP32"}], "must be INT64"),
        ([tensor("pixels", [[1]])], "send chats"),
        ([tensor("input_ids", [[1]])] * 2, "there twice"),
        ([{**tensor("input_ids", [[1]]), "data": 1}], "must be an array"),
        ([{**tensor("input_ids", [[1]]), "shape": [0, 1], "data": []}], "no row"),
    ],
)
def test_kserve_refuses_ids_that_would_break_the_engine(client: Client, inputs: list[Any], reason: str) -> None:
    refused = client.post("/v2/models/rm/infer", {"inputs": inputs})
    assert refused.status == 422
    assert reason in refused.json["error"]


def test_tritonclient_reads_metadata_and_infers_chats_and_ids(client: Client) -> None:
    from tritonclient.http import InferenceServerClient, InferInput

    triton = InferenceServerClient(f"127.0.0.1:{client.port}")
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("rm")
    assert not triton.is_model_ready("other")
    assert triton.get_model_metadata("rm")["name"] == "rm"
    for binary in (True, False):
        requests = np.array([json.dumps({"messages": chat(answer)}) for answer in ("1", "2")], np.object_)
        texts = InferInput("chats", [2], "BYTES")
        texts.set_data_from_numpy(requests, binary_data=binary)
        inferred = triton.infer("rm", [texts])
        assert inferred.as_numpy("score").tolist() == [1.0, 2.0]
        assert [json.loads(reply) for reply in inferred.as_numpy("replies")] == [{"score": 1.0}, {"score": 2.0}]
        (prompt,) = MODEL._prompter.encode([chat("3")])
        assert not isinstance(prompt, Exception)
        ids = InferInput("input_ids", [1, len(prompt.ids)], "INT64")
        ids.set_data_from_numpy(prompt.ids[None], binary_data=binary)
        assert triton.infer("rm", [ids]).as_numpy("score").tolist() == [3.0]
    triton.close()


def test_tritonclient_gets_each_output_in_the_form_it_asks_for(client: Client) -> None:
    from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

    triton = InferenceServerClient(f"127.0.0.1:{client.port}")
    assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
    texts = InferInput("chats", [2], "BYTES")
    texts.set_data_from_numpy(
        np.array([json.dumps({"messages": chat(answer)}) for answer in ("1", "2.5")], np.object_), binary_data=True
    )
    for asked in (None, {"score": True}, {"score": False}, {"score": True, "replies": False}, {"replies": True}):
        wanted = asked and [InferRequestedOutput(name, binary_data=binary) for name, binary in asked.items()]
        inferred = triton.infer("rm", [texts], outputs=wanted)
        for name, binary in (asked or {"replies": True, "score": True}).items():
            output = inferred.get_output(name)
            assert ("data" in output, "binary_data_size" in output.get("parameters", {})) == (not binary, binary)
            values = inferred.as_numpy(name)
            if name == "score":
                assert (values.dtype, values.tolist()) == (np.float32, [1.0, 2.5])
            else:
                assert [json.loads(value) for value in values] == [{"score": 1.0}, {"score": 2.5}]
        assert len(inferred.get_response()["outputs"]) == len(asked or "ab")
    triton.close()


def test_an_element_that_is_not_utf8_is_an_error_of_its_row(client: Client) -> None:
    tail = b"\x02\0\0\0\xff{"
    head = json.dumps({"inputs": [BINARY]}).encode()
    refused = client.ask("POST", "/v2/models/rm/infer", head + tail, inference_header_content_length=str(len(head)))
    assert (refused.status, refused.json["rows"][0]["row"]) == (422, 0)
    assert "not UTF-8" in refused.json["error"]


BINARY = {"name": "chats", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}}


@pytest.mark.parametrize(
    ("header_length", "datatype", "tail", "reason"),
    [
        ("10000", "BYTES", b"\x02\0\0\0{}", "the body has"),
        ("x", "BYTES", b"\x02\0\0\0{}", "the body has"),
        (None, "BYTES", b"\x02\0\0\0{", "5 bytes are left"),
        (None, "BYTES", b"\x02\0\0\0{}{}", "2 bytes behind"),
        (None, "BYTES", b"\x03\0\0\0{}", "longer than its tensor"),
        (None, "INT64", b"\x02\0\0\0{}", "no tensor of INT64"),
        (None, "FP32", b"\x02\0\0\0{}", "must be INT64 or BYTES"),
    ],
)
def test_binary_tensors_that_do_not_fit_are_400(
    client: Client, header_length: str | None, datatype: str, tail: bytes, reason: str
) -> None:
    head = json.dumps({"inputs": [{**BINARY, "datatype": datatype}]}).encode()
    length = header_length or str(len(head))
    refused = client.ask("POST", "/v2/models/rm/infer", head + tail, inference_header_content_length=length)
    assert (refused.status, reason in refused.json["error"]) == (400, True)
