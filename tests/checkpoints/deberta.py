"""A small DeBERTa-v3 encoder: its config and its weights."""

from typing import Any

from checkpoints.weights import Weights

DEBERTA = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 160,
    "layer_norm_eps": 1e-7,
    "max_position_embeddings": 128,
    "max_relative_positions": -1,
    "model_type": "deberta-v2",
    "norm_rel_ebd": "layer_norm",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "pad_token_id": 0,
    "pooler_dropout": 0,
    "pooler_hidden_act": "gelu",
    "pooler_hidden_size": 64,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "position_buckets": 32,
    "relative_attention": True,
    "share_att_key": True,
    "type_vocab_size": 0,
}


def draw_deberta(weights: Weights, config: dict[str, Any], path: str, vocab_size: int) -> None:
    """The tensors `path`.embeddings.* and `path`.encoder.* of transformers' DebertaV2Model."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    weights.normal(f"{path}.embeddings.word_embeddings.weight", vocab_size, hidden)
    weights.layer_norm(f"{path}.embeddings.LayerNorm", hidden)
    weights.normal(f"{path}.encoder.rel_embeddings.weight", 2 * config["position_buckets"], hidden)
    weights.layer_norm(f"{path}.encoder.LayerNorm", hidden)
    for index in range(config["num_hidden_layers"]):
        layer = f"{path}.encoder.layer.{index}"
        # sharp attention: an average over all tokens would leave little of any one of them
        for projection in ("query_proj", "key_proj", "value_proj"):
            weights.linear(f"{layer}.attention.self.{projection}", hidden, hidden, bias=True, gain=2.0)
        weights.linear(f"{layer}.attention.output.dense", hidden, hidden, bias=True, gain=2.0)
        weights.layer_norm(f"{layer}.attention.output.LayerNorm", hidden)
        weights.linear(f"{layer}.intermediate.dense", hidden, inner, bias=True)
        weights.linear(f"{layer}.output.dense", inner, hidden, bias=True)
        weights.layer_norm(f"{layer}.output.LayerNorm", hidden)
