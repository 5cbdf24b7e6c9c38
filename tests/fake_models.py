"""Loaded models without weights: real prompts and tokenizers over an engine whose outputs a test decides."""

from __future__ import annotations

import hashlib
import re
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

import chat_templates
from prompt_cases import CASES, FOLDER, load_tokenizer
from rm_runtime.bundle import Bundle
from rm_runtime.families.pair_pm import PairPM
from rm_runtime.families.pointwise import PointwiseModel
from rm_runtime.manifest import FileRecord, Manifest, Source, TensorRecord
from rm_runtime.options import RequestOptions
from rm_runtime.prompt_spec import ChatPrompt, PairChatPrompt, PromptSpec
from served import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

PAD = 1293
"""[PAD] of the fixture Llama-3 tokenizer."""
CHAT = CASES["armorm: Llama-3, one BOS from the template"].limited(max_length=4096)
PAIR = PairChatPrompt(
    "{% for message in messages %}<turn> {{ message.content }}\n{% endfor %}",
    "[CONTEXT] {context} [RESPONSE A] {a} [RESPONSE B] {b} \n",
    ChatPrompt(
        chat_templates.LLAMA3_ALWAYS_HEADER,
        {"bos_token": "<|begin_of_text|>"},
        remove_bos_text=True,
        bos_token_id=1280,
        required_suffix=tuple(
            load_tokenizer("llama3")
            .encode("<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", add_special_tokens=False)
            .ids
        ),
    ),
)
_ANSWERS = re.compile(r"\[RESPONSE A\] (.*?) \[RESPONSE B\] (.*?)<\|eot_id\|>", re.DOTALL)


class FakeEngine:
    """Answers each row by itself: `outputs_of` maps a row's ids, without padding, to its outputs by name."""

    name = "fake"

    def __init__(self, outputs_of: Callable[[NDArray[np.int64]], Mapping[str, Any]]) -> None:
        self._outputs_of = outputs_of
        self.batches: list[int] = []

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        assert ids.dtype == mask.dtype == np.int64
        assert ids.shape == mask.shape
        assert (np.sort(mask, axis=1)[:, ::-1] == mask).all(), "rows are padded on the right"
        self.batches.append(len(ids))
        rows = [self._outputs_of(row[: count.sum()]) for row, count in zip(ids, mask, strict=True)]
        return {name: np.array([row[name] for row in rows], np.float32) for name in rows[0]}


def manifest(family: str, prompt: PromptSpec, **parameters: Any) -> Manifest:
    return Manifest(
        family=family,
        source=Source("tests/fake", None, "0" * 64),
        files={},
        graphs={"plain": "model.onnx"},
        inputs=tuple(TensorRecord(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask")),
        outputs=(TensorRecord("score", "float32", ("batch",)),),
        pooling="MASK-SUM",
        pad_token_id=PAD,
        prompt=prompt,
        precision="fp32",
        target="cpu",
        opset=23,
        parameters=parameters,
    )


def pointwise(
    outputs_of: Callable[[str], Mapping[str, Any]],
    model_class: type[PointwiseModel] = PointwiseModel,
    prompt: ChatPrompt = CHAT,
    **parameters: Any,
) -> PointwiseModel:
    """A pointwise model; `outputs_of` maps the rendered conversation to its outputs."""
    tokenizer = load_tokenizer("llama3")
    engine = FakeEngine(lambda ids: outputs_of(tokenizer.decode(ids.tolist(), skip_special_tokens=False)))
    bundle = Bundle(FOLDER / "llama3", manifest("scalar", prompt, **parameters))
    return model_class(bundle, engine, RequestOptions())


def answer_of(rendered: str) -> str:
    """The last message of a conversation rendered by CHAT."""
    return rendered.rpartition("<|end_header_id|>\n\n")[2].removesuffix("<|eot_id|>")


class Gate:
    """Scores an answer by the number in it, once opened; "NaN" has no score."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.entered = threading.Event()
        self.model = pointwise(self._outputs)

    def _outputs(self, rendered: str) -> dict[str, float]:
        self.entered.set()
        assert self.opened.wait(PATIENCE)
        return {"score": float(answer_of(rendered))}


def pair_pm(
    logits_of: Callable[[str, str], tuple[float, float]], prompt: PairChatPrompt = PAIR, **parameters: Any
) -> PairPM:
    """A pairwise model; `logits_of` maps the answers in the places A and B to (l_A, l_B)."""
    tokenizer = load_tokenizer("llama3")

    def outputs_of(ids: NDArray[np.int64]) -> Mapping[str, Any]:
        answers = _ANSWERS.search(tokenizer.decode(ids.tolist(), skip_special_tokens=False))
        assert answers, "a prompt holds two answers"
        return {"logits": logits_of(answers[1], answers[2])}

    bundle = Bundle(FOLDER / "llama3", manifest("pair-pm", prompt, **{"temperature": 1.0, **parameters}))
    return PairPM(bundle, FakeEngine(outputs_of), RequestOptions())


def write_scalar_bundle(folder: Path, score: str = "mean") -> Path:
    """A scalar bundle on disk for ONNX Runtime: a row's score is the mean of its ids over 1000, or NaN."""
    from onnx import TensorProto, helper, save

    folder.mkdir(parents=True)
    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["attended"]),
        helper.make_node("ReduceSum", ["attended", "axis"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["attention_mask", "axis"], ["count"], keepdims=0),
        helper.make_node("Cast", ["total"], ["total_float"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["count"], ["count_float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["total_float", "count_float"], ["mean"]),
        helper.make_node("Div", ["mean", "unit"], ["score"]),
    ]
    dimensions = ["batch", "sequence"]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, dimensions) for name in ("input_ids", "attention_mask")
    ]
    unit = 1000.0 if score == "mean" else float("nan")
    constants = [
        helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
        helper.make_tensor("unit", TensorProto.FLOAT, [], [unit]),
    ]
    outputs = [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"])]
    graph = helper.make_graph(nodes, "mean_id", inputs, outputs, constants)
    save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10),
        folder / "model.onnx",
    )
    (folder / "tokenizer.json").write_bytes((FOLDER / "llama3" / "tokenizer.json").read_bytes())
    files = {
        path.name: FileRecord(path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.iterdir())
    }
    described = manifest("scalar", CHAT)
    (folder / "bundle.json").write_text(Manifest(**{**vars(described), "files": files}).to_json(), encoding="utf-8")
    return folder
