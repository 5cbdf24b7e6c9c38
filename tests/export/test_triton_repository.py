"""What rm-export triton writes: configurations as Triton defines them, complete folders, all or nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf import json_format, text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

import checkpoints
import fake_tensorrt
from rm_export.checkpoint import open_checkpoint
from rm_export.cli import main
from rm_export.errors import ExportError
from rm_export.exporter import export_checkpoint
from rm_export.triton import repository
from rm_export.triton.options import TritonOptions
from rm_export.triton.prototext import to_prototext
from rm_export.triton.repository import write_repository
from rm_runtime.bundle import open_bundle
from rm_runtime.errors import BundleError


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By family; "tensorrt" is a scalar one for that target, not compiled."""
    folder = tmp_path_factory.mktemp("bundles")
    makers: dict[str, Callable[[Path], Path]] = {
        "armorm": checkpoints.armorm,
        "pair-pm": checkpoints.pair_pm,
        "tensorrt": checkpoints.scalar,
    }
    made = {}
    for name, make in makers.items():
        checkpoint = open_checkpoint(make(folder / name / "checkpoint"))
        target = "tensorrt" if name == "tensorrt" else "cpu"
        made[name] = export_checkpoint(checkpoint, folder / name / "bundle", target=target)
    return made


def with_plans(bundles: dict[str, Path], tmp_path: Path, *shapes: tuple[int, int], **changes: Any) -> Path:
    folder = Path(shutil.copytree(bundles["tensorrt"], tmp_path / "compiled"))
    fake_tensorrt.add_plans(folder, shapes or [(8, 128), (8, 512)], **changes)
    return folder


def config_of(folder: Path) -> Any:
    """A model's configuration as Triton's own definition reads it; raises for a field or a value it does not know."""
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def read(folder: Path) -> Any:
    return json_format.MessageToDict(config_of(folder), preserving_proto_field_name=True)


def shapes(tensors: list[dict[str, Any]]) -> dict[str, tuple[str, list[str]]]:
    return {tensor["name"]: (tensor["data_type"], tensor["dims"]) for tensor in tensors}


def test_the_graph_is_a_model_of_the_onnxruntime_backend_with_the_graphs_contract(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    options = TritonOptions(name="rm", threads=3, instances=2)
    written = write_repository(bundles["armorm"], tmp_path / "repo", options)
    assert written.models == ("rm", "rm_graph", "rm_tokenizer", "rm_ensemble")
    assert written.graph_batch == 32
    config = read(tmp_path / "repo" / "rm_graph")
    assert config["backend"] == "onnxruntime"
    assert config["max_batch_size"] == 32
    assert shapes(config["input"]) == dict.fromkeys(["input_ids", "attention_mask"], ("TYPE_INT64", ["-1"]))
    assert shapes(config["output"]) == {
        "score": ("TYPE_FP32", ["1"]),
        **dict.fromkeys(["rewards", "gating", "coefficients"], ("TYPE_FP32", ["19"])),
    }
    assert [output["name"] for output in config["output"] if output.get("reshape") == {}] == ["score"]
    assert config["instance_group"] == [{"count": 2, "kind": "KIND_CPU"}]
    assert config["parameters"] == {"intra_op_thread_count": {"string_value": "3"}}
    assert config["dynamic_batching"] == {}, "no queue policy unless it is asked for"
    assert config["version_policy"] == {"latest": {"num_versions": 1}}
    assert [warm_up["batch_size"] for warm_up in config["model_warmup"]] == [1, 32]


def test_the_graph_lies_beside_the_data_it_names_and_loads(bundles: dict[str, Path], tmp_path: Path) -> None:
    import onnxruntime

    write_repository(bundles["armorm"], tmp_path / "repo", TritonOptions(name="rm"))
    folder = tmp_path / "repo" / "rm_graph" / "1"
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "model.onnx.data"]
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    named = {
        entry.value for tensor in graph.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    assert named == {"model.onnx.data"}
    assert onnxruntime.InferenceSession(str(folder / "model.onnx")).get_outputs()


def test_the_ensemble_joins_tokenizer_and_graph_by_tensors_both_have(bundles: dict[str, Path], tmp_path: Path) -> None:
    write_repository(bundles["armorm"], tmp_path / "repo", TritonOptions(name="rm"))
    ensemble, tokenizer, graph = (read(tmp_path / "repo" / f"rm_{part}") for part in ("ensemble", "tokenizer", "graph"))
    first, second = ensemble["ensemble_scheduling"]["step"]
    assert (first["model_name"], second["model_name"]) == ("rm_tokenizer", "rm_graph")
    assert set(first["input_map"]) == set(shapes(tokenizer["input"])) == set(shapes(ensemble["input"])) == {"chats"}
    assert set(first["output_map"]) == set(shapes(tokenizer["output"])) == set(second["input_map"])
    assert shapes(tokenizer["output"]) == shapes(graph["input"])
    assert shapes(ensemble["output"]) == shapes(graph["output"])
    assert ensemble["max_batch_size"] == tokenizer["max_batch_size"] == graph["max_batch_size"]
    assert (tmp_path / "repo" / "rm_ensemble" / "1").is_dir()


@pytest.mark.parametrize(("family", "outputs"), [("armorm", ["replies", "score"]), ("pair-pm", ["replies"])])
def test_the_scoring_model_has_the_tensors_of_the_servers_endpoint(
    bundles: dict[str, Path], tmp_path: Path, family: str, outputs: list[str]
) -> None:
    for backend in ("python", "onnxruntime"):
        options = TritonOptions(name="rm", backend=backend)  # type: ignore[arg-type]  # a Literal
        names = write_repository(bundles[family], tmp_path / backend, options).models
        config = read(tmp_path / backend / "rm")
        assert shapes(config["input"]) == {"chats": ("TYPE_STRING", ["1"])}
        assert list(shapes(config["output"])) == outputs
        assert config["backend"] == "python"
        assert ("rm_ensemble" in names) == (family == "armorm" and backend == "onnxruntime")
        assert ("model_warmup" in config) == (backend == "python"), "the graph may not be there yet"


def test_gpus_queue_priorities_and_versions_are_as_chosen(bundles: dict[str, Path], tmp_path: Path) -> None:
    options = TritonOptions(
        name="rm",
        gpus=(0, 1),
        instances=2,
        fronts=5,
        max_batch=64,
        graph_batch=16,
        queue_delay_us=500,
        queue_size=9,
        queue_timeout_us=7,
        priorities=3,
        batch_tokens=99,
        model_version=4,
        execution_env="/envs/rm.tar.gz",
    )
    write_repository(bundles["armorm"], tmp_path / "repo", options)
    graph, front = read(tmp_path / "repo" / "rm_graph"), read(tmp_path / "repo" / "rm")
    assert graph["instance_group"] == [{"count": 2, "kind": "KIND_GPU", "gpus": [0, 1]}]
    assert front["instance_group"] == [{"count": 5, "kind": "KIND_CPU"}]
    assert (front["max_batch_size"], graph["max_batch_size"]) == (64, 16)
    assert graph["dynamic_batching"] == {
        "max_queue_delay_microseconds": "500",
        "priority_levels": "3",
        "default_priority_level": "3",
        "default_queue_policy": {
            "default_timeout_microseconds": "7",
            "allow_timeout_override": True,
            "max_queue_size": 9,
        },
    }
    assert {name: value["string_value"] for name, value in front["parameters"].items()} == {
        "batch_tokens": "99",
        "graph": "rm_graph",
        "graph_batch": "16",
        "EXECUTION_ENV_PATH": "/envs/rm.tar.gz",
    }
    assert (tmp_path / "repo" / "rm" / "4" / "model.py").is_file()
    policy = config_of(tmp_path / "repo" / "rm_graph").dynamic_batching.default_queue_policy
    assert policy.timeout_action == model_config_pb2.ModelQueuePolicy.REJECT
    alone = TritonOptions(name="rm", backend="python", gpus="all")
    write_repository(bundles["armorm"], tmp_path / "alone", alone)
    assert read(tmp_path / "alone" / "rm")["instance_group"] == [{"count": 1, "kind": "KIND_GPU"}]


def test_a_plan_goes_to_the_tensorrt_backend_with_every_profile(
    bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = with_plans(bundles, tmp_path, (16, 128), (8, 512))
    assert main(["triton", str(bundle), "-o", str(tmp_path / "repo"), "--name", "rm"]) == 0
    assert "the graph is given 8 rows at once" in capsys.readouterr().out
    config = read(tmp_path / "repo" / "rm_graph")
    assert (config["backend"], config["default_model_filename"]) == ("tensorrt", "model.plan")
    assert config["cc_model_filenames"] == {"8.9": "model.plan"}
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_GPU", "profile": ["0", "1"]}]
    assert config["max_batch_size"] == 8, "every profile has to take it"
    assert read(tmp_path / "repo" / "rm_ensemble")["max_batch_size"] == 8
    assert read(tmp_path / "repo" / "rm")["parameters"]["graph_batch"] == {"string_value": "8"}
    (plan,) = (tmp_path / "repo" / "rm_graph" / "1").iterdir()
    built = next(plan for plan in open_bundle(bundle).manifest.engines if plan.graph == "plain")
    assert plan.read_bytes() == (bundle / built.file).read_bytes()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"runtime": "tensorrt_rtx"}, "no TensorRT plan that Triton can load"),
        ({"stripped": True}, "compile without --strip"),
        ({"graph_sha256": "0" * 64}, "compile it first"),
    ],
)
def test_plans_that_triton_cannot_load_are_refused(
    bundles: dict[str, Path], tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ExportError, match=reason):
        write_repository(with_plans(bundles, tmp_path, **changes), tmp_path / "repo", TritonOptions(name="rm"))
    assert not (tmp_path / "repo").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"name": "a/b"}, "model name 'a/b'"),
        ({"gpus": (1, 1)}, "name each once"),
        ({"instances": 0}, "instances=0: at least 1"),
        ({"backend": "tensorrt", "gpus": ()}, "TensorRT runs on GPUs only"),
        ({"backend": "tensorrt"}, "TensorRT runs on GPUs only"),
        ({"backend": "python", "graph_batch": 2}, "--graph-batch is of the graph"),
        ({"engine": "openvino"}, "--engine is for the backend python"),
    ],
)
def test_options_that_make_no_repository_are_refused(
    bundles: dict[str, Path], tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ExportError, match=reason):
        write_repository(bundles["armorm"], tmp_path / "repo", TritonOptions(**options))
    assert not (tmp_path / "repo").exists()


def inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.rglob("*") if path.is_file()}


def test_files_are_hard_links_on_one_file_system_and_copies_elsewhere(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = TritonOptions(name="rm", backend="python")
    write_repository(bundles["armorm"], tmp_path / "linked", options)
    source = inodes(bundles["armorm"])
    linked = inodes(tmp_path / "linked" / "rm" / "1" / "bundle")
    assert linked == source

    def elsewhere(*_: Any, **__: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", elsewhere)
    write_repository(bundles["armorm"], tmp_path / "copied", options)
    copied = tmp_path / "copied" / "rm" / "1" / "bundle"
    assert set(inodes(copied)) == set(source)
    assert not set(inodes(copied).values()) & set(source.values())
    open_bundle(copied, verify=True)
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink()]


def test_a_repository_appears_whole_or_not_at_all(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    write_model = repository._write_model

    def full_disk(folder: Path, *arguments: Any) -> None:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(folder.name)
        write_model(folder, *arguments)

    monkeypatch.setattr(repository, "_write_model", full_disk)
    with pytest.raises(ExportError, match="No space left on device"):
        write_repository(bundles["armorm"], tmp_path / "repo", TritonOptions(name="rm"))
    assert written == ["rm"]
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_replaced_only_if_it_is_a_repository_and_with_force(
    bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["triton", str(bundles["armorm"]), "-o", str(tmp_path / "repo"), "--name"]
    assert main([*command, "one"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'repo'}: ask one; also one_graph, one_tokenizer, one_ensemble\n"
    assert main([*command, "two"]) == 1
    assert "exists; pass --force to replace it" in capsys.readouterr().err
    assert main([*command, "two", "--force", "--backend", "python", "--gpus", "0,1"]) == 0
    assert sorted(path.name for path in (tmp_path / "repo").iterdir()) == ["repository.json", "two"]
    described = json.loads((tmp_path / "repo" / "repository.json").read_text())
    assert described["models"] == ["two"]
    assert described["options"]["gpus"] == [0, 1]
    assert described["bundle"]["family"] == "armorm"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    assert main(["triton", str(bundles["armorm"]), "-o", str(tmp_path / "mine"), "--force"]) == 1
    assert "is not a model repository of rm-export triton" in capsys.readouterr().err
    assert main([*command, "x", "--gpus", "first"]) == 2
    assert "write all, none, or numbers" in capsys.readouterr().err


def test_a_model_is_named_after_its_bundle(bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(bundles["pair-pm"], tmp_path / ".my bundle (v2)"))
    written = write_repository(bundle, tmp_path / "repo", TritonOptions())
    assert written.models == ("my_bundle_v2_", "my_bundle_v2__graph")


def test_a_damaged_bundle_makes_no_repository(bundles: dict[str, Path], tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(bundles["armorm"], tmp_path / "damaged"))
    content = bytearray((damaged / "model.onnx").read_bytes())
    content[-1] ^= 1
    (damaged / "model.onnx").write_bytes(content)
    with pytest.raises(BundleError, match="does not match its sha256"):
        write_repository(damaged, tmp_path / "repo", TritonOptions())
    assert not (tmp_path / "repo").exists()


@given(text=st.text())
def test_any_text_is_read_back_as_it_was(text: str) -> None:
    message = model_config_pb2.ModelParameter()
    text_format.Parse(to_prototext({"string_value": text}), message)
    assert message.string_value == text


def test_a_value_that_has_no_place_in_a_configuration_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"1\.5 has no place"):
        to_prototext({"count": 1.5})
