"""Files answered by a Ray cluster of this machine, whose workers and nodes die and whose drivers are stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

import rm_runtime.jsonl
from fake_models import write_scalar_bundle
from rm_runtime.bulk import ray_pool as ray_pool_module
from rm_runtime.bulk.files import files_of_folder
from rm_runtime.bulk.pool import EnginePool, LocalPool
from rm_runtime.bulk.ray_pool import RayPool, actor_room
from rm_runtime.bulk.run import FileRun, Totals
from rm_runtime.bundle import Bundle, open_bundle
from rm_runtime.cli import main
from rm_runtime.errors import EngineError
from rm_runtime.loading import load
from served import RM_RUNTIME, environment, eventually

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # how Ray takes 127.0.0.1 for a node's address
TESTS = Path(__file__).parent.parent
CHUNK_LINES = 4
OPTIONS: dict[str, Any] = {"engine": "onnxruntime", "device": None, "threads": 1}
CLUSTER_IMPORTS = os.pathsep.join(str(TESTS.parent / name) for name in ("tests/ray_workers", "runtime"))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rm_runtime.jsonl, "CHUNK_LINES", CHUNK_LINES)


class LoopbackCluster:
    """A head without CPUs, where drivers are, and two nodes with one each."""

    def __init__(self, folder: str) -> None:
        from ray.cluster_utils import Cluster

        self._folder = folder
        self._node = {"node_ip_address": "127.0.0.1", "object_store_memory": 80 * 2**20, "include_dashboard": False}
        soon = {"health_check_period_ms": 500, "health_check_failure_threshold": 2, "health_check_initial_delay_ms": 0}
        self._cluster = Cluster(
            initialize_head=True, head_node_args={**self._node, "num_cpus": 0, "_system_config": soon}
        )
        self.address: str = self._cluster.address

    def complete(self) -> None:
        while len(self._cluster.worker_nodes) < 2:
            self._cluster.add_node(**self._node, num_cpus=1)

    def kill_node(self) -> None:
        self._cluster.remove_node(next(iter(self._cluster.worker_nodes)), allow_graceful=False)

    def shutdown(self) -> None:
        self._cluster.shutdown()

    def workers(self, title: str) -> list[int]:
        """Its processes that do what `title` says."""
        found = []
        for process in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                is_ours = f"RAY_TMPDIR={self._folder}".encode() in (process / "environ").read_bytes().split(b"\0")
                if is_ours and (process / "cmdline").read_bytes().startswith(f"ray::{title}".encode()):
                    found.append(int(process.name))
        return found


@pytest.fixture(scope="module")
def started_cluster() -> Iterator[LoopbackCluster]:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(dir="/tmp") as folder:
        patch.setenv("PYTHONPATH", CLUSTER_IMPORTS)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_TMPDIR", folder)  # short, as sockets are in it
        (Path(folder) / "ray").mkdir()
        cluster = LoopbackCluster(folder)
        try:
            yield cluster
        finally:
            cluster.shutdown()


@pytest.fixture
def cluster(started_cluster: LoopbackCluster) -> LoopbackCluster:
    started_cluster.complete()
    return started_cluster


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(write_scalar_bundle(tmp_path_factory.mktemp("bundles") / "scalar"))


def line(answer: str, **more: Any) -> str:
    return json.dumps(
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}], **more}
    )


def write_requests(path: Path, count: int, **befalls: str) -> Path:
    """Requests of several kinds, bad ones too; befalls: rows by number ("_3") and what befalls the worker there."""
    kinds = [line("a"), "", line("longer than it", id="x"), "{bad", line("", responses=["a", "b c", "d e f"])]
    lines = [line(befalls[f"_{row}"]) if f"_{row}" in befalls else kinds[row % len(kinds)] for row in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))
    return path


def as_parquet(path: Path) -> None:
    from pyarrow import Table

    rows = [json.loads(text) for text in path.read_text().splitlines() if text and text != "{bad"]
    kept = [{"messages": row["messages"], "responses": row.get("responses")} for row in rows]
    parquet.write_table(Table.from_pylist(kept), path.with_suffix(".parquet"))
    path.unlink()


def ray_pool(bundle: Bundle, cluster: LoopbackCluster, said: list[str]) -> RayPool:
    return RayPool(bundle, OPTIONS, address=cluster.address, actors=None, say=said.append)


def answer_folder(
    pool: EnginePool, source: Path, output: Path, said: list[str], advance: Callable[[], None] = lambda: None
) -> Totals:
    run = FileRun(pool, {}, ranking=False, column_prefix="", keeps_records=True, say=said.append)
    return run.answer_all(files_of_folder(source, output)[0], advance)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def outputs_of(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in files_of(folder).items() if not Path(name).name.startswith(".")}


def test_a_folder_is_answered_as_by_one_engine_though_workers_and_a_node_die(
    cluster: LoopbackCluster, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_pool_module, "SECONDS_TO_MOVE", 0.5)
    source = tmp_path / "in"
    write_requests(source / "a.jsonl", 150, _21=f"dies once {tmp_path}/flag")
    write_requests(source / "b.jsonl", 50)
    as_parquet(source / "b.jsonl")
    write_requests(source / "c.jsonl", 0)
    write_requests(source / "d.jsonl", 150)
    advances: list[int] = []

    def disaster() -> None:
        advances.append(len(advances))
        if len(advances) == 12:
            reader, *_ = cluster.workers("ReadChunkSource")
            os.kill(reader, signal.SIGKILL)
        if len(advances) == 25:
            cluster.kill_node()

    said: list[str] = []
    with ray_pool(bundle, cluster, said) as pool:
        totals = answer_folder(pool, source, tmp_path / "out", said, disaster)
    local = answer_folder(LocalPool(lambda: load(bundle.path, **OPTIONS)), source, tmp_path / "local", [])
    assert totals == local
    assert len(advances) > 60
    assert outputs_of(tmp_path / "out") == outputs_of(tmp_path / "local")
    assert said == [
        f"{source / 'a.jsonl'}: lines 21 to 24: 1 worker died while answering; another has answered",
        "a node of the Ray cluster is gone; actors start anew on those that are left",
    ]


def test_what_kills_every_worker_ends_the_run_which_goes_on_elsewhere(
    cluster: LoopbackCluster, bundle: Bundle, tmp_path: Path
) -> None:
    path = write_requests(tmp_path / "in" / "a.jsonl", 40, _21="dies")
    said: list[str] = []
    with (
        ray_pool(bundle, cluster, said) as pool,
        pytest.raises(
            EngineError, match=rf"^{path}: lines 21 to 24: 3 workers died while answering; give each more memory"
        ),
    ):
        answer_folder(pool, path.parent, tmp_path / "out", said)
    assert not [line for line in said if "another has answered" in line]
    eventually(lambda: not cluster.workers("MapWorker"))
    said.clear()
    local = LocalPool(lambda: load(bundle.path, **OPTIONS))
    answer_folder(local, path.parent, tmp_path / "out", said)
    assert said == [f"{tmp_path / 'out' / 'a.jsonl'} goes on after 16 answers of an earlier run"]
    answer_folder(local, path.parent, tmp_path / "local", [])
    assert outputs_of(tmp_path / "out") == outputs_of(tmp_path / "local")


def test_an_actor_says_why_it_cannot_load_the_bundle(cluster: LoopbackCluster, bundle: Bundle, tmp_path: Path) -> None:
    path = write_requests(tmp_path / "in" / "a.jsonl", 4)
    other = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, pad_token_id=1))
    with (
        ray_pool(other, cluster, []) as pool,
        pytest.raises(EngineError, match=rf"^node 127.0.0.1: {bundle.path} is another bundle than where the command"),
    ):
        answer_folder(pool, path.parent, tmp_path / "out", [])
    assert files_of(tmp_path / "out") == {}


@contextlib.contextmanager
def command(bundle: Bundle, source: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    program = f"import rm_runtime.jsonl; rm_runtime.jsonl.CHUNK_LINES = {CHUNK_LINES}; {RM_RUNTIME}"
    files = ["-i", str(source), "-o", str(source.with_name("out.jsonl"))]
    run = subprocess.Popen(
        [sys.executable, "-c", program, "score", str(bundle.path), *files, "--threads", "1", *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield run
    finally:
        run.kill()
        run.communicate()


def test_a_driver_that_is_stopped_or_killed_goes_on(cluster: LoopbackCluster, bundle: Bundle, tmp_path: Path) -> None:
    flags = {row: f"waits for {tmp_path}/flag{row}" for row in (20, 40, 60)}
    source = write_requests(tmp_path / "in.jsonl", 80, **{f"_{row}": flag for row, flag in flags.items()})
    progress = tmp_path / ".out.jsonl.progress"
    stops = {20: (signal.SIGINT, 130), 40: (signal.SIGTERM, 143), 60: (signal.SIGKILL, -9)}
    answered = 0
    for row, (stop, status) in stops.items():
        with command(bundle, source, "--engine-pool", "ray", "--ray-address", cluster.address) as run:
            eventually(
                lambda row=row: progress.exists() and json.loads(progress.read_bytes())["position"]["lines"] >= row
            )
            before, answered = answered, json.loads(progress.read_bytes())["answers"]
            run.send_signal(stop)
            out, err = run.communicate()
        assert (run.returncode, out) == (status, "")
        assert "Traceback" not in err
        assert (f"goes on after {before} answers" in err) == bool(before)
        eventually(lambda: not cluster.workers("MapWorker"))
        (tmp_path / f"flag{row}").touch()
    with command(bundle, source, "--engine-pool", "ray", "--ray-address", "local") as run:
        out, err = run.communicate()
    assert f"goes on after {answered} answers" in err
    assert (run.returncode, out) == (1, "")
    output = (tmp_path / "out.jsonl").read_bytes()
    (tmp_path / "out.jsonl").unlink()
    with command(bundle, source) as run:
        run.communicate()
    assert (tmp_path / "out.jsonl").read_bytes() == output


@pytest.mark.parametrize(
    ("nodes", "threads", "on_gpu", "actors"),
    [
        ([{"CPU": 8.0}, {"CPU": 4.0}], None, False, (4, 3)),
        ([{"CPU": 8.0}, {"CPU": 4.0}], 3, False, (3, 3)),
        ([{"CPU": 8.0}, {"memory": 4.0}], 16, False, (16, 0)),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 64.0}], None, True, (4, 2)),
        ([{"CPU": 1.0, "GPU": 2.0}], None, True, (1, 1)),
        ([{"CPU": 64.0}], None, True, (1, 0)),
        ([], None, False, (1, 0)),
    ],
)
def test_actors_are_as_many_as_the_nodes_have_room_for(
    nodes: list[dict[str, float]], threads: int | None, on_gpu: bool, actors: tuple[int, int]
) -> None:
    assert actor_room(nodes, threads, on_gpu) == actors


@pytest.fixture
def requests(tmp_path: Path) -> list[str]:
    return ["-i", str(write_requests(tmp_path / "in.jsonl", 4)), "-o", str(tmp_path / "out.jsonl")]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:9", "no Ray cluster at 127.0.0.1:9: [Errno 111] Connection refused; ray status shows it"),
        ("ray://127.0.0.1:9", "--ray-address ray://127.0.0.1:9: host:port of the cluster's head"),
        ("127.0.0.1", "--ray-address 127.0.0.1: host:port of the cluster's head"),
    ],
)
def test_a_cluster_that_is_not_there_is_one_line(
    bundle: Bundle, requests: list[str], capfd: pytest.CaptureFixture[str], address: str, reason: str
) -> None:
    assert main(["score", str(bundle.path), *requests, "--engine-pool", "ray", "--ray-address", address]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert reason in err
    assert err.count("\n") == 1
    assert not Path(requests[-1]).exists()


def test_what_listens_and_is_no_cluster_is_waited_for_so_long(
    bundle: Bundle, requests: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_pool_module, "CONNECT_SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert main(["score", str(bundle.path), *requests, "--engine-pool", "ray", "--ray-address", address]) == 1
    assert f"no Ray cluster at {address}: no answer in 2 s" in capfd.readouterr().err


def test_without_ray_the_extra_is_named(
    bundle: Bundle, requests: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["score", str(bundle.path), *requests, "--engine-pool", "ray"]) == 1
    assert "pip install 'rm-export[ray]'" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--engine-pool", "ray"], "--engine-pool ray answers files into files"),
        (["--actors", "2"], "--ray-address and --actors belong to --engine-pool ray"),
    ],
)
def test_what_ray_is_not_for_is_misuse(
    bundle: Bundle, capfd: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    assert main(["score", str(bundle.path), *arguments]) == 2
    assert reason in capfd.readouterr().err
