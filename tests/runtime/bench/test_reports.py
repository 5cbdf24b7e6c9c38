"""What a report holds, and what is made of it: a table, a comparison, a drawing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from jsonschema import Draft202012Validator

from bench_reports import contender, failed, report
from rm_runtime.bench.comparison import comparison_lines, read_report
from rm_runtime.bench.plot import PANELS, svg, write_plot
from rm_runtime.bench.report_schema import report_fault, report_schema
from rm_runtime.bench.table import report_lines
from rm_runtime.errors import RequestError


def test_the_schema_is_a_schema_and_describes_a_report() -> None:
    Draft202012Validator.check_schema(report_schema())
    assert report_fault(report(contender(), failed("openvino"))) is None


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"kind": "something"}, "at kind"),
        ({"format": 2}, "at format"),
        ({"contenders": []}, "at contenders"),
        ({"contenders": [{"name": "x", "reference": False, "failure": None}]}, "at contenders/0"),
        ({"extra": 1}, "at the top level"),
    ],
)
def test_a_document_that_is_no_report_is_told_where(change: dict[str, Any], place: str) -> None:
    fault = report_fault({**report(), **change})
    assert fault is not None
    assert fault.startswith(place)


def test_the_table_has_a_line_a_contender_and_tells_what_auto_takes() -> None:
    lines = list(report_lines(report(contender(), contender("hf-float32", reference=True), failed("openvino"))))
    (row,) = [line for line in lines if line.startswith("onnxruntime ")]
    assert row.split() == ["onnxruntime", "20.0", "40.0", "80.0", "1000", "2.00", "1.25", "2.0", "2.00"]
    assert any(line.startswith("hf-float32 ") for line in lines)
    assert "not measured: openvino: it <broke>" in lines
    assert lines[-1] == 'engine="auto" takes onnxruntime for this bundle'


def test_a_busy_machine_is_said_and_a_quiet_one_is_not() -> None:
    busy = report()
    busy["machine"]["load_average"] = 3.9
    warning = "the machine was busy (load 3.9 on 4 cores): times are too long, ratios rough"
    assert warning in list(report_lines(busy))
    assert not [line for line in report_lines(report()) if "busy" in line]


def test_scenarios_that_did_not_run_leave_their_columns_empty() -> None:
    bare = contender(peak_bytes=None)
    for scenario in ("single_stream", "offline", "server"):
        del bare[scenario]
    (row,) = [line for line in report_lines(report(bare)) if line.startswith("onnxruntime ")]
    assert row.split() == ["onnxruntime", "2.0"]


def test_a_bound_that_no_rate_keeps_is_said_with_the_latency_found() -> None:
    slow = contender(server={**contender()["server"], "met": False, "p99_ms": 1800.0, "rate": 0.05})
    assert "server: onnxruntime keeps 99 % within 1000 ms at no rate tried (1800 ms at 0.05/s)" in list(
        report_lines(report(slow))
    )


def test_ratios_above_one_mean_that_the_second_report_is_better() -> None:
    faster = contender(
        single_stream={**contender()["single_stream"], "p50_ms": 10.0},
        offline={**contender()["offline"], "tokens_per_second": 500.0},
        peak_bytes=2**30,
    )
    lines = list(comparison_lines(report(), report(faster)))
    assert lines[0] == "onnxruntime: B over A, above 1 is better"
    ratios = {" ".join(line.split()[:2]): line.split("x")[0].split()[-1] for line in lines[1:]}
    assert ratios == {
        "p50 latency": "2.00",
        "p90 latency": "1.00",
        "p99 latency": "1.00",
        "offline tokens/s": "0.50",
        "server goodput": "1.00",
        "load time": "1.00",
        "peak memory": "2.00",
    }


def test_what_makes_a_comparison_unfair_comes_first() -> None:
    other = report()
    other["rows"]["sha256"] = "2" * 64
    other["machine"]["cpu"] = "Another"
    other["settings"] |= {"p99_ms": 50.0, "engines": ["all"]}
    other["bundle"]["precision"] = "fp32"
    lines = list(comparison_lines(report(), other))
    assert lines[:4] == [
        "the rows differ: latencies and conversations are of other lengths",
        'machine, cpu: "A CPU" in A, "Another" in B',
        "settings, p99_ms: 1000.0 in A, 50.0 in B",
        'bundle, precision: "int8" in A, "fp32" in B',
    ]


def test_contenders_are_matched_by_name_and_two_lone_ones_whatever_their_names() -> None:
    lines = list(comparison_lines(report(contender("a"), contender("b")), report(contender("b"), contender("c"))))
    assert [line for line in lines if "above 1" in line] == ["b: B over A, above 1 is better"]
    lone = list(comparison_lines(report(contender("a"), failed("b")), report(contender("b"))))
    assert lone[0] == "a -> b: B over A, above 1 is better"
    with pytest.raises(RequestError, match="no contender ran in both: a, b in A, c in B"):
        list(comparison_lines(report(contender("a"), contender("b")), report(contender("c"))))


@pytest.mark.parametrize(
    ("content", "reason"), [("{", "is not JSON"), ("[]", "is no report"), ('{"kind": 1}', "is no report")]
)
def test_a_file_that_is_no_report_is_one_line(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(RequestError, match=reason) as caught:
        read_report(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(RequestError, match="cannot be read"):
        read_report(tmp_path / "none.json")


def test_a_report_read_again_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(report()))
    assert read_report(tmp_path / "r.json") == report()


def test_the_drawing_has_a_bar_a_figure_in_proportion_and_no_contender_that_failed() -> None:
    half = contender("hf-float32", reference=True, load_seconds=1.0)
    root = ElementTree.fromstring(svg(report(contender(), half, failed("openvino"))))
    bars = [node for node in root.iter() if node.tag.endswith("rect")]
    assert len(bars) == 2 * len(PANELS)
    by_class = {kind: [bar for bar in bars if bar.get("class") == kind] for kind in ("bar", "reference")}
    load = [float(by_class[kind][3].get("width", "")) for kind in ("bar", "reference")]
    assert load[0] == pytest.approx(2 * load[1])
    assert "openvino" not in "".join(root.itertext())
    assert "1,000" in root.itertext()


def test_names_cannot_break_out_of_the_drawing(tmp_path: Path) -> None:
    hostile = report()
    hostile["bundle"]["path"] = "<script>&"
    ElementTree.fromstring(svg(hostile))
    write_plot(hostile, tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;&amp;" in page


def test_panels_without_figures_are_left_out() -> None:
    bare = contender()
    del bare["server"], bare["offline"]
    text = svg(report(bare))
    assert "offline" not in text
    assert "single stream" in text


def test_a_plot_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"ends in \.svg or \.html"):
        write_plot(report(), tmp_path / "p.png")
