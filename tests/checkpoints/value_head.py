"""GRM: a causal language model with a value head in float32."""

from pathlib import Path
from typing import Any

from checkpoints.decoder import CLASS_PREFIX, TOKENIZER, decoder_config, draw_decoder
from checkpoints.hub_folder import copy_tokenizer, write_config, write_tensors
from checkpoints.weights import Weights

LLAMA32_ROPE = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 256,  # all three bands within the lengths of the tests
    "rope_type": "llama3",
}


def grm(
    folder: Path,
    *,
    backbone: str = "llama",
    dtype: str = "float16",
    shards: int = 1,
    seed: int = 0,
    **config_overrides: Any,
) -> Path:
    """`AutoModelForCausalLMWithValueHead` over llama, gemma or gemma2.

    Of interest in `config_overrides`: vhead_layer_type ("mlp", "linear"), vhead_num_layers (1..3),
    vhead_num_neurons, and tie_word_embeddings, which decides whether `lm_head.weight` is stored.
    """
    copy_tokenizer("llama31" if backbone == "llama" else TOKENIZER[backbone], folder)
    wrapper = "model.AutoModelForCausalLMWithValueHead"
    llama = {"rope_scaling": LLAMA32_ROPE, "head_dim": 16} if backbone == "llama" else {}
    config = decoder_config(backbone, folder, dtype, **llama) | {
        "architectures": [f"{CLASS_PREFIX[backbone]}ForCausalLM"],
        "auto_map": {"AutoModel": wrapper, "AutoModelForSequenceClassification": wrapper},
        "tie_word_embeddings": True,
        "vhead_layer_type": "mlp",
        "vhead_num_layers": 1,
        "vhead_num_neurons": 40,
        **config_overrides,
    }
    weights = Weights(seed, dtype)
    draw_decoder(weights, config)
    hidden, neurons = config["hidden_size"], config["vhead_num_neurons"]
    if not config["tie_word_embeddings"]:
        weights.linear("lm_head", hidden, config["vocab_size"], bias=False)

    weights.dtype = "float32"
    if config["vhead_layer_type"] == "linear":
        weights.linear("v_head.summary", hidden, 1, bias=True)
    else:
        width = hidden
        for index in range(config["vhead_num_layers"]):
            weights.linear(f"v_head.summary.{2 * index}", width, neurons, bias=True)
            width = neurons
        weights.linear(f"v_head.summary.{2 * config['vhead_num_layers']}", width, 1, bias=True, gain=2.0)

    write_config(folder, config)
    write_tensors(folder, weights.tensors, shards)
    return folder
