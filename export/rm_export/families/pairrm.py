"""PairRM: DeBERTa reads a source and two candidates and says how much better the first is. semantics.md 5.

It is published twice with the same weights. "PairRM-hf" is a transformers folder; its reference budgets every
row alone. "PairRM" is LLM-Blender's own: config.json describes the ranker and names a backbone, whose config
and tokenizer lie elsewhere; its reference budgets candidates by a batch's longest source and blanks "[SEP]".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer

from rm_export.checkpoint import Checkpoint, read_json_object
from rm_export.errors import CheckpointError
from rm_export.families.plan import Plan, is_buffer
from rm_export.graph import positions
from rm_export.graph.deberta import Deberta
from rm_export.graph.deberta_config import DebertaConfig
from rm_export.graph.module import Module, Op, Value
from rm_export.graph.pair_head import PairHead
from rm_export.graph.rows import Rows
from rm_export.options import Options
from rm_export.spm import SPM_FILE, deberta_tokenizer
from rm_export.tokenizer import read_tokenizer
from rm_runtime.prompt_spec import SegmentsPrompt

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NAME = "pairrm"
HUB_ID = "llm-blender/PairRM"

PREFIXES = ("<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>")
"""In the order LLM-Blender adds them to a backbone's tokenizer."""

_BACKBONE = "pretrained_model"
_HF_PREFIX_KEYS = ("source_prefix_id", "cand1_prefix_id", "cand2_prefix_id", "cand_prefix_id")


class PairRM(Module):
    """Encoder and head, read at the first token of each of the three prefixes."""

    def __init__(self, config: DebertaConfig, n_tasks: int, prefix_ids: tuple[int, int, int]) -> None:
        super().__init__()
        self.prefix_ids = prefix_ids
        self.pretrained_model = Deberta(config, _BACKBONE)
        self.head_layer = PairHead(config.hidden_size, n_tasks)

    def forward(self, op: Op, rows: Rows) -> dict[str, Value]:
        """Outputs `score` and `logit` [batch], the same number: positive if candidate 1 is better."""
        lengths, scorable = positions.row_lengths(op, rows.attention_mask)
        at = []
        for token in self.prefix_ids:
            position, found = positions.first_token(op, rows.input_ids, lengths, token)
            at.append(op.Unsqueeze(position, [1]))
            scorable = op.And(scorable, found)
        states = self.pretrained_model(op, rows.input_ids, rows.attention_mask, op.Concat(*at, axis=1))
        logit = positions.nan_unless(op, scorable, self.head_layer(op, states), 1)
        return {"score": op.Identity(logit), "logit": logit}


@dataclass(frozen=True)
class _Layout:
    """What differs between the two publications.

    backbone: DeBERTa's config.json; tokenizer: with the prefixes in it; prompt: how the reference makes rows.
    """

    backbone: Mapping[str, Any]
    tokenizer: Tokenizer
    prompt: SegmentsPrompt


def recognises(checkpoint: Checkpoint) -> bool:
    """By the head on a DeBERTa encoder; only one of the layouts names an architecture."""
    encoder = f"{_BACKBONE}.encoder.rel_embeddings.weight"
    return {"head_layer.1.weight", "head_layer.4.weight", encoder} <= set(checkpoint.tensors)


def plan(checkpoint: Checkpoint, options: Options) -> Plan:
    """Reference: LLM-Blender for the PairRM layout, DebertaV2PairRM with tokenize_pair for PairRM-hf."""
    if not recognises(checkpoint):
        raise CheckpointError(
            f"{checkpoint.id} holds no PairRM head (head_layer.1, head_layer.4) on a DeBERTa encoder; "
            "try `rm-export auto`"
        )
    for name, value in (("--chat-template", options.chat_template), ("--score-label", options.score_label)):
        if value:
            raise CheckpointError(f"{name} means nothing to PairRM: its prompt is three segments, not a chat")
    layout = _blender_layout(checkpoint, options) if _is_ranker(checkpoint) else _hf_layout(checkpoint)
    n_tasks = _integer(checkpoint, "n_tasks", 1)
    vocab_size = checkpoint.tensors[f"{_BACKBONE}.embeddings.word_embeddings.weight"].dims[0]
    config = DebertaConfig.from_hf(layout.backbone, vocab_size)
    source, candidate1, candidate2, _ = _prefix_ids(checkpoint, layout.tokenizer, vocab_size)
    return Plan(
        module=PairRM(config, n_tasks, (source, candidate1, candidate2)),
        outputs={"score": ("batch",), "logit": ("batch",)},
        tensors=checkpoint.tensors,
        unused=is_buffer,
        tokenizer_json=layout.tokenizer.to_str(),
        pooling="PREFIX-TOKENS",
        pad_token_id=_pad_token_id(checkpoint, layout),
        prompt=_limited(layout.prompt, options),
        architecture=config.summary(),
        parameters={"prefix_ids": [source, candidate1, candidate2], "n_tasks": n_tasks},
        causal=False,
    )


def backbone_config(checkpoint: Checkpoint, options: Options) -> Mapping[str, Any]:
    """DeBERTa's config.json: the checkpoint's own, or the backbone's in LLM-Blender's layout."""
    if not _is_ranker(checkpoint):
        return checkpoint.config
    return read_json_object(_backbone_folder(checkpoint, options) / "config.json")


def _is_ranker(checkpoint: Checkpoint) -> bool:
    return "ranker_type" in checkpoint.config


def _hf_layout(checkpoint: Checkpoint) -> _Layout:
    prompt = SegmentsPrompt(replace=(), budget="row", candidate_prefix=None)
    tokenizer = _tokenizer(checkpoint.folder, checkpoint.id)
    return _Layout(checkpoint.config, tokenizer, prompt)


def _blender_layout(checkpoint: Checkpoint, options: Options) -> _Layout:
    kind, model = checkpoint.config.get("ranker_type"), str(checkpoint.config.get("model_type"))
    if kind != "pairranker" or not model.startswith("deberta"):
        raise CheckpointError(f"{checkpoint.id} is a {kind} on {model}; this family needs a pairranker on deberta")
    folder = _backbone_folder(checkpoint, options)
    prompt = SegmentsPrompt(
        source_max_length=_integer(checkpoint, "source_maxlength", 1224),
        candidate_max_length=_integer(checkpoint, "candidate_maxlength", 412),
    )
    config = read_json_object(folder / "config.json")
    return _Layout(config, _tokenizer(folder, str(folder)), prompt)


def _backbone_folder(checkpoint: Checkpoint, options: Options) -> Path:
    """Config and tokenizer of the backbone: below the checkpoint, or where the user says, or on the hub."""
    name = str(checkpoint.config.get("model_name") or "")
    below = checkpoint.folder.joinpath(*(part for part in PurePosixPath(name).parts if part not in ("/", "..")))
    if options.backbone is None and name and (below / "config.json").is_file():
        return below
    wanted = options.backbone or name
    if not wanted:
        raise CheckpointError(f"{checkpoint.id}: its config.json names no backbone; name one with --backbone")
    from rm_export.hub import locate

    try:
        folder = locate(wanted, files="metadata").folder
    except CheckpointError as error:
        raise CheckpointError(
            f"{checkpoint.id} needs config.json and tokenizer of its backbone {wanted}: {error}; "
            f"put them into {below} or name another place with --backbone"
        ) from None
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} holds no config.json; name the backbone's folder with --backbone")
    return folder


def _tokenizer(folder: Path, where: str) -> Tokenizer:
    """From tokenizer.json if there is one, else from spm.model; with the prefixes LLM-Blender adds."""
    if (folder / "tokenizer.json").is_file():
        tokenizer = read_tokenizer(folder).load()
    elif (folder / SPM_FILE).is_file():
        tokenizer = deberta_tokenizer(folder)
    else:
        raise CheckpointError(f"{where} holds no tokenizer.json and no {SPM_FILE}")
    tokenizer.add_tokens([AddedToken(prefix, normalized=True) for prefix in PREFIXES])
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _prefix_ids(checkpoint: Checkpoint, tokenizer: Tokenizer, vocab_size: int) -> list[int]:
    """Ids of the prefixes. Raises CheckpointError where config.json or added_tokens.json says otherwise."""
    ids = [int(tokenizer.token_to_id(prefix) or 0) for prefix in PREFIXES]
    config, listed = checkpoint.config, checkpoint.json_file("added_tokens.json")
    for prefix, key, token in zip(PREFIXES, _HF_PREFIX_KEYS, ids, strict=True):
        expected = {"config.json": config.get(key, token), "added_tokens.json": listed.get(prefix, token)}
        for source, stated in expected.items():
            if token != stated:
                raise CheckpointError(
                    f"{checkpoint.id}: {source} gives {prefix} the id {stated}, the tokenizer {token}; they "
                    "do not belong together, or the backbone is another one (--backbone)"
                )
        if token >= vocab_size:
            raise CheckpointError(f"{checkpoint.id}: {prefix} has id {token} of {vocab_size} embeddings")
    return ids


def _pad_token_id(checkpoint: Checkpoint, layout: _Layout) -> int:
    pad = layout.tokenizer.token_to_id("[PAD]")
    if pad is None:
        raise CheckpointError(f"{checkpoint.id}: its tokenizer has no [PAD], so it is not DeBERTa's")
    return int(pad)


def _limited(prompt: SegmentsPrompt, options: Options) -> SegmentsPrompt:
    """The prompt with the user's limit, split between the segments as the reference splits its 2,048 ids."""
    if options.truncation_side is not None:
        prompt = replace(prompt, truncation_side=options.truncation_side)
    if options.max_length is None:
        return prompt
    candidate = options.max_length * prompt.candidate_max_length // prompt.max_length
    if candidate < 4:
        raise CheckpointError(f"--max-length {options.max_length} leaves PairRM's candidates no room")
    source = options.max_length - 2 * candidate
    return replace(prompt, source_max_length=source, candidate_max_length=candidate)


def _integer(checkpoint: Checkpoint, key: str, default: int) -> int:
    value = checkpoint.config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or value <= 0:
        raise CheckpointError(f"{checkpoint.id}: config.json has {key} {value!r}, a positive integer is needed")
    return value
