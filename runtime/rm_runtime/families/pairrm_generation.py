"""Several sampled answers a prompt, for best_of_n_generate. Source: LLM-Blender blender.py, n_generate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rm_runtime.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SAMPLING = {
    "top_p_sampling": {"do_sample": True, "top_p": 1.0, "temperature": 0.7},
    "top_k_sampling": {"do_sample": True, "top_k": 50, "temperature": 0.7},
}


def sampled_candidates(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    n: int,
    sampling_mode: str | None,
    batch_size: int,
    generate_options: Mapping[str, Any],
) -> list[list[str]]:
    """n answers to each prompt.

    model: a transformers model, used with its tokenizer as LLM-Blender uses it; or any function
    (prompts, n, **generate_options) -> n texts for each prompt, for which the tokenizer may be None.
    sampling_mode: "top_p_sampling", "top_k_sampling", or None to take generate_options as they are.
    """
    if sampling_mode is not None and sampling_mode not in _SAMPLING:
        raise RequestError(f"sampling_mode={sampling_mode!r}: {', '.join(map(repr, _SAMPLING))} or None")
    options = {**(_SAMPLING[sampling_mode] if sampling_mode else {}), **generate_options}
    if sampling_mode:
        options["do_sample"] = True
    if not hasattr(model, "generate"):
        answers = [list(texts) for texts in model(list(prompts), n, **generate_options)]
        if len(answers) != len(prompts) or any(len(texts) != n for texts in answers):
            raise RequestError(f"the generator must return {n} texts for each of {len(prompts)} prompts")
        return answers
    if "max_new_tokens" not in options:
        options.setdefault("max_length", tokenizer.model_max_length)
    answers = []
    for start in range(0, len(prompts), batch_size):
        batch = list(prompts[start : start + batch_size])
        encoded = tokenizer(batch, return_tensors="pt", padding=True, truncation=True).to(model.device)
        generated = model.generate(**encoded, **options, num_return_sequences=n)
        sequences = getattr(generated, "sequences", generated)
        if not model.config.is_encoder_decoder:  # the prompt comes first
            sequences = sequences[:, encoded["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(sequences, skip_special_tokens=True)
        answers += [texts[place : place + n] for place in range(0, len(texts), n)]
    return answers
