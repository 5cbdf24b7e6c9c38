"""parity.html is one safe page: untrusted text is escaped, and nothing is loaded from anywhere."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from rm_calibration.comparison import compare_scores, compare_within_groups
from rm_calibration.conversations import Example
from rm_calibration.recipe import Activation, Calibration, Gemm, Recipe, Source
from rm_export.parity import LengthBucket, OutputError, Parity, ScoredRow
from rm_export.report import render_report

HOSTILE = (
    "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(1)>"
    "\"'></td></table><style>@import 'https://evil.example/y'</style>{{ 7 * 7 }}{% raw %}&amp;\u202e"
)
REFERENCE, BUNDLE = [0.0, 1.0, 2.0, -1.5], [0.01, 1.0, 1.99, -1.5]


def a_parity(reference: list[float], bundle: list[float], **changes: Any) -> Parity:
    rows = tuple(
        ScoredRow(line=row // 2, responses=(row % 2,), tokens=10 + row, cut=0, reference=one, bundle=other)
        for row, (one, other) in enumerate(zip(reference, bundle, strict=True))
    )
    parity = Parity(
        family="armorm",
        precision="fp16",
        target="cpu",
        engine="onnxruntime",
        source="RLHFlow/ArmoRM-Llama3-8B-v0.1",
        versions={"torch": "2.13.0"},
        examples=2,
        pairwise=False,
        rows=rows,
        agreement=compare_scores(reference, bundle),
        preferences=compare_within_groups(reference, bundle, [row.line for row in rows]),
        outputs=(
            OutputError("score", None, 1.0, 0.01, 0.005),
            OutputError("rewards", "helpsteer-verbosity", 2.0, 0.02, 0.01),
            OutputError("gating", "helpsteer-verbosity", 0.0, 0.0, 0.0),
        ),
        lengths=(LengthBucket(10, 11, 2, 0.01, 0.005), LengthBucket(12, 13, 2, 0.0, 0.0)),
        not_rendered={},
    )
    return replace(parity, **changes)


def examples(text: str = "Hello") -> list[Example]:
    return [Example(({"role": text, "content": text},), (f"{text} one", f"{text} two"))] * 2


class Page(HTMLParser):
    """Tags, attributes and visible text of a page; every opened tag must be closed in order."""

    VOID = ("meta", "br", "img", "link", "input")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attributes]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attributes]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_verdict_is_the_headline() -> None:
    page = Page(render_report(a_parity(REFERENCE, BUNDLE), examples()))
    assert "0 of 6 pairs ranked differently" in page.text
    flipped = a_parity([0.0, 1.0], [1.0, 0.0])
    assert "1 of 1 pairs ranked differently" in Page(render_report(flipped, examples())).text
    pairwise = a_parity(REFERENCE, BUNDLE, pairwise=True)
    assert "0 of 2 preferences decided differently" in Page(render_report(pairwise, examples())).text


def test_hostile_text_is_only_text() -> None:
    parity = a_parity(
        REFERENCE,
        BUNDLE,
        source=HOSTILE,
        engine=HOSTILE,
        versions={HOSTILE: HOSTILE},
        not_rendered={HOSTILE: 3},
        outputs=(OutputError(HOSTILE, HOSTILE, 1.0, 0.1, 0.1),),
    )
    page = Page(render_report(parity, examples(HOSTILE)))
    assert HOSTILE in page.text  # as it was typed, template marks included
    assert not {"script", "img", "link", "iframe", "object", "a", "base"} & set(page.tags)
    assert page.tags.count("style") == 1
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_nothing_is_loaded_from_anywhere() -> None:
    html = render_report(a_parity(REFERENCE, BUNDLE), examples())
    assert not re.findall(r"https?:|//[a-z]|url\(|@import|<script|<link", html)
    page = Page(html)
    assert not {"src", "href", "srcset", "data", "action"} & {name for name, _ in page.attributes}
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_it_has_a_dark_side_and_its_charts_name_themselves() -> None:
    html = render_report(a_parity(REFERENCE, BUNDLE), examples())
    assert "prefers-color-scheme: dark" in html
    labels = [value for name, value in Page(html).attributes if name == "aria-label"]
    assert labels == ["Every row's score by the reference and by the bundle", "Score error by row length"]


def test_every_row_is_a_dot_until_there_are_too_many() -> None:
    assert render_report(a_parity(REFERENCE, BUNDLE), examples()).count('class="point"') == 4
    parity = a_parity(REFERENCE, BUNDLE)
    many = replace(parity, rows=parity.rows * 5000)
    assert 2000 < render_report(many, examples()).count('class="point"') <= 4000


def test_objectives_stand_in_a_table_and_whole_outputs_do_not() -> None:
    page = Page(render_report(a_parity(REFERENCE, BUNDLE), examples()))
    assert "helpsteer-verbosity" in page.text
    only_score = a_parity(REFERENCE, BUNDLE, outputs=(OutputError("score", None, 1.0, 0.01, 0.005),))
    assert "Error by objective" not in Page(render_report(only_score, examples())).text


def test_long_texts_are_shortened() -> None:
    html = render_report(a_parity(REFERENCE, BUNDLE), examples("word " * 20_000))
    assert len(html) < 60_000


@pytest.mark.parametrize(
    ("reference", "bundle"),
    [([1.0], [1.0]), ([2.0, 2.0], [2.0, 2.0]), ([0.0, 1e-30], [0.0, 1e-30]), ([-1e30, 1e30], [1e30, -1e30])],
)
def test_degenerate_scores_still_make_a_page(reference: list[float], bundle: list[float]) -> None:
    parity = a_parity(reference, bundle, lengths=(LengthBucket(5, 5, len(reference), 0.0, 0.0),))
    html = render_report(parity, examples())
    assert "nan" not in Page(html).text.lower().split()
    assert "inf" not in Page(html).text.lower().split()


def test_rows_that_could_not_be_scored_are_told() -> None:
    parity = a_parity(REFERENCE, BUNDLE, not_rendered={"System role not supported": 6})
    faulty = replace(parity, rows=(*parity.rows, replace(parity.rows[0], bundle=None)))
    text = Page(render_report(faulty, examples())).text
    assert "6 rows are not compared" in text
    assert "System role not supported" in text
    assert "1 row is scored by one side only" in text


def test_a_recipe_is_shown_with_every_inputs_range_effect_and_decision() -> None:
    recipe = Recipe(
        family="grm",
        source=Source("<script>", "0" * 64),
        calibration=Calibration("0" * 64, 2, 10, "mse"),
        activations={
            f"model.layers.{layer}.mlp.down_proj.input": Activation(3.5, 3.5 / 127, "mse", 900.0, 4.5, 0.5, (3, 0))
            for layer in (2, 10)
        },
        gemms={
            f"model.layers.{layer}.mlp.down_proj.weight": Gemm(
                f"model.layers.{layer}.mlp.down_proj.input", decision, "flips & <more>", None, effect
            )
            for layer, decision, effect in ((2, "int8", 0.01), (10, "float", 0.25))
        },
    )
    parity = replace(a_parity(REFERENCE, BUNDLE), precision="int8")
    html = render_report(parity, examples(), recipe)
    text = Page(html).text
    assert text.index("layers.2.mlp.down_proj") < text.index("layers.10.mlp.down_proj")
    assert "0.01" in text
    assert "0.25" in text
    assert "200 times narrower" in text
    assert "<more>" not in html
