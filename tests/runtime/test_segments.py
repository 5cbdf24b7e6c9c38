"""segments.py: the ids LLM-Blender and PairRM-hf feed, and what a text may do to them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from corpus import ENGLISH
from rm_runtime.errors import BundleError, PromptError
from rm_runtime.prompt_spec import SegmentsPrompt
from rm_runtime.results import Truncation
from rm_runtime.segments import Segments, SegmentsPrompter

DATA = Path(__file__).parent.parent / "data"
BLENDER = SegmentsPrompt()
HF = SegmentsPrompt(replace=(), budget="row", candidate_prefix=None)
CLS, SEP = 1, 2
SOURCE, FIRST, SECOND, CANDIDATE = 1040, 1041, 1042, 1043
LONG = " ".join(ENGLISH * 9)
"""About 2,700 tokens."""


def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DATA / "tokenizers" / "deberta" / "tokenizer.json"))


@pytest.fixture(scope="module")
def blender() -> SegmentsPrompter:
    return SegmentsPrompter(BLENDER, tokenizer())


@pytest.fixture(scope="module")
def hf() -> SegmentsPrompter:
    return SegmentsPrompter(HF, tokenizer())


def segments(prompter: SegmentsPrompter, source: str, *candidates: str, **options: Any) -> Segments:
    (result,) = prompter.encode([(source, candidates)], **options)
    assert isinstance(result, Segments), result
    return result


def row(prompter: SegmentsPrompter, source: str, first: str, second: str, **options: Any) -> list[int]:
    ids: list[int] = segments(prompter, source, first, second, **options).row(0, 1).ids.tolist()
    return ids


def error(prompter: SegmentsPrompter, source: Any, *candidates: Any, **options: Any) -> str:
    (result,) = prompter.encode([(source, candidates)], **options)
    assert isinstance(result, PromptError)
    assert "\n" not in str(result)
    return str(result)


def truncated(text: str, limit: int) -> list[int]:
    """tokenizers' own truncation of one segment."""
    encoder = tokenizer()
    encoder.enable_truncation(limit)
    ids: list[int] = encoder.encode(text).ids
    return ids


def test_ids_are_llm_blenders_own() -> None:
    recorded = json.loads((DATA / "peers" / "llm_blender.json").read_text("utf-8"))
    prompter = SegmentsPrompter(BLENDER, tokenizer())
    assert len(recorded["ids"]) >= 200
    for texts, ids in zip(recorded["comparisons"], recorded["ids"], strict=True):
        assert row(prompter, *texts) == ids, texts


@pytest.mark.parametrize("source", ["", "Hi", ENGLISH[0], " ".join(ENGLISH * 3), LONG], ids=len)
def test_the_row_rule_is_pairrm_hfs_tokenize_pair(hf: SegmentsPrompter, source: str) -> None:
    source_ids = truncated(f"<|source|>{source}", 1224)
    limit = (2048 - len(source_ids)) // 2
    for first, second in (("a", LONG), (LONG, LONG), ("[SEP] one", "two\n")):
        expected = [
            *source_ids,
            *truncated(f"<|candidate1|>{first}", limit),
            *truncated(f"<|candidate2|>{second}", limit),
        ]
        assert row(hf, source, first, second) == expected


def test_for_one_input_both_rules_give_the_same_budget(blender: SegmentsPrompter, hf: SegmentsPrompter) -> None:
    for length in range(3, 1225):
        assert blender.candidate_budget(length, length) == hf.candidate_budget(length, length)


def test_the_longest_source_of_a_batch_decides_how_long_candidates_may_be(
    blender: SegmentsPrompter, hf: SegmentsPrompter
) -> None:
    batch = [("short", [LONG, LONG]), (" ".join(ENGLISH * 2), [LONG, "b"])]
    for prompter, shared in ((blender, True), (hf, False)):
        groups = prompter.encode(batch)
        lengths = []
        for group in groups:
            assert isinstance(group, Segments)
            lengths.append((len(group.source.ids), len(group.candidates[0].ids)))
        (short, first), (long, second) = lengths
        assert short < long
        assert second == 412 + (1224 - long) // 2
        assert first == (second if shared else 412 + (1224 - short) // 2)


def test_a_row_is_three_segments_with_their_prefixes(blender: SegmentsPrompter) -> None:
    group = segments(blender, "s", "a", "b")
    ids = group.row(1, 0).ids.tolist()
    assert [token for token in ids if token in (CLS, SEP)] == [CLS, SEP] * 3
    assert [ids[place + 1] for place, token in enumerate(ids) if token == CLS] == [SOURCE, FIRST, SECOND]
    assert group.row(0, 1).ids.tolist() == row(blender, "s", "a", "b")
    assert ids == row(blender, "s", "b", "a")


def test_sep_text_becomes_a_space_for_llm_blender_only(blender: SegmentsPrompter, hf: SegmentsPrompter) -> None:
    assert row(blender, "one[SEP]two", "a", "b") == row(blender, "one two", "a", "b")
    assert row(hf, "one[SEP]two", "a", "b").count(SEP) == 4


def test_a_cut_is_reported_for_every_part_it_took_from(blender: SegmentsPrompter) -> None:
    group = segments(blender, LONG, LONG, "short")
    source, candidate = (len(tokenizer().encode(f"{prefix}{LONG}").ids) for prefix in ("<|source|>", "<|candidate|>"))
    of_source = Truncation(source - 1224, "right", "source")
    assert group.row(0, 1).truncation == (of_source, Truncation(candidate - 412, "right", "candidate1"))
    assert group.row(1, 0).truncation == (of_source, Truncation(candidate - 412, "right", "candidate2"))
    assert group.truncation(0) == (of_source, Truncation(candidate - 412, "right", "candidate"))
    assert group.truncation(1) == (of_source,)
    assert segments(blender, "s", "a", "b").row(0, 1).truncation == ()


def test_a_cut_may_be_refused(blender: SegmentsPrompter) -> None:
    assert "the source has" in error(blender, LONG, "a", truncation="error")
    assert "candidate 1 has" in error(blender, "s", "a", LONG, truncation="error")


def test_cutting_on_the_left_keeps_the_prefix() -> None:
    prompter = SegmentsPrompter(replace(BLENDER, truncation_side="left"), tokenizer())
    whole = tokenizer().encode(f"<|source|>{LONG}").ids
    assert segments(prompter, LONG, "a").source.ids.tolist() == [CLS, SOURCE, *whole[-1222:]]


@pytest.mark.parametrize("text", ["a <|source|> b", "<|candidate2|>", "x [MASK]", "one[SEP]two", "＜｜source｜＞"])
def test_special_text_can_be_refused_or_kept_as_text(blender: SegmentsPrompter, text: str) -> None:
    assert "the source holds the text of the special token" in error(blender, text, "a", special_text="error")
    assert "candidate 0 holds the text of the special token" in error(blender, "s", text, special_text="error")
    for texts in ((text, "a", "b"), ("s", text, "b"), ("s", "a", text)):
        ids = row(blender, *texts, special_text="text")
        specials = [token for token in ids if token in (CLS, SEP, SOURCE, FIRST, SECOND, CANDIDATE, 1039)]
        assert specials == [CLS, SOURCE, SEP, CLS, FIRST, SEP, CLS, SECOND, SEP]
        assert len(ids) > 12, "the text itself is there"


def test_by_default_special_text_is_what_the_reference_makes_of_it(blender: SegmentsPrompter) -> None:
    ids = row(blender, "[MASK]", "x <|candidate|> y", "z")
    assert ids[2] == 1039
    assert ids.count(FIRST) == 2, "LLM-Blender replaces the id wherever it stands"
    assert ids.count(CANDIDATE) == 0


def test_plain_text_is_encoded_alike_whatever_special_text_means(blender: SegmentsPrompter) -> None:
    expected = row(blender, ENGLISH[0], ENGLISH[1], ENGLISH[2])
    assert row(blender, ENGLISH[0], ENGLISH[1], ENGLISH[2], special_text="text") == expected
    assert row(blender, ENGLISH[0], ENGLISH[1], ENGLISH[2], special_text="error") == expected


def test_a_bad_text_fails_alone_and_does_not_change_the_others_budgets(blender: SegmentsPrompter) -> None:
    groups = blender.encode([("ok", [LONG, "b"]), ("\ud800", ["a", "b"]), ("s", ["a", 3])])  # type: ignore[list-item]
    assert isinstance(groups[0], Segments)
    assert groups[0].row(0, 1).ids.tolist() == row(blender, "ok", LONG, "b")
    assert "the source holds the lone surrogate U+D800" in str(groups[1])
    assert "candidate 1 must be a string, not int" in str(groups[2])


def test_limits_can_be_set_for_a_call(blender: SegmentsPrompter) -> None:
    assert blender.with_limits(None, None) is blender
    group = segments(blender.with_limits(20, 10), LONG, LONG)
    assert (len(group.source.ids), len(group.candidates[0].ids)) == (20, 10)
    with pytest.raises(PromptError, match="leave no room"):
        blender.with_limits(3, None)


def test_a_tokenizer_that_does_not_fit_is_refused() -> None:
    with pytest.raises(BundleError, match="lacks the prefix"):
        SegmentsPrompter(BLENDER, Tokenizer(models.BPE()))
    plain = tokenizer()
    plain.post_processor = None
    with pytest.raises(BundleError, match="does not put one token before and one after a text"):
        SegmentsPrompter(BLENDER, plain)
    with pytest.raises(BundleError, match="leave no room"):
        SegmentsPrompter(replace(BLENDER, candidate_max_length=3), tokenizer())
