"""What TensorRT made of a graph, layer by layer: as it parsed it, and as it compiled it where a driver lets one ask."""

from __future__ import annotations

import json
from typing import Any


def network_layers(network: Any) -> list[dict[str, Any]]:
    """Every layer of a parsed network: its name, type, and the types of what it reads and gives.

    network: tensorrt.INetworkDefinition.
    """
    return [_described(network.get_layer(index)) for index in range(network.num_layers)]


def compiled_layers(trt: Any, logger: Any, plan: Any) -> list[dict[str, Any]] | None:
    """The engine inspector's own report, None without a GPU that can read the plan."""
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        return None
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers: list[dict[str, Any]] = json.loads(text)["Layers"]
    return layers


def _described(layer: Any) -> dict[str, Any]:
    return {
        "name": layer.name,
        "type": layer.type.name,
        "inputs": [_tensor(layer.get_input(place)) for place in range(layer.num_inputs)],
        "outputs": [_tensor(layer.get_output(place)) for place in range(layer.num_outputs)],
    }


def _tensor(tensor: Any) -> dict[str, str] | None:
    return None if tensor is None else {"name": tensor.name, "dtype": tensor.dtype.name}
