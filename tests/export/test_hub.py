"""The real huggingface_hub client against a hub on the loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from safetensors.numpy import save_file

from hub_server import HubServer
from rm_export.checkpoint import open_checkpoint
from rm_export.errors import CheckpointError
from rm_export.hub import locate, open_checkpoint_at

if TYPE_CHECKING:
    from collections.abc import Iterator

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
METADATA = [
    "chat_template.jinja",
    "config.json",
    "merges.txt",
    "model.safetensors.index.json",
    "tokenizer.json",
]


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub that holds owner/sharded, and a client with an empty cache that knows no other."""
    with HubServer() as server:
        server.add("owner/sharded", sharded_repository(tmp_path / "sharded"))
        point_client_at(server.url, tmp_path, monkeypatch)
        yield server
    close_session()


def point_client_at(url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name, value in {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "cache"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value)
    close_session()  # the shared HTTP client read the environment of an earlier test


def sharded_repository(folder: Path, value: float = 1.0) -> Path:
    """What a repository holds beside the weights that count: code, pickles, other copies of the weights."""
    (folder / "original").mkdir(parents=True)
    for name, text in {
        "config.json": json.dumps({"architectures": ["LlamaForSequenceClassification"], "value": value}),
        "tokenizer.json": "{}",
        "merges.txt": "a b",
        "chat_template.jinja": "{{ messages }}",
        "README.md": "# card",
        "modeling_custom.py": "raise SystemExit('executed')",
        "pytorch_model.bin": "a pickle",
        "training_args.bin": "a pickle",
        "original/params.json": "{}",
        "original/consolidated.00.pth": "a pickle",
    }.items():
        (folder / name).write_text(text)
    first, second = (np.full((256, 256), value + shard, np.float32) for shard in range(2))
    save_file({"model.first.weight": first}, folder / SHARDS[0])
    save_file({"model.second.weight": second}, folder / SHARDS[1])
    save_file({"model.first.weight": first}, folder / "consolidated.safetensors")
    save_file({"model.first.weight": first}, folder / "original" / "model.safetensors")
    weight_map = {"model.first.weight": SHARDS[0], "model.second.weight": SHARDS[1]}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def repository(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_text('{"architectures": ["Some"]}')
    return folder


def refused(hub_id: str, revision: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        locate(hub_id, revision)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return message


# Where it lies


def test_a_folder_wins_over_a_hub_id_of_the_same_name(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    repository(tmp_path / "owner").joinpath("sharded").mkdir()
    located = locate("owner/sharded")
    assert (located.folder, located.id, located.revision) == (Path("owner/sharded"), "owner/sharded", None)
    assert hub.requests == []


@pytest.mark.parametrize(
    "name",
    [
        "",
        "armorm-copy",
        "a/b/c",
        "./owner/name",
        "/no/such",
        "owner/na me",
        "owner/..",
        "owner/a--b",
        "x" * 5000,
    ],
)
def test_a_name_that_is_neither_a_folder_nor_a_hub_id_is_refused_without_asking_the_hub(
    hub: HubServer, name: str
) -> None:
    assert "neither a folder nor a hub id like owner/name" in refused(name)
    assert hub.requests == []


def test_a_file_is_no_checkpoint_folder(tmp_path: Path) -> None:
    assert "is a file; pass the folder" in refused(str(tmp_path / "sharded" / "config.json"))


def test_a_revision_of_a_local_folder_is_refused(tmp_path: Path) -> None:
    assert "which has no revision 'v2'" in refused(str(tmp_path / "sharded"), "v2")


# What is downloaded


def test_only_data_files_and_the_shards_of_the_index_are_requested(hub: HubServer) -> None:
    folder = locate("owner/sharded").folder
    assert sorted(set(hub.asked_for("HEAD"))) == sorted(set(hub.asked_for())) == sorted(METADATA + SHARDS)
    assert sorted(path.name for path in folder.iterdir()) == sorted(METADATA + SHARDS)


def test_a_snapshot_opens_as_a_checkpoint_though_its_files_are_links(hub: HubServer) -> None:
    checkpoint = open_checkpoint_at("owner/sharded")
    assert (checkpoint.folder / SHARDS[0]).is_symlink()
    assert checkpoint.id == "owner/sharded"
    assert checkpoint.revision == hub.repositories["owner/sharded"].revisions["main"]
    assert checkpoint.architecture == "LlamaForSequenceClassification"
    np.testing.assert_array_equal(
        checkpoint.tensors["model.second.weight"].numpy(), np.full((256, 256), 2.0, np.float32)
    )


def test_metadata_alone_downloads_no_weights(hub: HubServer) -> None:
    located = locate("owner/sharded", files="metadata")
    assert sorted(path.name for path in located.folder.iterdir()) == METADATA
    assert locate("owner/sharded").folder == located.folder


def test_a_single_file_wins_over_an_index_as_in_transformers(hub: HubServer, tmp_path: Path) -> None:
    folder = sharded_repository(tmp_path / "both")
    save_file({"single": np.ones(2, np.float32)}, folder / "model.safetensors")
    hub.add("owner/both", folder)
    assert list(open_checkpoint_at("owner/both").tensors) == ["single"]
    assert not set(SHARDS) & set(hub.asked_for())


def test_a_second_call_downloads_nothing(hub: HubServer) -> None:
    first = locate("owner/sharded")
    hub.requests.clear()
    assert locate("owner/sharded") == first
    assert hub.asked_for() == hub.asked_for("HEAD") == []


def test_a_branch_and_a_commit_name_the_same_snapshot(hub: HubServer, tmp_path: Path) -> None:
    commit = hub.add("owner/sharded", sharded_repository(tmp_path / "v2", value=7.0), revision="release/v2")
    branch = locate("owner/sharded", "release/v2")
    assert branch.revision == commit != locate("owner/sharded").revision
    assert locate("owner/sharded", commit) == branch
    assert open_checkpoint(branch.folder).config["value"] == 7.0


def test_a_moved_branch_is_followed(hub: HubServer, tmp_path: Path) -> None:
    old = locate("owner/sharded")
    moved = sharded_repository(tmp_path / "moved", value=100.5)
    commit = hub.add("owner/sharded", moved)
    assert locate("owner/sharded").revision == commit != old.revision


def test_the_token_goes_to_the_hub_and_not_to_the_storage(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    locate("owner/sharded")
    assert {request.authorization for request in hub.requests if "/storage/" not in request.path} == {
        "Bearer hf_secret"
    }
    assert {request.authorization for request in hub.requests if "/storage/" in request.path} == {None}


def test_the_environment_variables_of_huggingface_hub_are_honoured(hub: HubServer, tmp_path: Path) -> None:
    program = (
        "import sys, rm_export.hub as hub\n"
        "assert 'huggingface_hub' not in sys.modules, 'it is imported only when needed'\n"
        "print(hub.locate('owner/sharded').folder)\n"
    )
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_secret",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "NO_PROXY": "127.0.0.1,localhost",
    }

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program]
        return subprocess.run(command, env=environment | more, capture_output=True, text=True, check=False)

    online = run()
    assert online.returncode == 0, online.stderr
    assert online.stdout.startswith(str(tmp_path / "home" / "hub"))
    assert {request.authorization for request in hub.requests} == {"Bearer hf_secret", None}
    hub.requests.clear()
    offline = run(HF_HUB_OFFLINE="1")
    assert offline.stdout == online.stdout
    assert hub.requests == []


# Interruptions


def test_a_cut_connection_is_resumed_by_range_where_it_broke(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 16 * 1024)
    hub.cut(SHARDS[0], 100_000)
    checkpoint = open_checkpoint_at("owner/sharded")
    ranges = [request.range for request in hub.requests if request.path.endswith(SHARDS[0]) and request.range]
    assert ranges == [f"bytes={100_000 // 16384 * 16384}-"]
    np.testing.assert_array_equal(
        checkpoint.tensors["model.first.weight"].numpy(), np.full((256, 256), 1.0, np.float32)
    )


def test_a_download_that_breaks_off_says_so_and_keeps_the_files_that_are_complete(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.cut(SHARDS[1], *[0] * 10)
    message = refused("owner/sharded")
    assert message.startswith("the download of owner/sharded broke off (")
    assert "run it again to resume" in message
    hub.cuts.clear()
    hub.requests.clear()
    open_checkpoint_at("owner/sharded")
    assert hub.asked_for() == [SHARDS[1]]


# Progress


def test_a_log_gets_plain_lines_about_the_bytes(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    locate("owner/sharded")
    first, *tenths = capsys.readouterr().err.splitlines()
    assert first == "downloading 2 weight files of owner/sharded, 524.5 kB"
    assert tenths[-1] == "  100% of 524.5 kB"
    assert len(tenths) <= 10
    locate("owner/sharded")
    assert capsys.readouterr().err == ""


def test_progress_bars_can_be_switched_off(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._tqdm.HF_HUB_DISABLE_PROGRESS_BARS", True)
    locate("owner/sharded")
    assert capsys.readouterr().err == ""


# Refusals


def test_weights_that_are_only_pickles_are_refused_before_a_byte_of_them_is_requested(
    hub: HubServer, tmp_path: Path
) -> None:
    hub.add("owner/pickled", repository(tmp_path / "pickled", "config.json", "pytorch_model.bin"))
    message = refused("owner/pickled")
    assert "pickle ('pytorch_model.bin'), which can run code and is never opened; convert it" in message
    assert set(hub.asked_for()) == {"config.json"}


def test_a_repository_without_weights_or_config_is_refused(hub: HubServer, tmp_path: Path) -> None:
    hub.add("owner/gguf", repository(tmp_path / "gguf", "config.json", "model.gguf", "training_args.bin"))
    assert "holds no model.safetensors and no model.safetensors.index.json" in refused("owner/gguf")
    hub.add("owner/bare", repository(tmp_path / "bare", "model.safetensors"))
    assert "holds no config.json" in refused("owner/bare")
    assert "model.safetensors" not in hub.asked_for()


@pytest.mark.parametrize(
    "shard", ["../../etc/passwd", "*", "pytorch_model.bin", "modeling_custom.py", "a/b.safetensors"]
)
def test_an_index_cannot_make_the_client_request_anything_else(hub: HubServer, tmp_path: Path, shard: str) -> None:
    folder = repository(tmp_path / "planted", "config.json", "pytorch_model.bin", "modeling_custom.py")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"weight": shard}}))
    hub.add("owner/planted", folder)
    assert f"names the shard {shard!r}" in refused("owner/planted")
    assert set(hub.asked_for()) == {"config.json", "model.safetensors.index.json"}


def test_an_index_that_names_a_shard_the_repository_lacks_is_refused(hub: HubServer, tmp_path: Path) -> None:
    folder = sharded_repository(tmp_path / "incomplete")
    (folder / SHARDS[1]).unlink()
    hub.add("owner/incomplete", folder)
    assert f"names {SHARDS[1]}, which the repository does not hold" in refused("owner/incomplete")
    assert SHARDS[0] not in hub.asked_for()


def test_a_missing_repository_is_told_with_the_login_that_a_private_one_needs(hub: HubServer) -> None:
    message = refused("owner/nothing")
    assert message.startswith(f"owner/nothing is neither a folder nor a model on {hub.url}; check the name")
    assert "`hf auth login` or set HF_TOKEN if it is private" in message
    hub.refuse("owner/private", 401, "RepoNotFound")
    assert "is neither a folder nor a model" in refused("owner/private")


def test_a_missing_revision_is_named(hub: HubServer) -> None:
    assert "owner/sharded has no revision 'v9'" in refused("owner/sharded", "v9")
    assert f"owner/sharded has no revision '{'0' * 40}'" in refused("owner/sharded", "0" * 40)


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_says_how_to_log_in(hub: HubServer, status: int) -> None:
    hub.refuse("owner/sharded", status, "GatedRepo", files_only=True)
    message = refused("owner/sharded")
    assert message.startswith(f"owner/sharded is gated: accept its terms at {hub.url}/owner/sharded")
    assert "`hf auth login` or set HF_TOKEN" in message


def test_a_token_without_permission_is_told(hub: HubServer) -> None:
    hub.refuse("owner/sharded", 403, "Forbidden")
    assert f"{hub.url} refused access to owner/sharded (HTTP 403)" in refused("owner/sharded")


def test_an_unreachable_hub_is_told_with_the_id_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_client_at("http://127.0.0.1:1", tmp_path, monkeypatch)
    message = refused("owner/sharded")
    assert message.startswith("cannot reach http://127.0.0.1:1 for owner/sharded (ConnectError")
    assert "pass a folder: --checkpoint DIR" in message


def test_a_hub_that_fails_is_told(hub: HubServer) -> None:
    hub.refuse("owner/sharded", 500, "Internal")
    message = refused("owner/sharded")
    assert f"cannot reach {hub.url} for owner/sharded (HfHubHTTPError: Server error '500" in message


def test_offline_mode_uses_the_cache_and_tells_what_it_lacks(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = locate("owner/sharded", files="metadata")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate("owner/sharded", files="metadata") == metadata
    for hub_id in ("owner/sharded", "owner/other"):
        message = refused(hub_id)
        assert message.startswith(f"{hub_id} is no folder and not complete in the cache ")
        assert "HF_HUB_OFFLINE" in message
        assert "--checkpoint DIR" in message


def test_an_unreachable_hub_does_not_matter_to_a_complete_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = locate("owner/sharded")
    point_client_at("http://127.0.0.1:1", tmp_path, monkeypatch)
    assert locate("owner/sharded") == complete


def test_a_disk_that_refuses_the_download_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    message = refused("owner/sharded")
    assert "cannot write owner/sharded to the cache" in message
    assert "No space left on device; set HF_HOME" in message
