"""A graph run one layer at a time computes what the whole graph computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import checkpoints
from rm_export.build import build_model
from rm_export.checkpoint import open_checkpoint
from rm_export.exporter import export_checkpoint
from rm_export.families import family
from rm_export.options import Options
from rm_export.stage_runner import StageRunner, run_stages
from rm_export.stages import lookups, split_stages
from rm_runtime.batching import run_rows
from rm_runtime.bundle import open_bundle
from rm_runtime.engines import open_engine

CASES = [("grm", {}), ("scalar", {"backbone": "qwen2"}), ("grm", {"backbone": "gemma2"}), ("dpa-rm", {})]
ROWS = [np.random.default_rng(seed).integers(5, 900, size=20 + seed) for seed in range(4)]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_layer_by_layer_gives_the_bundles_outputs(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    checkpoint = open_checkpoint(getattr(checkpoints, name.replace("-", "_"))(tmp_path / "checkpoint", **options))
    staged = run_stages(build_model(family(name).plan(checkpoint, Options()), "tiny"), ROWS, StageRunner(threads=1))
    bundle = open_bundle(export_checkpoint(checkpoint, tmp_path / "bundle", family=name))
    whole = run_rows(open_engine(bundle, threads=1), ROWS, bundle.manifest.pad_token_id)
    for output, values in whole.items():
        np.testing.assert_allclose(staged[output], values, rtol=1e-4, atol=1e-5)


def test_every_node_is_in_exactly_one_stage_but_for_table_lookups(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(checkpoints.armorm(tmp_path / "checkpoint"))
    model = build_model(family("armorm").plan(checkpoint, Options()), "tiny")
    stages = split_stages(model)
    assert sum(len(stage.nodes) for stage in stages) + len(lookups(model.graph)) == len(model.graph)
    assert [stage.name for stage in stages][:2] == ["before the layers", "layer 0"]


def test_layers_of_one_shape_share_one_compiled_session(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(checkpoints.armorm(tmp_path / "checkpoint", num_hidden_layers=4))
    model = build_model(family("armorm").plan(checkpoint, Options()), "tiny")
    runner = StageRunner(threads=1)
    run_stages(model, ROWS[:1], runner)
    assert len(split_stages(model)) == 6
    assert len(runner._sessions) == 4  # before, one layer, the last one, after
