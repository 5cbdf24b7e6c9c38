"""A checkpoint comes from strangers. Nothing of it may run: no module, no pickle, no template."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest

import checkpoints
from rm_export.checkpoint import open_checkpoint
from rm_export.errors import CheckpointError
from rm_runtime.errors import PromptError
from rm_runtime.prompt_spec import ChatPrompt
from rm_runtime.templates import render_chat

if TYPE_CHECKING:
    from pathlib import Path

MODULES = ["modeling_custom.py", "configuration_custom.py", "tokenization_custom.py", "__init__.py"]

WATCH = """
import os, sys
import rm_export.families.armorm, rm_export.tokenizer
from pathlib import Path
from rm_export.checkpoint import open_checkpoint
from rm_export.families import recognise
from rm_export.options import Options

folder, seen = Path.cwd(), []
data = (".json", ".jinja", ".safetensors", ".model", ".txt")

def watch(event, arguments):
    if event in ("pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "socket.connect"):
        seen.append(f"{event} {arguments!r}")
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path = Path(os.fsdecode(arguments[0])).resolve()
        if path.is_relative_to(folder) and path.suffix not in data:
            seen.append(f"open {path.name}")

sys.addaudithook(watch)
checkpoint = open_checkpoint(folder)
family = recognise(checkpoint)
plan = family.plan(checkpoint, Options())
for tensor in plan.tensors.values():
    tensor.numpy()
print(family.NAME, seen, [name for name in sys.modules if name.endswith("_custom")])
"""


class Bomb:
    """Unpickling this creates the file."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.open, (self.marker, os.O_CREAT | os.O_WRONLY)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that exists once an attack has worked."""
    return tmp_path / "executed"


def watched_reading(folder: Path) -> str:
    """Open, recognise and plan in a process that stands in the folder and notes what is opened and run."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", WATCH],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_bombs_of_these_tests_are_live(marker: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists()


def test_neither_code_nor_pickles_beside_the_weights_are_opened(tmp_path: Path, marker: Path) -> None:
    folder = checkpoints.armorm(tmp_path / "planted")
    for name in MODULES:
        (folder / name).write_text(f"open({str(marker)!r}, 'w').close()\nraise SystemExit('executed')\n")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "tokenizer.pkl"):
        (folder / name).write_bytes(pickle.dumps(Bomb(marker)))
    for name, keys in {
        "config.json": ["AutoConfig", "AutoModel"],
        "tokenizer_config.json": ["AutoTokenizer"],
    }.items():
        document = json.loads((folder / name).read_text("utf-8"))
        document["auto_map"] = dict.fromkeys(keys, "modeling_custom.Custom")
        document["trust_remote_code"] = True
        (folder / name).write_text(json.dumps(document))
    assert watched_reading(folder) == "armorm [] []"
    assert not marker.exists()


def test_a_pickle_in_the_place_of_the_weights_is_refused_unopened(tmp_path: Path, marker: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(CheckpointError, match="can run code and is never opened"):
        open_checkpoint(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize("zipped", [False, True], ids=["pickle", "torch archive"])
def test_a_pickle_under_the_name_of_a_safetensors_file_is_only_a_damaged_file(
    tmp_path: Path, marker: Path, zipped: bool
) -> None:
    (tmp_path / "config.json").write_text("{}")
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Bomb(marker)))
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Bomb(marker)))
    with pytest.raises(CheckpointError, match="announces a header"):
        open_checkpoint(tmp_path)
    assert not marker.exists()


# Chat templates

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch MARKER') }}",
    "{{ joiner.__init__.__globals__['__builtins__'] }}",
    "{{ namespace.__init__.__globals__.sys }}",
    "{{ namespace(__class__=1) }}",
    "{{ self.__init__.__globals__.os }}",
    "{{ dict.__call__.__globals__ }}",
    "{{ raise_exception.__globals__['os'] }}",
    "{{ strftime_now.__closure__[0].cell_contents }}",
    "{{ lipsum.__globals__.os.popen('touch MARKER') }}",
    "{{ (''|attr('__class__')).__mro__ }}",
    "{{ messages|map(attribute='__class__.__mro__')|list }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ ('{0.__class__' ~ '.__mro__}').format('') }}",
    "{{ '{x.__class__.__mro__}'.format_map({'x': ''}) }}",
    "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('touch MARKER') }}",
    "{% extends '/etc/passwd' %}",
]

BOMBS = [
    "{% for i in range(10**9) %}x{% endfor %}",
    "{{ range(10**9)|list }}",
    "{{ range(0, 10**9, 2)|sum }}",
    "{{ 'x' * 10**10 }}",
    "{{ [1] * 10**10 }}",
    "{{ 10 ** (10 ** 9) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for message in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{% if x %}" * 2000 + "{% endif %}" * 2000,
]


@pytest.mark.parametrize("template", [*ESCAPES, *BOMBS], ids=lambda template: template[:60])
def test_a_chat_template_that_attacks_is_refused_in_one_line(template: str, marker: Path) -> None:
    spec = ChatPrompt(template=template.replace("MARKER", str(marker)))
    with pytest.raises(PromptError) as caught:
        render_chat(spec, [{"role": "user", "content": "Hello"}])
    message = str(caught.value)
    assert message.startswith("the chat template ")
    assert "\n" not in message
    assert len(message) < 500
    assert not marker.exists()


def test_a_message_is_text_even_where_it_looks_like_a_template() -> None:
    content = "{{ cycler.__init__.__globals__ }}{% for i in range(10**9) %}"
    spec = ChatPrompt(template="{{ messages[0].content }}")
    assert render_chat(spec, [{"role": "user", "content": content}]) == content
