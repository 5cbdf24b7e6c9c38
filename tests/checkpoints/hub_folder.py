"""Write what a hub repository holds: config.json, one or more safetensors files, tokenizer files."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from checkpoints.weights import Tensors

TOKENIZERS = Path(__file__).parent.parent / "data" / "tokenizers"


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_config(folder: Path, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)


def write_tensors(folder: Path, tensors: Tensors, shards: int = 1) -> None:
    """model.safetensors, or `shards` numbered files of about equal size with their index."""
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    total = sum(tensor.nbytes for tensor in tensors.values())
    parts: list[Tensors] = [{} for _ in range(shards)]
    written = 0
    for name, tensor in tensors.items():
        parts[min(written * shards // total, shards - 1)][name] = tensor
        written += tensor.nbytes
    weight_map = {}
    for number, part in enumerate(parts, start=1):
        file_name = f"model-{number:05d}-of-{shards:05d}.safetensors"
        save_file(part, folder / file_name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file_name)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / "model.safetensors.index.json", index)


def copy_tokenizer(family: str, folder: Path, *, chat_template: str | None = None) -> None:
    """The files of tests/data/tokenizers/`family`, with another chat template where one is given."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted((TOKENIZERS / family).iterdir()):
        shutil.copyfile(source, folder / source.name)
    if chat_template is not None:
        path = folder / "tokenizer_config.json"
        write_json(path, read_json(path) | {"chat_template": chat_template})


def pad_with_eos(folder: Path) -> None:
    """Make eos the padding token, as people do for tokenizers without one; a [PAD] token is removed."""
    path = folder / "tokenizer.json"
    tokenizer = read_json(path)
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] != "[PAD]"]
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        content = read_json(path)
        content["pad_token"] = content["eos_token"]
        if "added_tokens_decoder" in content:
            content["added_tokens_decoder"] = {
                key: token for key, token in content["added_tokens_decoder"].items() if token["content"] != "[PAD]"
            }
        write_json(path, content)


def token_ids(folder: Path) -> dict[str, int]:
    """Every token of a tokenizer.json and its id."""
    tokenizer = read_json(folder / "tokenizer.json")
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, list):
        vocabulary = {piece: index for index, (piece, _) in enumerate(vocabulary)}
    return vocabulary | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
