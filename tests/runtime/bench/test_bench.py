"""rm-runtime bench as a whole: contenders in their own processes, small real bundles, few rows."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench_reports import contender, report
from fake_models import write_scalar_bundle
from rm_runtime import EngineError, RequestError
from rm_runtime.bench import contenders, measure
from rm_runtime.bench.contenders import Contender, ContenderSpec, contender_specs
from rm_runtime.bench.machine import machine_facts, versions_of
from rm_runtime.bench.measure import BenchSettings, bench
from rm_runtime.bench.report_schema import report_fault
from rm_runtime.bench.table import report_lines
from rm_runtime.bench.worker import memory
from rm_runtime.cli import main
from rm_runtime.engines import ENGINES, EngineRecord

FEW = {"queries": 4, "warmup": 1, "rounds": 2, "threads": 1}
FLAGS = ["--queries", "4", "--warmup", "1", "--rounds", "2", "--threads", "1"]
ENGINE_WORKER = "rm_runtime.bench.worker"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scalar_bundle(tmp_path_factory.mktemp("bundles") / "scalar")


@pytest.fixture(scope="module")
def measured(bundle: Path) -> dict[str, Any]:
    return bench(bundle, BenchSettings(engines=("onnxruntime", "openvino"), **FEW))  # type: ignore[arg-type]  # mixed


def settings_of(bundle: Path, **changes: Any) -> dict[str, Any]:
    common = {"threads": 1, "device": None, "batch_tokens": 64, "batch_rows": 8, "checkpoint": None}
    common |= {"share_prefixes": True}
    return {"bundle": str(bundle), **common, "rows": [[1, 2, 3], [4]], **changes}


def test_a_report_fits_its_schema_and_has_every_figure_of_every_contender(measured: dict[str, Any]) -> None:
    assert report_fault(measured) is None
    assert [contender["name"] for contender in measured["contenders"]] == ["onnxruntime", "openvino"]
    for one in measured["contenders"]:
        assert one["failure"] is None
        assert one["versions"]
        assert {"single_stream", "offline", "server"} <= set(one)
        assert one["single_stream"]["queries"] == measured["rows"]["count"] == 4
        assert len(one["offline"]["rounds"]) == 2
        assert one["peak_bytes"] >= one["loaded_bytes"] > 2**20
    assert measured["auto"] == "onnxruntime"
    assert measured["settings"]["threads"] == 1


def test_only_the_scenarios_asked_for_are_run(bundle: Path) -> None:
    (only,) = bench(bundle, BenchSettings(scenarios=("offline",), **FEW))["contenders"]  # type: ignore[arg-type]  # mixed
    assert "offline" in only
    assert not {"single_stream", "server"} & set(only)


def test_one_at_a_time_no_two_contenders_are_open_together(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    still_open: list[list[str]] = []

    class Watched(Contender):
        def __init__(self, spec: ContenderSpec, settings: dict[str, Any]) -> None:
            super().__init__(spec, settings)
            still_open.append([*(still_open[-1] if still_open else []), spec.name])

        def close(self) -> int | None:
            still_open.append([name for name in still_open[-1] if name != self.spec.name])
            return super().close()

    monkeypatch.setattr(measure, "Contender", Watched)
    settings = BenchSettings(("onnxruntime", "openvino"), scenarios=("offline",), one_at_a_time=True, **FEW)  # type: ignore[arg-type]  # mixed
    found = bench(bundle, settings)
    assert still_open == [["onnxruntime"], [], ["openvino"], []]
    assert report_fault(found) is None
    assert [one["offline"]["seconds"] > 0 for one in found["contenders"]] == [True, True]
    assert any("one after the other" in line for line in report_lines(found))


def test_a_contender_that_cannot_be_opened_is_named_and_the_others_are_measured(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = ContenderSpec("abacus", ENGINE_WORKER)
    monkeypatch.setattr(measure, "contender_specs", lambda *_: [broken, *contender_specs(["onnxruntime"])])
    found = bench(bundle, BenchSettings(scenarios=("offline",), **FEW))  # type: ignore[arg-type]  # mixed
    assert report_fault(found) is None
    abacus, onnxruntime = found["contenders"]
    assert abacus["failure"].startswith("abacus: unknown engine 'abacus'")
    assert onnxruntime["offline"]["seconds"] > 0
    monkeypatch.setattr(measure, "contender_specs", lambda *_: [broken])
    with pytest.raises(EngineError, match="abacus: unknown engine"):
        bench(bundle, BenchSettings(**FEW))  # type: ignore[arg-type]  # mixed


def test_a_row_without_a_score_ends_its_contender(tmp_path: Path) -> None:
    damaged = write_scalar_bundle(tmp_path / "nan", score="nan")
    with pytest.raises(EngineError, match="onnxruntime gave no number for 1 of 1 rows"):
        Contender(ContenderSpec("onnxruntime", ENGINE_WORKER), settings_of(damaged))


def test_a_process_that_is_killed_is_told_apart(bundle: Path) -> None:
    opened = Contender(ContenderSpec("onnxruntime", ENGINE_WORKER), settings_of(bundle))
    try:
        assert opened.run([0, 1]) > 0
        opened._process.send_signal(signal.SIGKILL)
        opened._process.wait()
        with pytest.raises(EngineError, match="onnxruntime: its process was killed"):
            opened.run([0])
    finally:
        opened.stop()


def test_a_worker_that_breaks_gives_its_last_words(bundle: Path) -> None:
    with pytest.raises(EngineError, match=r"x: .*No module named rm_runtime\.nothing"):
        Contender(ContenderSpec("x", "rm_runtime.nothing"), settings_of(bundle))


def test_a_module_in_the_working_folder_is_not_run(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise SystemExit('it was run')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    opened = Contender(ContenderSpec("onnxruntime", ENGINE_WORKER), settings_of(bundle))
    assert opened.run([0]) > 0
    opened.stop()


def test_peak_memory_is_that_of_the_contenders_own_process(bundle: Path) -> None:
    ballast = bytearray(400 * 2**20)
    opened = Contender(ContenderSpec("onnxruntime", ENGINE_WORKER), settings_of(bundle))
    peak = opened.close()
    assert peak is not None
    assert peak < len(ballast)


def test_all_means_every_engine_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = EngineRecord("nothing", "open", "a_package_that_is_not_there", "nothing", False)
    monkeypatch.setitem(ENGINES, "missing", missing)
    names = [spec.name for spec in contender_specs(["all"])]
    assert "onnxruntime" in names
    assert "missing" not in names
    assert [spec.name for spec in contender_specs(["openvino", "auto", "openvino"])] == ["openvino", "auto"]


def test_the_reference_is_two_contenders_and_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = contender_specs(["auto"], "hf")
    assert [spec.name for spec in specs] == ["auto", "hf-float32", "hf-bfloat16"]
    assert [spec.is_reference for spec in specs] == [False, True, True]
    monkeypatch.setattr(contenders, "find_spec", lambda name: None if name == "torch" else object())
    with pytest.raises(EngineError, match=r"needs torch; pip install 'rm-export\[reference\]'"):
        contender_specs(["auto"], "hf")
    with pytest.raises(RequestError, match="called 'tf'"):
        contender_specs(["auto"], "tf")


@pytest.mark.parametrize(
    "changes",
    [
        {"queries": 0},
        {"rounds": 0},
        {"warmup": -1},
        {"rate": 0.0},
        {"p99_ms": 0.0},
        {"batch_tokens": 0},
        {"scenarios": ()},
        {"scenarios": ("multi-stream",)},
    ],
)
def test_settings_that_measure_nothing_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(changes))):
        BenchSettings(**changes)


def test_machine_facts_name_the_cpu_and_the_flags_that_matter(tmp_path: Path) -> None:
    cpuinfo, meminfo = tmp_path / "cpuinfo", tmp_path / "meminfo"
    cpuinfo.write_text("model name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2 avx512_vnni amx_int8 sse\n")
    meminfo.write_text("MemTotal:       16777216 kB\nMemFree: 1 kB\n")
    facts = machine_facts(cpuinfo, meminfo)
    assert facts["cpu"] == "Some CPU @ 2 GHz"
    assert facts["flags"] == ["avx2", "avx512_vnni", "amx_int8"]
    assert facts["memory_gib"] == 16.0
    assert facts["cores"]["usable"] >= 1
    nowhere = machine_facts(tmp_path / "none", tmp_path / "none")
    assert nowhere["cpu"]
    assert (nowhere["flags"], nowhere["memory_gib"]) == ([], None)


def test_versions_are_those_of_installed_packages() -> None:
    assert set(versions_of("numpy", "a-package-that-is-not-there")) == {"numpy"}


def test_memory_is_in_bytes_and_none_where_the_system_does_not_tell(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name: x\nVmHWM:\t  12 kB\n")
    assert memory("VmHWM", tmp_path / "status") == 12 * 1024
    assert memory("VmRSS", tmp_path / "status") is None
    assert memory("VmHWM", tmp_path / "none") is None


def test_the_command_writes_report_and_plot_and_prints_a_table(
    bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    json_path, plot = tmp_path / "r.json", tmp_path / "r.svg"
    scenario = ["--scenario", "offline", "--scenario", "single-stream"]
    assert main(["bench", str(bundle), *FLAGS, *scenario, "--json", str(json_path), "--plot", str(plot)]) == 0
    out, err = capfd.readouterr()
    written = json.loads(json_path.read_text())
    assert report_fault(written) is None
    assert written["settings"]["scenarios"] == ["single-stream", "offline"]
    assert plot.read_text().startswith("<svg")
    assert out.splitlines()[-1] == 'engine="auto" takes onnxruntime for this bundle'
    assert err == ""


def test_a_named_contender_that_fails_makes_the_exit_status_1(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = EngineRecord("nothing", "open", "onnxruntime", "nothing", False)
    monkeypatch.setitem(ENGINES, "openvino", broken)
    monkeypatch.setattr(measure, "bench", lambda *_, **__: report(contender(), {**contender("x"), "failure": "why"}))
    assert main(["bench", str(bundle), *FLAGS]) == 1
    assert "not measured: why" in capfd.readouterr().out
    assert main(["bench", str(bundle), *FLAGS, "--engine", "all"]) == 0


def test_the_command_compares_two_reports(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path in paths:
        path.write_text(json.dumps(report()))
    assert main(["bench", "--compare", *map(str, paths)]) == 0
    assert capfd.readouterr().out.startswith("onnxruntime: B over A")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["bench"], 2),
        (["bench", "b", "--compare", "x", "y"], 2),
        (["bench", "b", "--queries", "0"], 2),
        (["bench", "b", "--engine", "pytorch"], 2),
        (["bench", "b", "--scenario", "multi-stream"], 2),
        (["bench", "b", "--rate", "0"], 2),
        (["bench", "b", "--chats", "/nonexistent.jsonl"], 2),
        (["bench", "b", "--json", "/nonexistent/r.json"], 2),
        (["bench", "/nowhere"], 1),
        (["bench", "b", "--plot", "p.png"], 1),
        (["bench", "--compare", "/nonexistent", "/nonexistent"], 1),
    ],
)
def test_misuse_is_one_line(arguments: list[str], status: int, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == status
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("rm-runtime: error: ")
    assert err.count("\n") == 1


def test_the_parent_process_imports_neither_torch_nor_the_exporter(bundle: Path) -> None:
    program = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from rm_runtime.bench.measure import BenchSettings, bench\n"
        "from rm_runtime.bench import comparison, plot, table\n"
        "from pathlib import Path\n"
        f"bench(Path({str(bundle)!r}), BenchSettings(scenarios=('offline',), queries=1, rounds=1))\n"
        "heavy = ('torch', 'transformers', 'rm_export', 'rm_calibration', 'onnxruntime')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
