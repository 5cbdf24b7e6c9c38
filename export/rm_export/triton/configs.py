"""config.pbtxt of each model of a repository, as messages of Triton's model_config.proto.

Source: triton-inference-server/server, docs/user_guide/model_configuration.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rm_export.triton.options import Gpus, TritonOptions
from rm_export.triton.prototext import Constant, Message, entries
from rm_runtime.manifest import EnginePlan, Manifest
from rm_runtime.prompt_spec import ChatPrompt
from rm_runtime.triton.requests import CHATS

WARM_UP_CHATS = "chats"
"""File in a model's folder `warmup`: one chat as Triton reads BYTES, four bytes of length before it."""

_WARM_UP_LENGTH = 128
_STRING, _INT64, _FP32 = Constant("TYPE_STRING"), Constant("TYPE_INT64"), Constant("TYPE_FP32")


@dataclass(frozen=True)
class Models:
    """The names of a repository's models; tokenizer and ensemble are there where one row is one chat."""

    scoring: str

    @property
    def graph(self) -> str:
        return f"{self.scoring}_graph"

    @property
    def tokenizer(self) -> str:
        return f"{self.scoring}_tokenizer"

    @property
    def ensemble(self) -> str:
        return f"{self.scoring}_ensemble"


def is_pointwise(manifest: Manifest) -> bool:
    """Whether a chat is one row and its score one of the graph's numbers."""
    return isinstance(manifest.prompt, ChatPrompt)


def scoring_config(manifest: Manifest, models: Models, options: TritonOptions, gpus: Gpus) -> Message:
    """The model that answers chats, with an engine of its own (gpus: where) or in front of the graph model."""
    alone = options.backend == "python"
    parameters = {
        "engine": options.engine if alone else None,
        "threads": options.threads if alone else None,
        "batch_tokens": options.batch_tokens,
        "graph": None if alone else models.graph,
        "graph_batch": None if alone else options.graph_batch,
    }
    outputs = [_output("replies", _STRING, ())] + ([_output("score", _FP32, ())] if is_pointwise(manifest) else [])
    config = {
        **_python(models.scoring, options),
        "max_batch_size": options.max_batch,
        "input": [_input(CHATS, _STRING, 1)],
        "output": outputs,
        **_queue(options),
        "instance_group": [_instances(options.instances, gpus) if alone else _instances(options.fronts, ())],
        "parameters": _parameters({**parameters, "EXECUTION_ENV_PATH": options.execution_env}),
    }
    # in front of the graph model it must not warm up: that model may not be loaded yet, and warms up itself
    return {**config, "model_warmup": [_chats_warm_up()]} if alone else config


def tokenizer_config(manifest: Manifest, models: Models, options: TritonOptions) -> Message:
    """The ensemble's first step."""
    ids = [{"name": tensor.name, "data_type": _INT64, "dims": [-1]} for tensor in manifest.inputs]
    return {
        **_python(models.tokenizer, options),
        "max_batch_size": options.graph_batch,
        "input": [_input(CHATS, _STRING, 1)],
        "output": ids,
        **_queue(options),
        "instance_group": [_instances(options.fronts, ())],
        "parameters": _parameters({"EXECUTION_ENV_PATH": options.execution_env}),
        "model_warmup": [_chats_warm_up()],
    }


def graph_config(
    manifest: Manifest, models: Models, options: TritonOptions, gpus: Gpus, plans: Mapping[str, EnginePlan]
) -> Message:
    """The graph, by ONNX Runtime, or by TensorRT if there are plans (by the name of their file)."""
    group = _instances(options.instances, gpus)
    config: dict[str, Any] = {
        "name": models.graph,
        "backend": "tensorrt" if plans else "onnxruntime",
        "version_policy": _VERSIONS,
        "max_batch_size": options.graph_batch,
        "input": [{"name": tensor.name, "data_type": _INT64, "dims": [-1]} for tensor in manifest.inputs],
        "output": _graph_outputs(manifest),
        **_queue(options),
    }
    if plans:
        by_capability = {
            capability: name
            for name, plan in plans.items()
            for capability in (plan.compute_capability or "").split(",")
            if capability
        }
        config["default_model_filename"] = next(iter(plans))
        config["cc_model_filenames"] = entries(by_capability)
        # an instance takes the nearest of the profiles that are named here, and only these
        group = {**group, "profile": [str(number) for number in range(len(next(iter(plans.values())).profiles))]}
    elif options.threads is not None:
        config["parameters"] = _parameters({"intra_op_thread_count": options.threads})
    zeros = {"data_type": _INT64, "dims": [_warm_up_length(manifest)], "zero_data": True}
    inputs = entries({tensor.name: zeros for tensor in manifest.inputs})
    warm_ups = [
        {"name": f"{rows} rows", "batch_size": rows, "inputs": inputs} for rows in sorted({1, options.graph_batch})
    ]
    return {**config, "instance_group": [group], "model_warmup": warm_ups}


def ensemble_config(manifest: Manifest, models: Models, options: TritonOptions) -> Message:
    """`chats` -> the graph's outputs, without Python behind the tokenizer."""
    between = {tensor.name: tensor.name for tensor in manifest.inputs}
    outputs = {tensor.name: tensor.name for tensor in manifest.outputs}
    steps = [
        _step(models.tokenizer, {CHATS: CHATS}, between),
        _step(models.graph, between, outputs),
    ]
    return {
        "name": models.ensemble,
        "platform": "ensemble",
        "version_policy": _VERSIONS,
        "max_batch_size": options.graph_batch,
        "input": [_input(CHATS, _STRING, 1)],
        "output": [
            {key: value for key, value in output.items() if key != "reshape"} for output in _graph_outputs(manifest)
        ],
        "ensemble_scheduling": {"step": steps},
    }


_VERSIONS: Message = {"latest": {"num_versions": 1}}


def _python(name: str, options: TritonOptions) -> dict[str, Any]:
    return {"name": name, "backend": "python", "version_policy": _VERSIONS}


def _input(name: str, data_type: Constant, size: int) -> Message:
    return {"name": name, "data_type": data_type, "dims": [size]}


def _output(name: str, data_type: Constant, shape: Sequence[int]) -> Message:
    """shape: of one row. Triton has no tensor of one value a row: clients see [n, 1], the model gives [n]."""
    if shape:
        return {"name": name, "data_type": data_type, "dims": list(shape)}
    return {"name": name, "data_type": data_type, "dims": [1], "reshape": {"shape": []}}


def _graph_outputs(manifest: Manifest) -> list[Message]:
    return [
        _output(tensor.name, _FP32, [size for size in tensor.shape[1:] if isinstance(size, int)])
        for tensor in manifest.outputs
    ]


def _queue(options: TritonOptions) -> Message:
    """Requests are joined as they wait; preferred sizes would make some wait for no gain."""
    batching: dict[str, Any] = {"max_queue_delay_microseconds": options.queue_delay_us}
    if options.queue_size is not None or options.queue_timeout_us is not None:
        batching["default_queue_policy"] = {
            "timeout_action": Constant("REJECT"),
            "default_timeout_microseconds": options.queue_timeout_us or 0,
            "allow_timeout_override": True,
            "max_queue_size": options.queue_size or 0,
        }
    if options.priorities:
        batching |= {"priority_levels": options.priorities, "default_priority_level": options.priorities}
    return {"dynamic_batching": batching}


def _instances(count: int, gpus: Gpus) -> Message:
    """`count` on each GPU, or on the CPU."""
    if gpus == "all":
        return {"count": count, "kind": Constant("KIND_GPU")}
    if gpus:
        return {"count": count, "kind": Constant("KIND_GPU"), "gpus": list(gpus)}
    return {"count": count, "kind": Constant("KIND_CPU")}


def _parameters(values: Mapping[str, object]) -> list[Message]:
    return entries({key: {"string_value": str(value)} for key, value in values.items() if value is not None})


def _step(model: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> Message:
    maps = {"input_map": entries(inputs), "output_map": entries(outputs)}
    return {"model_name": model, "model_version": -1, **maps}


def _chats_warm_up() -> Message:
    chats = {"data_type": _STRING, "dims": [1], "input_data_file": WARM_UP_CHATS}
    return {"name": "a chat", "batch_size": 1, "inputs": entries({CHATS: chats})}


def _warm_up_length(manifest: Manifest) -> int:
    return min(_WARM_UP_LENGTH, manifest.prompt.max_length)
