"""RLHFlow's pair-preference-model: a Llama-3 causal model that answers A or B."""

from pathlib import Path
from typing import Any, Literal

import chat_templates
from checkpoints.decoder import decoder_config, draw_decoder
from checkpoints.hub_folder import copy_tokenizer, pad_with_eos, write_config, write_tensors
from checkpoints.weights import Weights

TEMPLATES = {"always": chat_templates.LLAMA3_ALWAYS_HEADER, "conditional": chat_templates.LLAMA3}


def pair_pm(
    folder: Path,
    *,
    backbone: Literal["llama", "gemma2"] = "llama",
    header: Literal["always", "conditional"] = "always",
    dtype: str = "bfloat16",
    shards: int = 1,
    seed: int = 0,
    **config_overrides: Any,
) -> Path:
    """`LlamaForCausalLM` with an untied lm_head and eos as padding; `header` picks the chat template.

    "always" ends every rendering in the assistant header; "conditional" needs add_generation_prompt. The gemma2 one
    has its own template, ties its lm_head and caps its logits.
    """
    if backbone == "llama":
        copy_tokenizer("llama3", folder, chat_template=TEMPLATES[header])
        pad_with_eos(folder)
        own = {"architectures": ["LlamaForCausalLM"]}
    else:
        copy_tokenizer("gemma", folder)
        own = {"architectures": ["Gemma2ForCausalLM"], "final_logit_softcapping": 4.0, "tie_word_embeddings": True}
    config = decoder_config(backbone, folder, dtype) | own | config_overrides
    weights = Weights(seed, dtype)
    draw_decoder(weights, config)
    if not config["tie_word_embeddings"]:
        weights.linear("lm_head", config["hidden_size"], config["vocab_size"], bias=False)
    write_config(folder, config)
    write_tensors(folder, weights.tensors, shards)
    return folder
