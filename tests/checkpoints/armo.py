"""ArmoRM: 19 objectives, a transform that removes verbosity, and a gate on the prompt."""

from pathlib import Path
from typing import Any

import numpy as np

from checkpoints.decoder import CLASS_PREFIX, TOKENIZER, decoder_config, draw_decoder
from checkpoints.hub_folder import copy_tokenizer, write_config, write_tensors
from checkpoints.weights import Weights

VERBOSITY = 4


def armorm(
    folder: Path,
    *,
    backbone: str = "llama",
    dtype: str = "bfloat16",
    shards: int = 1,
    seed: int = 0,
    **config_overrides: Any,
) -> Path:
    """`{Llama,Gemma2}ForRewardModelWithGating`; backbone stored in `dtype`, heads in float32."""
    copy_tokenizer(TOKENIZER[backbone], folder)
    class_name = f"{CLASS_PREFIX[backbone]}ForRewardModelWithGating"
    config = decoder_config(backbone, folder, "float32") | {
        "architectures": [class_name],
        "auto_map": {"AutoModelForSequenceClassification": f"modeling_custom.{class_name}"},
        "gating_hidden_dim": 48,
        "gating_n_hidden": 3,
        "gating_temperature": 10,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "num_objectives": 19,
        **config_overrides,
    }
    weights = Weights(seed, dtype)
    draw_decoder(weights, config)

    weights.dtype = "float32"
    hidden, objectives = config["hidden_size"], config["num_objectives"]
    gating_dim, depth = config["gating_hidden_dim"], config["gating_n_hidden"]
    weights.linear("regression_layer", hidden, objectives, bias=False, gain=1.5)
    transform = np.eye(objectives)
    generator = np.random.default_rng([seed, VERBOSITY])
    penalty = generator.uniform(0.1, 0.9, objectives)
    penalty[VERBOSITY] = 1.0
    transform[VERBOSITY] -= penalty
    weights.put("reward_transform_matrix", transform)
    for index in range(depth):
        weights.linear(f"gating.layers.{index}", gating_dim if index else hidden, gating_dim, bias=True)
    # the temperature of 10 divides these away otherwise
    weights.linear(
        f"gating.layers.{depth}",
        gating_dim if depth else hidden,
        objectives,
        bias=True,
        gain=1.5 * config["gating_temperature"],
    )
    weights.put("gating.logit_scale", np.array([1.37]))

    write_config(folder, config)
    write_tensors(folder, weights.tensors, shards)
    return folder
