"""Two judges trained to compare on the demo's generator: `python benchmarks/trained_pairs.py -o DIR`, minutes each.

pair-pm is the demo's Llama trained on to say A or B; PairRM is a small DeBERTa-v2 with the pair head, trained from the
demo's token embeddings. Both see the rows of ids that their family's own prompt makes (pair_training.py). Everything is
seeded, so one torch build makes one checkpoint.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy, which safetensors asks for
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, Tokenizer, processors

from asked import ask, judging_comparisons, judging_examples
from pair_training import SEED, train
from rm_calibration.comparison import compare_margins
from rm_export.checkpoint import open_checkpoint
from rm_export.demo import checkpoint_path
from rm_export.demo.preferences import PREFERENCE_GAP
from rm_export.exporter import export_checkpoint
from rm_export.families.pairrm import PREFIXES

if TYPE_CHECKING:
    from torch import Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--models", nargs="*", default=sorted(TRAINED), choices=TRAINED)
    arguments = parser.parse_args()
    for name in arguments.models:
        checkpoint = trained(arguments.output, name)
        with tempfile.TemporaryDirectory() as bundle:
            print(f"{name}: {verdict(checkpoint, Path(bundle) / 'bundle')}", flush=True)


def trained(folder: Path, name: str) -> Path:
    """The checkpoint `folder`/`name`, trained now if it is not there."""
    path = folder / name
    if not (path / "model.safetensors").is_file():
        partial = folder / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        TRAINED[name](partial).rename(path)
    return path


def verdict(checkpoint: Path, bundle: Path) -> str:
    """How the float checkpoint decides the held-out comparisons of docs/int8.md's table; writes a bundle."""
    export_checkpoint(open_checkpoint(checkpoint), bundle)
    margins = ask(checkpoint, judging_examples(2)).answers(bundle, threads=1)
    gaps = np.array([one.answers[0].overall - one.answers[1].overall for one in judging_comparisons()])
    told_apart = np.abs(gaps) >= PREFERENCE_GAP
    right = np.mean(np.sign(margins[told_apart]) == np.sign(gaps[told_apart]))
    clear = compare_margins(margins, margins).clear_pairs
    return (
        f"{100 * right:.1f} % of {told_apart.sum()} held-out comparisons decided as their grades say; "
        f"{clear} of {len(margins)} margins are clear"
    )


def pair_pm(folder: Path) -> Path:
    """The demo's backbone, fine-tuned whole, with the rows "A" and "B" of a new lm_head; other rows are zero."""
    import torch

    from activation_ranges import llama

    torch.manual_seed(SEED)
    shutil.copytree(checkpoint_path(), folder, ignore=shutil.ignore_patterns("README.md"))  # it is the demo's
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["LlamaForCausalLM"]}
    lm_head = np.zeros((config["vocab_size"], config["hidden_size"]), np.float32)
    tensors = load_file(folder / "model.safetensors")
    backbone = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    _write(folder, config, {**backbone, "lm_head.weight": lm_head})
    ids = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]

    model = llama(folder)
    head = torch.nn.Linear(config["hidden_size"], 2, bias=False)

    def logits(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        a, b = head(hidden[torch.arange(len(hidden)), attention_mask.sum(dim=1) - 1]).unbind(dim=1)
        return a - b

    train(folder, torch.nn.ModuleList([model, head]), logits, config["pad_token_id"])
    backbone = {f"model.{name}": tensor.numpy() for name, tensor in model.state_dict().items()}
    lm_head[[ids["A"], ids["B"]]] = head.weight.detach().numpy()
    return _write(folder, config, {**backbone, "lm_head.weight": lm_head})


def pairrm(folder: Path) -> Path:
    """Four layers in the PairRM-hf layout, on the demo's tokenizer with [CLS], [SEP] and PairRM's prefixes."""
    import torch
    import transformers

    torch.manual_seed(SEED)
    folder.mkdir(parents=True)
    tokenizer = _segments_tokenizer(folder)
    source, candidate1, candidate2, candidate = (tokenizer.token_to_id(prefix) for prefix in PREFIXES)
    config = transformers.DebertaV2Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.08,  # about 1/sqrt(hidden_size): 0.02 is for wide models and starves a narrow one
        layer_norm_eps=1e-7,
        pad_token_id=tokenizer.token_to_id("[PAD]"),
        type_vocab_size=0,
        position_biased_input=False,
        position_buckets=64,
        relative_attention=True,
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
    )
    model = transformers.DebertaV2Model(config)
    head = torch.nn.Sequential(
        torch.nn.Dropout(0.0),
        torch.nn.Linear(256, 128),
        torch.nn.Tanh(),
        torch.nn.Dropout(0.0),
        torch.nn.Linear(128, 1),
    )
    weights = model.state_dict()  # shares its memory with the model
    embeddings = torch.from_numpy(
        load_file(checkpoint_path() / "model.safetensors")["model.embed_tokens.weight"].astype(np.float32)
    )
    weights["embeddings.word_embeddings.weight"][: len(embeddings)] = embeddings
    _look_for_repeats(weights, config.num_hidden_layers)
    written = config.to_dict() | {
        "architectures": ["DebertaV2PairRM"],
        "source_prefix_id": source,
        "cand1_prefix_id": candidate1,
        "cand2_prefix_id": candidate2,
        "cand_prefix_id": candidate,
        "n_tasks": 1,
    }

    def tensors() -> dict[str, NDArray[np.float32]]:
        parts = {"pretrained_model.": model, "head_layer.": head}
        return {prefix + name: t.numpy() for prefix, part in parts.items() for name, t in part.state_dict().items()}

    def logits(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        at = [(input_ids == token).int().argmax(dim=1) for token in (source, candidate1, candidate2)]
        asked, left, right = (hidden[torch.arange(len(hidden)), place] for place in at)
        scores = [head(torch.cat([asked, answer], dim=1)) for answer in (left, right)]
        return (scores[0] - scores[1]).squeeze(1)

    _write(folder, written, tensors())
    train(folder, torch.nn.ModuleList([model, head]), logits, config.pad_token_id)
    return _write(folder, written, tensors())


TRAINED = {"pair-pm": pair_pm, "pairrm": pairrm}


def _segments_tokenizer(folder: Path) -> Tokenizer:
    """The demo's with [CLS] and [SEP] around every text, and PairRM's prefixes; written into the folder."""
    tokenizer = Tokenizer.from_file(str(checkpoint_path() / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in ("[CLS]", "[SEP]")])
    tokenizer.add_tokens([AddedToken(prefix, normalized=True) for prefix in PREFIXES])
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    return tokenizer


def _look_for_repeats(weights: dict[str, Tensor], layers: int) -> None:
    """Start half of the query heads equal to their key heads, as the demo's: a token first attends to its repeats."""
    for layer in range(layers):
        prefix = f"encoder.layer.{layer}.attention.self"
        half = len(weights[f"{prefix}.query_proj.weight"]) // 2
        weights[f"{prefix}.query_proj.weight"][:half] = weights[f"{prefix}.key_proj.weight"][:half]


def _write(folder: Path, config: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> Path:
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


if __name__ == "__main__":
    main()
