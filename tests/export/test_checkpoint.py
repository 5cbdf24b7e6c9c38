"""Opening a checkpoint folder: what is read, what is left alone, and what is refused in one line."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rm_export.checkpoint import open_checkpoint, read_safetensors_header, read_tensors
from rm_export.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RANDOM = np.random.default_rng(7)
MIXED = {
    "half": RANDOM.normal(size=(3, 5)).astype(np.float16),
    "brain": RANDOM.normal(size=(4, 2, 3)).astype(ml_dtypes.bfloat16),
    "single": RANDOM.normal(size=(7,)).astype(np.float32),
    "double": RANDOM.normal(size=(2, 2)),
    "scalar": np.array(1.5, np.float32),
    "brain_scalar": np.array(0.375, ml_dtypes.bfloat16),
    "empty": np.empty((0, 4), np.float32),
    "no_columns": np.empty((4, 0), ml_dtypes.bfloat16),
    "indices": np.arange(6, dtype=np.int64).reshape(2, 3),
    "mask": np.array([True, False]),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of one small tensor."""
    (tmp_path / "config.json").write_text('{"architectures": ["Some"], "hidden_size": 4}')
    save_file({"weight": np.ones((2, 2), np.float32)}, tmp_path / "model.safetensors")
    return tmp_path


def refused(opening: Callable[[], object]) -> str:
    with pytest.raises(CheckpointError) as caught:
        opening()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return message


def write_raw(path: Path, header: object, body: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file of any header: an object as JSON, or bytes as they are."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + body)
    return path


def entry(shape: Any, begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


# What is read


def test_every_dtype_and_shape_of_one_file_reads_back_equal(tmp_path: Path) -> None:
    save_file(MIXED, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tensors = read_tensors(tmp_path)
    assert set(tensors) == set(MIXED)
    for name, expected in MIXED.items():
        assert tensors[name].dims == expected.shape
        assert tensors[name].dtype == ir.DataType.from_numpy(expected.dtype)
        found = tensors[name].numpy()
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert found.tobytes() == expected.tobytes()


def test_shards_are_joined_by_the_index(folder: Path) -> None:
    save_file({"a": MIXED["half"], "b": MIXED["brain"]}, folder / "model-1.safetensors")
    save_file({"c": MIXED["single"]}, folder / "model-2.safetensors")
    write_index(folder, {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"})
    tensors = open_checkpoint(folder).tensors
    assert sorted(tensors) == ["a", "b", "c"]
    np.testing.assert_array_equal(tensors["c"].numpy(), MIXED["single"])


def test_a_single_file_wins_over_an_index_as_in_transformers(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    assert list(read_tensors(folder)) == ["weight"]


def test_other_safetensors_files_are_left_alone(folder: Path) -> None:
    (folder / "consolidated.safetensors").write_bytes(b"never opened")
    assert list(read_tensors(folder)) == ["weight"]


def test_a_checkpoint_tells_its_id_revision_config_and_digest(folder: Path) -> None:
    named = open_checkpoint(folder, "owner/name", "c0ffee")
    assert (named.id, named.revision, named.architecture) == ("owner/name", "c0ffee", "Some")
    assert named.config["hidden_size"] == 4
    assert named.config_sha256 == hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    assert named.json_file("config.json") == named.config
    assert named.json_file("generation_config.json") == {}
    assert open_checkpoint(folder).id == str(folder)


@pytest.mark.parametrize("architectures", [None, [], "Llama", {"a": 1}, [None], [3], 5])
def test_architectures_that_are_no_list_of_names_count_as_none(folder: Path, architectures: object) -> None:
    (folder / "config.json").write_text(json.dumps({"architectures": architectures}))
    assert open_checkpoint(folder).architecture == ""


def test_opening_many_gigabytes_is_instant_and_reads_only_the_header(tmp_path: Path) -> None:
    gigabytes = 16
    rows = gigabytes * 2**30 // (2 * 4096 * 4)
    size = rows * 4096 * 2
    header = {f"layer.{i}": entry([rows, 4096], i * size, (i + 1) * size, "BF16") for i in range(4)}
    path = write_raw(tmp_path / "model.safetensors", header)
    os.truncate(path, path.stat().st_size + 4 * size)  # a hole: takes no space on the disk
    (tmp_path / "config.json").write_text("{}")
    tracemalloc.start()
    began = time.perf_counter()
    tensors = open_checkpoint(tmp_path).tensors
    seconds = time.perf_counter() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(tensor.nbytes for tensor in tensors.values()) == gigabytes * 2**30
    assert seconds < 1
    assert peak < 2**20


# What is refused: the folder and its JSON files


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    assert "is not a folder" in refused(lambda: open_checkpoint(tmp_path / "nothing"))


def test_a_missing_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "holds no config.json" in refused(lambda: open_checkpoint(folder))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not valid JSON"),
        ("{'a': 1}", "is not valid JSON"),
        ('{"a": 1', "is not valid JSON"),
        ("[1, 2]", "holds a list, not an object"),
        ("null", "holds a NoneType, not an object"),
        ("[" * 200_000, "is not valid JSON"),
        ('{"a":' * 200_000, "is not valid JSON"),
        ('{"a": ' + "9" * 5000 + "}", "is not valid JSON"),
        ("\ufeff{}", "is not valid JSON"),
    ],
    ids=["empty", "quotes", "cut", "list", "null", "deep list", "deep object", "huge number", "BOM"],
)
def test_a_config_that_is_no_json_object_is_refused(folder: Path, text: str, reason: str) -> None:
    (folder / "config.json").write_text(text, "utf-8")
    assert reason in refused(lambda: open_checkpoint(folder))


def test_a_config_that_is_not_utf8_is_refused(folder: Path) -> None:
    (folder / "config.json").write_bytes(b'{"a": "\xff"}')
    assert "is not valid JSON" in refused(lambda: open_checkpoint(folder))


def test_weights_that_are_only_a_pickle_are_refused_with_the_way_to_convert_them(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "training_args.bin").write_bytes(b"")
    assert "holds no model.safetensors and no" in refused(lambda: open_checkpoint(folder))
    (folder / "pytorch_model.bin").write_bytes(b"")
    message = refused(lambda: open_checkpoint(folder))
    assert "pickle ('pytorch_model.bin'), which can run code and is never opened; convert it" in message
    assert "weights_only=True" in message


# What is refused: indexes


@pytest.mark.parametrize("weight_map", [None, {}, [], "model.safetensors"])
def test_an_index_without_a_weight_map_is_refused(folder: Path, weight_map: object) -> None:
    write_index(folder, weight_map)
    assert "has no weight_map" in refused(lambda: open_checkpoint(folder))


@pytest.mark.parametrize(
    "shard",
    [
        "../x.safetensors",
        "/etc/passwd",
        "sub/x.safetensors",
        "..\\x.safetensors",
        "..",
        "",
        "*.safetensors",
        "pytorch_model.bin",
        "a\0.safetensors",
        "a\n.safetensors",
        "x" * 5000 + ".safetensors",
        3,
        None,
        ["x.safetensors"],
    ],
)
def test_an_index_that_names_anything_but_a_file_beside_it_is_refused(folder: Path, shard: object) -> None:
    save_file({"w": np.ones(1, np.float32)}, folder.parent / "x.safetensors")
    write_index(folder, {"w": shard})
    assert "names the shard" in refused(lambda: open_checkpoint(folder))


def test_a_missing_shard_is_named(folder: Path) -> None:
    write_index(folder, {"w": "model-1.safetensors"})
    assert "model-1.safetensors is missing" in refused(lambda: open_checkpoint(folder))


def test_a_tensor_that_no_shard_holds_is_named(folder: Path) -> None:
    save_file({"a": MIXED["single"]}, folder / "model-1.safetensors")
    write_index(folder, {"a": "model-1.safetensors", "b": "model-1.safetensors"})
    assert "lists 'b', which no shard holds" in refused(lambda: open_checkpoint(folder))


def test_a_tensor_that_two_shards_hold_is_refused(folder: Path) -> None:
    for number in (1, 2):
        save_file({"a": MIXED["single"]}, folder / f"model-{number}.safetensors")
    write_index(folder, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    assert "model-2.safetensors holds 'a' again" in refused(lambda: open_checkpoint(folder))


# What is refused: safetensors files

TWO = {"a": entry([2], 0, 8), "b": entry([2], 8, 16)}
DAMAGED = {
    "offset beyond the file": ({"a": entry([4], 0, 16)}, 8, "header tells"),
    "bytes that no tensor claims": ({"a": entry([2], 0, 8)}, 12, "header tells"),
    "overlap": (
        {"a": entry([2], 0, 8), "b": entry([2], 4, 12)},
        12,
        "'b' begins at byte 4, where 8 is next free",
    ),
    "gap": (
        {"a": entry([2], 0, 8), "b": entry([2], 12, 20)},
        20,
        "'b' begins at byte 12, where 8 is next free",
    ),
    "negative offset": ({"a": entry([2], -8, 0)}, 8, "unreadable header entry"),
    "end before begin": ({"a": entry([2], 8, 0)}, 8, "does not fit its bytes 8..0"),
    "shape larger than its bytes": ({"a": entry([4], 0, 8)}, 8, "does not fit its bytes 0..8"),
    "negative dimension": ({"a": entry([-1, -2], 0, 8)}, 8, "unreadable header entry"),
    "overflowing shape": ({"a": entry([2**62, 2**62], 0, 8)}, 8, "does not fit its bytes"),
    "dimension of 4000 digits": ({"a": entry([10**4000], 0, 8)}, 8, "unreadable header entry"),
    "fractional dimension": ({"a": entry([2.0], 0, 8)}, 8, "unreadable header entry"),
    "boolean dimension": ({"a": entry([True], 0, 4)}, 4, "unreadable header entry"),
    "shape that is a text": ({"a": entry("2", 0, 8)}, 8, "unreadable header entry"),
    "shape that is an empty text": ({"a": entry("", 0, 4)}, 4, "unreadable header entry"),
    "three offsets": ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8]}}, 8, "unreadable"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, 8, "unreadable header entry"),
    "entry that is a list": ({"a": [1]}, 0, "unreadable header entry"),
    "long entry": ({"a": "x" * 100_000}, 0, "unreadable header entry"),
    "dtype that is a list": ({"a": entry([2], 0, 8, ["F32"])}, 8, "is stored as"),
    "list": ([1, 2], 0, "damaged safetensors header (no object)"),
    "no JSON": (b"{'a': 1}", 0, "damaged safetensors header"),
    "no UTF-8": (b'{"\xff": 1}', 0, "damaged safetensors header"),
    "deep nesting": (b'{"a":' * 100_000, 0, "damaged safetensors header"),
    "name twice": (b'{"a": 1, "a": 2}', 0, "'a' stands there twice"),
    "field twice": (b'{"a": {"dtype": "F32", "dtype": "F64"}}', 0, "'dtype' stands there twice"),
    "line break in a name": ({"a\nb": entry([2], 0, 4)}, 4, r"'a\nb'"),
}


@pytest.mark.parametrize(("header", "body_bytes", "reason"), DAMAGED.values(), ids=DAMAGED)
def test_a_header_that_does_not_fit_its_file_is_refused(
    tmp_path: Path, header: object, body_bytes: int, reason: str
) -> None:
    path = write_raw(tmp_path / "model.safetensors", header, bytes(body_bytes))
    assert reason in refused(lambda: read_safetensors_header(path))
    with pytest.raises(SafetensorError), safe_open(path, framework="np"):
        pass


def test_a_dtype_that_no_reward_model_uses_is_refused_by_name(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "model.safetensors", {"a": entry([8], 0, 8, "F8_E4M3")}, bytes(8))
    assert "is stored as 'F8_E4M3'; known are F64, F32" in refused(lambda: read_safetensors_header(path))


def test_no_random_damage_is_accepted_that_the_safetensors_library_refuses(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(MIXED, path)
    original = path.read_bytes()
    header_end = 8 + int.from_bytes(original[:8], "little")
    generator = np.random.default_rng(11)
    accepted = 0
    for _ in range(500):
        damaged = bytearray(original)
        for position in generator.integers(0, header_end, generator.integers(1, 3)):
            damaged[position] = generator.choice(np.frombuffer(b'0123456789",:[]{}-.eF\x00\xff', np.uint8))
        path.write_bytes(damaged)
        try:
            names = set(read_safetensors_header(path))
        except CheckpointError:
            continue
        with safe_open(path, framework="np") as file:
            assert set(file.keys()) == names
        accepted += 1
    assert accepted < 100  # the rest hit a tensor's name, or put back what was there


@pytest.mark.parametrize(
    ("size", "reason"), [(0, "too short"), (7, "too short"), (20, "announces a header"), (-1, "header tells")]
)
def test_a_truncated_file_is_refused(folder: Path, size: int, reason: str) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)
    assert reason in refused(lambda: open_checkpoint(folder))


@pytest.mark.parametrize("length", [2**63 + 5, 2**64 - 1, 101 * 2**20, 1000])
def test_a_header_length_beyond_the_file_is_refused_without_allocating_it(tmp_path: Path, length: int) -> None:
    path = write_raw(tmp_path / "model.safetensors", TWO, bytes(16), length)
    assert f"announces a header of {length} bytes" in refused(lambda: read_safetensors_header(path))


def test_a_folder_in_the_place_of_a_file_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    assert "holds no model.safetensors" in refused(lambda: open_checkpoint(folder))


def test_a_file_cut_after_opening_is_refused_when_it_is_read(folder: Path) -> None:
    tensor = open_checkpoint(folder).tensors["weight"]
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - 4)
    assert "ends inside tensor 'weight'" in refused(tensor.numpy)
    path.unlink()
    assert "cannot be read: No such file" in refused(tensor.numpy)
