"""Record RewardBench's GRewardModel on the tiny GRM checkpoints: tests/data/peers/rewardbench_grm.json.

Run in an environment of its own (the recorded file is committed, this is only to make it anew):

    python -m venv peers
    peers/bin/pip install torch==2.13.0 transformers==4.46.3 'numpy<2' ml_dtypes safetensors
    peers/bin/pip install --no-deps rewardbench==0.1.4
    PYTHONPATH=tests peers/bin/python tests/peers/record_rewardbench.py
"""

import importlib.util
import json
import tempfile
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

import checkpoints

RECORD = Path(__file__).parent.parent / "data" / "peers" / "rewardbench_grm.json"
HEADS: list[dict[str, Any]] = [
    {"vhead_num_layers": 1},
    {"vhead_num_layers": 2},
    {"vhead_num_layers": 3},
    {"vhead_layer_type": "linear"},
]
LENGTHS = (1, 2, 7, 31, 90, 400)


def grm_module() -> ModuleType:
    """rewardbench/models/grm.py alone; the package's own __init__ imports far more than is installed here."""
    files = metadata.files("rewardbench") or []
    path = next(Path(file.locate()) for file in files if str(file).endswith("models/grm.py"))
    spec = importlib.util.spec_from_file_location("rewardbench_grm", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scores(folder: Path, rows: list[list[int]]) -> list[float]:
    """One padded batch through GRewardModel; transformers 4.46 leaves mixed checkpoints mixed, hence float()."""
    config = AutoConfig.from_pretrained(folder)
    model = grm_module().GRewardModel.from_pretrained(
        folder, config=config, torch_dtype=torch.float32, attn_implementation="eager"
    )
    model = model.float().eval()
    width = max(map(len, rows))
    ids = torch.tensor([row + [config.pad_token_id] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.inference_mode():
        return [float(value) for value in model(input_ids=ids, attention_mask=mask)]


def main() -> None:
    torch.set_num_threads(1)
    cases = []
    for backbone in ("llama", "gemma", "gemma2"):
        for head in HEADS:
            with tempfile.TemporaryDirectory() as parent:
                folder = checkpoints.grm(Path(parent), backbone=backbone, **head)
                vocab_size = json.loads((folder / "config.json").read_text("utf-8"))["vocab_size"]
                rng = np.random.default_rng(len(cases))
                rows = [rng.integers(0, vocab_size, length).tolist() for length in LENGTHS]
                cases.append({"backbone": backbone, "head": head, "ids": rows, "scores": scores(folder, rows)})
    versions = {name: metadata.version(name) for name in ("rewardbench", "transformers", "torch")}
    lines = ",\n".join(f"    {json.dumps(case)}" for case in cases)
    RECORD.write_text(f'{{\n  "versions": {json.dumps(versions)},\n  "cases": [\n{lines}\n  ]\n}}\n', "utf-8")


if __name__ == "__main__":
    main()
