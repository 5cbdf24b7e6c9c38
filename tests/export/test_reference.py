"""The reference gives what transformers and the authors' own code give, from weights read as data."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import checkpoints
from checkpoints.hub_folder import read_json, write_json
from rm_export.checkpoint import open_checkpoint
from rm_export.errors import CheckpointError, ExportError
from rm_export.reference import Reference, open_reference
from rm_export.reference_weights import hf_config

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

RECORD = Path(__file__).parent.parent / "data" / "peers" / "rewardbench_grm.json"
SAME_LIBRARY = 1e-6
"""Absolute, on scores of about 1: one library, one order of operations; a batch of one in both."""
OTHER_ORDER = 2e-5
"""Absolute, on scores of about 1: another version, row length or attention kernel sums in another order."""

SCALAR_VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}, "attention_bias": True, "mlp_bias": True}),
    ("llama", {"shards": 3, "head_dim": 24, "dtype": "float16"}),
    ("mistral", {"sliding_window": 16}),
    ("mistral", {"pad_token_id": None}),
    ("qwen2", {"use_sliding_window": True, "num_labels": 2}),
    ("qwen3", {"dtype": "float32"}),
    ("gemma", {}),
    ("gemma2", {}),
]


def reference_of(folder: Path, family: str, **parameters: Any) -> Reference:
    torch.set_num_threads(1)
    return open_reference(open_checkpoint(folder), family, parameters)


def random_rows(folder: Path, lengths: tuple[int, ...] = (1, 2, 9, 40, 130)) -> list[np.ndarray]:
    """Rows of any ids, special tokens among them."""
    rng = np.random.default_rng(7)
    vocab_size = read_json(folder / "config.json")["vocab_size"]
    return [rng.integers(0, vocab_size, length) for length in lengths]


@pytest.mark.parametrize(("backbone", "options"), SCALAR_VARIANTS)
def test_scalar_scores_are_those_of_from_pretrained(tmp_path: Path, backbone: str, options: dict[str, Any]) -> None:
    folder = checkpoints.scalar(tmp_path, backbone=backbone, **options)
    config = read_json(folder / "config.json")
    # eos, often the pad token as well, at the end and in the middle: here the pooling rules part ways
    eos = config["eos_token_id"]
    rows = [*random_rows(folder), np.array([5, eos, 9, eos]), np.array([eos, eos])]
    outputs = reference_of(folder, "scalar").run(rows)

    model = getattr(transformers, config["architectures"][0]).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    model = model.float().eval()
    with torch.inference_mode():
        expected = np.stack([model(torch.tensor(row)[None]).logits[0].numpy() for row in rows])
    assert np.abs(outputs["score"] - expected[:, 0]).max() < SAME_LIBRARY
    assert set(outputs) == ({"score", "logits"} if options.get("num_labels") else {"score"})
    if "logits" in outputs:
        assert np.abs(outputs["logits"] - expected).max() < SAME_LIBRARY


@pytest.mark.parametrize("backbone", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"])
def test_the_configuration_is_the_one_from_pretrained_reads(tmp_path: Path, backbone: str) -> None:
    folder = checkpoints.scalar(tmp_path, backbone=backbone, num_labels=3)
    expected = transformers.AutoConfig.from_pretrained(folder).to_dict()
    ours = hf_config(read_json(folder / "config.json")).to_dict()
    stored_as = {"architectures", "dtype", "_name_or_path", "transformers_version"}
    assert {key: value for key, value in ours.items() if key not in stored_as} == {
        key: value for key, value in expected.items() if key not in stored_as
    }


@pytest.mark.parametrize(
    "case",
    json.loads(RECORD.read_text("utf-8"))["cases"],
    ids=lambda case: f"{case['backbone']}-{case['head']}",
)
def test_grm_scores_are_those_of_rewardbench(tmp_path: Path, case: dict[str, Any]) -> None:
    folder = checkpoints.grm(tmp_path, backbone=case["backbone"], **case["head"])
    scores = reference_of(folder, "grm").run([np.array(ids) for ids in case["ids"]])["score"]
    assert np.abs(scores - case["scores"]).max() < OTHER_ORDER


def test_grm_does_not_read_the_language_model_head(tmp_path: Path) -> None:
    untied = checkpoints.grm(tmp_path / "untied", tie_word_embeddings=False)
    tied = checkpoints.grm(tmp_path / "tied")
    rows = random_rows(tied)
    scores = [reference_of(folder, "grm").run(rows)["score"] for folder in (untied, tied)]
    assert np.array_equal(*scores)


def test_armorm_follows_the_released_formula(tmp_path: Path) -> None:
    folder = checkpoints.armorm(tmp_path)
    config, tensors = read_json(folder / "config.json"), torch_tensors(folder)
    pattern = [7, 8, 9]
    rng = np.random.default_rng(0)
    before, answer = (rng.integers(20, 200, length) for length in (12, 15))
    row = np.concatenate([before, pattern, [30, 31], pattern, answer])
    outputs = reference_of(folder, "armorm", gate_pattern=pattern).run([row])

    model = transformers.LlamaModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        hidden = model.float().eval()(torch.tensor(row)[None]).last_hidden_state[0]
    rewards = hidden[-1] @ tensors["regression_layer.weight"].T
    gate = hidden[len(before) + len(pattern) + 2]
    for index in range(4):
        gate = gate @ tensors[f"gating.layers.{index}.weight"].T + tensors[f"gating.layers.{index}.bias"]
        gate = torch.relu(gate) if index < 3 else gate
    gating = torch.softmax(gate / config["gating_temperature"], dim=0) * tensors["gating.logit_scale"]
    score = (gating * (rewards @ tensors["reward_transform_matrix"])).sum()

    assert abs(outputs["score"][0] - float(score)) < SAME_LIBRARY * 5  # a sum of 19 products in another order
    assert np.abs(outputs["rewards"][0] - rewards.numpy()).max() < SAME_LIBRARY
    assert np.abs(outputs["gating"][0] - gating.numpy()).max() < SAME_LIBRARY
    explained = (outputs["rewards"] * outputs["coefficients"]).sum(1)
    assert np.abs(explained - outputs["score"]).max() < 1e-5


def test_armorm_reads_before_the_first_pad_token(tmp_path: Path) -> None:
    folder = checkpoints.armorm(tmp_path)
    pad = read_json(folder / "config.json")["pad_token_id"]
    pattern = [7, 8, 9]
    reference = reference_of(folder, "armorm", gate_pattern=pattern)
    cut, typed, at_start = (np.array(row) for row in ([*pattern, 50], [*pattern, 50, pad, 60], [pad, *pattern, 50]))
    rewards = reference.run([cut, typed])["rewards"]
    assert np.abs(rewards[0] - rewards[1]).max() < OTHER_ORDER
    # a pad token at place 0 gives index -1, the last token
    moved = reference.run([at_start, np.array([*at_start[:-1], 51])])["rewards"]
    assert np.abs(moved[0] - moved[1]).max() > 0.01


def test_rows_that_cannot_be_scored_are_nan_and_leave_the_others_alone(tmp_path: Path) -> None:
    reference = reference_of(checkpoints.armorm(tmp_path), "armorm", gate_pattern=[7, 8, 9])
    good = np.array([5, 7, 8, 9, 10, 11])
    done = []
    outputs = reference.run([np.array([], np.int64), good, np.array([7, 8])], lambda: done.append(1))
    assert np.isnan(outputs["score"]).tolist() == [True, False, True]
    assert np.isnan(outputs["gating"]).all(axis=1).tolist() == [True, False, True]
    assert outputs["score"][1] == reference.run([good])["score"][0]
    assert len(done) == 3


@pytest.mark.parametrize("tied", [False, True])
def test_pair_pm_reads_two_columns_of_the_causal_model(tmp_path: Path, tied: bool) -> None:
    folder = checkpoints.pair_pm(tmp_path, tie_word_embeddings=tied, shards=2)
    rows = random_rows(folder)
    outputs = reference_of(folder, "pair-pm", choice_ids=[33, 34]).run(rows)
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        expected = np.stack([model.float().eval()(torch.tensor(row)[None]).logits[0, -1] for row in rows])
    # from_pretrained computes with sdpa
    assert np.abs(outputs["logits"] - expected[:, [33, 34]]).max() < OTHER_ORDER
    assert np.allclose(outputs["score"], outputs["logits"][:, 0] - outputs["logits"][:, 1], atol=SAME_LIBRARY)


@pytest.mark.parametrize("bias", [False, True])
def test_dpa_rm_is_a_linear_layer_on_the_last_token(tmp_path: Path, bias: bool) -> None:
    folder = checkpoints.dpa_rm(tmp_path, bias=bias)
    rows = random_rows(folder)
    outputs = reference_of(folder, "dpa-rm").run(rows)
    model = transformers.MistralForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.inference_mode():
        expected = np.stack([model.float().eval()(torch.tensor(row)[None]).logits[0] for row in rows])
    if bias:
        expected = expected + torch_tensors(folder)["score.bias"].float().numpy()
    assert outputs["rewards"].shape == (len(rows), 10)
    assert np.abs(outputs["rewards"] - expected).max() < SAME_LIBRARY
    assert np.array_equal(outputs["score"], outputs["rewards"][:, 0])


@pytest.mark.parametrize("tasks", [1, 3])
def test_pairrm_is_the_same_for_both_layouts_and_follows_the_formula(tmp_path: Path, tasks: int) -> None:
    torch.set_num_threads(1)
    hf = checkpoints.pairrm(tmp_path / "hf", n_tasks=tasks)
    blender = checkpoints.pairrm(tmp_path / "blender", layout="PairRM", n_tasks=tasks)
    backbone_config = read_json(blender / read_json(blender / "config.json")["model_name"] / "config.json")
    config = read_json(hf / "config.json")
    source, first, second = (config[f"{name}_prefix_id"] for name in ("source", "cand1", "cand2"))
    row = np.array([1, source, 20, 21, 2, 1, first, 30, 31, 32, 2, 1, second, 40, 2])
    rows = [row, row[:-4]]
    parameters = {"prefix_ids": [source, first, second]}
    outputs = open_reference(open_checkpoint(hf), "pairrm", parameters).run(rows)
    same = open_reference(open_checkpoint(blender), "pairrm", parameters, backbone_config).run(rows)
    assert np.array_equal(outputs["logit"], same["logit"], equal_nan=True)
    assert np.isnan(outputs["score"]).tolist() == [False, True]

    tensors = torch_tensors(hf)
    model = transformers.DebertaV2Model(transformers.DebertaV2Config(**config))
    prefix = "pretrained_model."
    model.load_state_dict({name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)})
    with torch.inference_mode():
        hidden = model.eval()(torch.tensor(row)[None]).last_hidden_state[0]
    sides = []
    for candidate in (6, 12):
        inner = torch.cat([hidden[1], hidden[candidate]]) @ tensors["head_layer.1.weight"].T
        inner = torch.tanh(inner + tensors["head_layer.1.bias"])
        sides.append(inner @ tensors["head_layer.4.weight"].T + tensors["head_layer.4.bias"])
    assert abs(outputs["logit"][0] - float((sides[0] - sides[1]).mean())) < SAME_LIBRARY * 5


def test_unknown_missing_and_misshapen_tensors_are_refused(tmp_path: Path) -> None:
    folder = checkpoints.scalar(tmp_path, dtype="float32")
    tensors = load_file(folder / "model.safetensors")

    def refusal(changed: dict[str, np.ndarray]) -> str:
        save_file(changed, folder / "model.safetensors")
        with pytest.raises(CheckpointError) as caught:
            reference_of(folder, "scalar")
        return str(caught.value)

    assert "'extra.weight'" in refusal({**tensors, "extra.weight": np.ones(3, np.float32)})
    assert "'model.norm.weight'" in refusal({k: v for k, v in tensors.items() if k != "model.norm.weight"})
    assert "needs floats of shape [64]" in refusal({**tensors, "model.norm.weight": np.ones(3, np.float32)})
    assert "INT32" in refusal({**tensors, "model.norm.weight": np.ones(64, np.int32)})


def test_no_code_of_the_checkpoint_is_looked_up(tmp_path: Path) -> None:
    folder = checkpoints.scalar(tmp_path)
    config = read_json(folder / "config.json")
    trap = "raise SystemExit('the code of the checkpoint was run')\n"
    (folder / "modeling_custom.py").write_text(trap)
    (folder / "configuration_custom.py").write_text(trap)
    config["auto_map"] = {
        "AutoConfig": "configuration_custom.Config",
        "AutoModel": "modeling_custom.Model",
        "AutoModelForSequenceClassification": "modeling_custom.Model",
    }
    write_json(folder / "config.json", config)
    assert np.isfinite(reference_of(folder, "scalar").run([np.array([1, 2, 3])])["score"]).all()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's own peak of memory")
def test_opening_holds_one_copy_of_the_weights(tmp_path: Path) -> None:
    folder = checkpoints.scalar(
        tmp_path / "large", hidden_size=512, intermediate_size=4096, num_hidden_layers=6, dtype="bfloat16"
    )
    float32_size = sum(2 * tensor.nbytes for tensor in open_checkpoint(folder).tensors.values()) / 1e6
    reference_of(checkpoints.scalar(tmp_path / "warm"), "scalar")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident_megabytes("VmRSS")
    reference = reference_of(folder, "scalar")
    # two copies would be twice that; freed memory of other tests may be used again, so there is no lower bound
    assert resident_megabytes("VmHWM") - before < 1.3 * float32_size
    assert reference.shapes == {"score": ()}


def resident_megabytes(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1e3


def test_an_unknown_family_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no reference for family 'bert'"):
        reference_of(checkpoints.scalar(tmp_path), "bert")


def torch_tensors(folder: Path) -> dict[str, Any]:
    """The float32 tensors of a one-file checkpoint as torch, others widened to it."""
    from safetensors.torch import load_file as load_torch_file

    return {name: value.float() for name, value in load_torch_file(folder / "model.safetensors").items()}
