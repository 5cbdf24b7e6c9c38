"""docs/triton.md: its five commands are run as they stand, and its KServe example hangs together."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rm_runtime import load
from served import TESTS, environment
from tritonserver import arguments_of, environment_of, free_ports

DOCS = TESTS.parent / "docs"
CHAT = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]


def five_commands() -> list[str]:
    section = (DOCS / "triton.md").read_text().partition("## Five commands")[2]
    (block, *_) = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    return [line.removeprefix("$ ") for line in block.splitlines()]


def program(folder: Path, name: str, line: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{line}\n")
    (folder / name).chmod(0o755)


def test_five_commands_lead_from_nothing_to_a_score(triton_environment: Path, tmp_path: Path) -> None:
    if shutil.which("curl") is None and os.environ.get("CI") != "true":
        pytest.skip("curl is not installed")
    commands = five_commands()
    assert len(commands) == 5
    (port,) = free_ports(1)
    programs, work = tmp_path / "programs", tmp_path / "work"
    programs.mkdir()
    work.mkdir()
    export = "import sys; from rm_export.cli import main; sys.exit(main())"
    python_path = environment()["PYTHONPATH"]
    program(programs, "rm-export", f"PYTHONPATH='{python_path}' exec '{sys.executable}' -c '{export}' \"$@\"")
    server, *settings = arguments_of(triton_environment)
    of_server = environment_of(triton_environment)
    variables = " ".join(f"{name}='{of_server[name]}'" for name in ("PATH", "LD_LIBRARY_PATH"))
    command = " ".join([f"exec '{server}'", *settings, "--allow-grpc=false", '"$@"'])
    program(programs, "tritonserver", f"export {variables}\n{command}")
    script = "set -e\n" + "\n".join(commands).replace("8000", str(port)) + "\nkill -TERM $!; wait $! || true\n"
    process = subprocess.Popen(
        ["bash", "-c", script],
        cwd=work,
        env={**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said
    (answer,) = [json.loads(line) for line in re.findall(r'^.*(\{"model_name".*\})', said, re.MULTILINE)]
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    (expected,) = load(work / "bundle", engine="onnxruntime", threads=1).score([CHAT])
    assert abs(outputs["score"][0] - expected.score) < 1e-5
    assert list(json.loads(outputs["replies"][0])) == list(expected.as_json())


def test_the_kserve_example_hangs_together() -> None:
    runtime, service = yaml.safe_load_all((DOCS / "triton-kserve.yaml").read_text())
    assert (runtime["kind"], service["kind"]) == ("ServingRuntime", "InferenceService")
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    formats = [supported["name"] for supported in runtime["spec"]["supportedModelFormats"]]
    assert model["modelFormat"]["name"] in formats
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    (container,) = runtime["spec"]["containers"]
    assert "--model-repository=/mnt/models" in container["args"], "where KServe puts the storageUri"
    assert f"--http-port={container['readinessProbe']['httpGet']['port']}" in container["args"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in runtime["spec"]["volumes"]}
