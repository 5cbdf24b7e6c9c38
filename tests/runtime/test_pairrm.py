"""PairRM's LLM-Blender API against LLM-Blender 0.0.2's own recorded results (tests/peers/record_llm_blender.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import checkpoints
import rm_runtime
from conversations import preference_groups
from corpus import ENGLISH
from rm_export.checkpoint import open_checkpoint
from rm_export.exporter import export_checkpoint
from rm_runtime.errors import BundleError, PromptError, RequestError, UnscorableError
from rm_runtime.families.pairrm import PairRM
from rm_runtime.families.pairrm_texts import MULTI_TURN_INSTRUCTION, ranked_texts
from rm_runtime.results import Ranking, Truncation

TOLERANCE = 1e-4
"""Largest error of a float32 logit or score, as a part of the recorded logits' standard deviation."""

RECORDED: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "data" / "peers" / "llm_blender.json").read_text("utf-8")
)
DEVIATION = float(np.std(RECORDED["logits"]["[A,B]"]))
SOURCES, FIRST, SECOND = (list(column) for column in zip(*RECORDED["comparisons"], strict=True))
LONG = " ".join(ENGLISH * 9)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairrm")
    checkpoint = open_checkpoint(checkpoints.pairrm(folder / "checkpoint", layout="PairRM"))
    return export_checkpoint(checkpoint, folder / "bundle", family="pairrm")


@pytest.fixture(scope="module")
def rm(bundle: Path) -> PairRM:
    loaded = rm_runtime.load(bundle)
    assert isinstance(loaded, PairRM)
    return loaded


def columns(name: str) -> tuple[list[str], list[list[str]]]:
    """Inputs and candidates of a recorded group."""
    groups = RECORDED["groups"][name]
    return [source for source, _ in groups], [texts for _, texts in groups]


def error(got: NDArray[Any], recorded: Any) -> float:
    """Largest difference, in standard deviations."""
    expected = np.array(recorded)
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max()) / DEVIATION


def test_every_comparison_is_llm_blenders_without_a_flip(rm: PairRM) -> None:
    logits = rm.compare(SOURCES, FIRST, SECOND, batch_size=1, return_logits=True, mode="[A,B]")
    recorded = np.array(RECORDED["logits"]["[A,B]"])
    assert logits.dtype == np.float32
    assert error(logits, recorded) < TOLERANCE
    assert (np.sign(logits) == np.sign(recorded)).all()


def test_the_default_mode_is_the_sum_of_both_orders_in_batches(rm: PairRM) -> None:
    logits = rm.compare(SOURCES, FIRST, SECOND, batch_size=5, return_logits=True)
    assert error(logits, RECORDED["logits"]["[A,B]+[B,A]"]) < TOLERANCE
    assert (np.sign(logits) == np.sign(RECORDED["logits"]["[A,B]+[B,A]"])).all()


def test_better_answers_are_the_same_ones_and_ties_are_not_better(rm: PairRM) -> None:
    few = slice(0, 80)
    better = rm.compare(SOURCES[few], FIRST[few], SECOND[few])
    assert better.dtype == np.bool_
    assert better.tolist() == RECORDED["better"][few]
    assert not rm.compare(["s"], ["same"], ["same"])[0]


def test_the_reversed_mode_keeps_its_sign_so_positive_means_b(rm: PairRM) -> None:
    few = slice(0, 40)
    backward = rm.compare(SOURCES[few], FIRST[few], SECOND[few], return_logits=True, mode="[B,A]")
    assert error(backward, RECORDED["logits"]["[B,A]"][few]) < TOLERANCE
    forward = rm.compare(SOURCES[few], SECOND[few], FIRST[few], return_logits=True, mode="[A,B]")
    assert error(backward, forward) < TOLERANCE


def test_an_unknown_mode_means_both_orders(rm: PairRM) -> None:
    both, unknown = (
        rm.compare(SOURCES[:3], FIRST[:3], SECOND[:3], return_logits=True, mode=mode)
        for mode in ("[A,B]+[B,A]", "longest")
    )
    assert np.array_equal(both, unknown)


@pytest.mark.parametrize("name", list(RECORDED["groups"]))
def test_scores_are_llm_blenders_in_whatever_batches(rm: PairRM, name: str) -> None:
    inputs, candidates = columns(name)
    recorded = RECORDED["ranked"][name]
    scores = rm.rank(inputs, candidates, return_scores=True)
    assert scores.dtype == np.float32
    assert error(scores, recorded["scores"]) < TOLERANCE
    instructions = [f"Task {number}: " for number in range(len(inputs))]
    in_threes = rm.rank(inputs, candidates, instructions, return_scores=True, batch_size=3)
    assert error(in_threes, recorded["scores_in_batches_of_3"]) < TOLERANCE


def test_the_batch_changes_the_scores_of_long_candidates(rm: PairRM) -> None:
    inputs, candidates = columns("long")
    alone = rm.rank(inputs, candidates, return_scores=True, batch_size=1)
    together = rm.rank(inputs, candidates, return_scores=True)
    assert np.abs(alone - together).max() > 0.01


@pytest.mark.parametrize("name", ["1", "2", "3", "4", "5"])
def test_ranks_are_llm_blenders(rm: PairRM, name: str) -> None:
    inputs, candidates = columns(name)
    ranks = rm.rank(inputs, candidates)
    recorded = RECORDED["ranked"][name]
    assert ranks.dtype == np.int32
    # where the reference tells equal answers apart by its rounding, ours tie
    clear = [
        len(texts) == 1 or np.diff(np.sort(scores)).min() > 2 * TOLERANCE * DEVIATION
        for texts, scores in zip(candidates, recorded["scores"], strict=True)
    ]
    assert sum(clear) >= len(clear) - 1
    assert ranks[clear].tolist() == np.array(recorded["ranks"])[clear].tolist()


def test_equal_answers_share_a_rank_and_the_next_is_skipped(rm: PairRM) -> None:
    source, texts = RECORDED["groups"]["3"][-1]
    assert texts[0] == texts[2]
    (ranks,), (scores,) = rm.rank([source], [texts]), rm.rank([source], [texts], return_scores=True)
    assert scores[0] == scores[2]
    assert sorted(ranks.tolist()) in ([1, 1, 3], [1, 2, 2])


@pytest.mark.parametrize("name", ["2", "3", "5"])
def test_limits_for_one_call_are_llm_blenders(rm: PairRM, name: str) -> None:
    inputs, candidates = columns(name)
    scores = rm.rank(inputs, candidates, return_scores=True, source_max_length=40, candidate_max_length=30)
    assert error(scores, RECORDED["ranked"][name]["scores_with_limits"]) < TOLERANCE


@pytest.mark.parametrize("ref_mode", ["longest", "shortest", "median_length", "first", "last"])
def test_ranking_by_a_reference_answer_is_llm_blenders(rm: PairRM, ref_mode: str) -> None:
    for name in ("1", "2", "5"):
        inputs, candidates = columns(name)
        scores = rm.rank_with_ref(inputs, candidates, return_scores=True, ref_mode=ref_mode)
        assert error(scores, RECORDED["ranked"][name]["with_ref"][ref_mode]) < TOLERANCE
        assert (scores == 0).sum() == len(inputs), "the reference itself"


def test_reference_answers_can_be_given(rm: PairRM) -> None:
    inputs, candidates = columns("2")
    given = [texts[1] for texts in candidates]
    scores = rm.rank_with_ref(inputs, candidates, return_scores=True, ref_candidates=given)
    assert np.array_equal(scores, rm.rank_with_ref(inputs, candidates, return_scores=True, ref_mode="last"))
    ranks = rm.rank_with_ref(inputs, candidates, ref_candidates=given)
    assert ranks.dtype == np.int32
    assert ((ranks[:, 0] == 1) == (scores[:, 0] > 0)).all()


def test_one_bubble_pass_ends_where_llm_blenders_does(rm: PairRM) -> None:
    inputs, candidates = columns("4")
    permutation = RECORDED["permutation"]
    best = rm.get_best_of_n(inputs, candidates, return_all=True, permutation=permutation)
    worst = rm.get_worst_of_n(inputs, candidates, return_all=True, permutation=permutation)
    assert best == RECORDED["best"]
    assert worst == RECORDED["worst"]
    assert rm.get_best_of_n(inputs, candidates, permutation=permutation) == [texts[0] for texts in best]
    assert rm.get_worst_of_n(inputs, candidates, permutation=permutation) == [texts[0] for texts in worst]


def test_a_seed_makes_a_bubble_pass_repeatable(rm: PairRM) -> None:
    inputs, candidates = columns("5")
    first, second = (rm.get_best_of_n(inputs, candidates, return_all=True, seed=3, batch_size=2) for _ in range(2))
    assert first == second
    assert all(sorted(texts) == sorted(given) for texts, given in zip(first, candidates, strict=True))
    with pytest.raises(RequestError, match=r"permutation=\[0, 0\] is no order of 5 candidates"):
        rm.get_best_of_n(inputs, candidates, permutation=[0, 0])


def test_a_full_comparison_picks_llm_blenders_best(rm: PairRM) -> None:
    inputs, candidates = columns("4")
    assert rm.get_best_of_n(inputs, candidates, pairrm_cmp_type="full") == RECORDED["best_full"]
    ordered = rm.get_best_of_n(inputs, candidates, pairrm_cmp_type="full", return_all=True)
    backwards = rm.get_worst_of_n(inputs, candidates, pairrm_cmp_type="full", return_all=True)
    assert ordered == [texts[::-1] for texts in backwards]


def test_a_single_candidate_is_the_best_and_the_worst_without_asking(rm: PairRM) -> None:
    assert rm.get_best_of_n(["a", "b"], [["x"], ["y"]]) == ["x", "y"]
    assert rm.get_worst_of_n(["a", "b"], [["x"], ["y"]], return_all=True) == [["x"], ["y"]]
    assert rm.rank(["a"], [["x"]]).tolist() == [[1]]


def test_whole_conversations_are_compared_as_llm_blender_does(rm: PairRM) -> None:
    first, second = (list(side) for side in zip(*RECORDED["conversations"], strict=True))
    logits = rm.compare_conversations(first, second, return_logits=True)
    assert error(logits, RECORDED["conversation_logits"]) < TOLERANCE


def test_conversations_must_alternate_and_agree_on_the_users_turns(rm: PairRM) -> None:
    user, answer = {"role": "USER", "content": "q"}, {"role": "ASSISTANT", "content": "a"}
    other = {"role": "USER", "content": "else"}
    lower = {"role": "user", "content": "q"}
    for a, b, message in (
        ([user], [user], "each user turn needs an answer"),
        ([user, answer], [other, answer], "USER turns of both sides must be the same"),
        ([lower, answer], [lower, answer], "turn 0 has the role 'user', not 'USER'"),
    ):
        with pytest.raises(RequestError, match=message):
            rm.compare_conversations([a], [b])
    with pytest.raises(RequestError, match="1 conversations cannot be compared with 0"):
        rm.compare_conversations([[user, answer]], [])


def test_chats_are_ranked_like_llm_blenders_inputs_and_candidates(rm: PairRM) -> None:
    for messages, responses in preference_groups(5, seed=4, responses=3):
        ranking = rm.rank(messages, responses)
        assert isinstance(ranking, Ranking)
        source, candidates = ranked_texts(messages, responses)
        (scores,) = rm.rank([source], [candidates], return_scores=True)
        assert ranking == Ranking.from_scores(scores.tolist(), ranking.truncation)


def test_a_longer_chat_is_asked_as_compare_conversations_asks(rm: PairRM) -> None:
    turns = [("user", "q1"), ("assistant", "a1"), ("user", "q2")]
    messages = [{"role": role, "content": content} for role, content in turns]
    ranking = rm.rank(messages, ["good", "bad"])
    sides = [
        [{"role": turn["role"].upper(), "content": turn["content"]} for turn in messages]
        + [{"role": "ASSISTANT", "content": answer}]
        for answer in ("good", "bad")
    ]
    (logit,) = rm.compare_conversations([sides[0]], [sides[1]], return_logits=True)
    assert ranking.scores[0] - ranking.scores[1] == pytest.approx(logit, abs=1e-6)


def test_texts_of_a_chat() -> None:
    user, system = {"role": "user", "content": "Q"}, {"role": "system", "content": "S. "}
    answer = {"role": "assistant", "content": "A"}
    assert ranked_texts([user], ["x", "y"]) == ("Q", ["x", "y"])
    assert ranked_texts([system, user], ["x"]) == ("S. Q", ["x"])
    source, candidates = ranked_texts([system, user, answer, user], ["x"])
    assert source == (f"S. {MULTI_TURN_INSTRUCTION}USER: Q\nAssistant: <Response 1>\nUSER: Q\nAssistant: <Response 2>")
    assert candidates == ["<Response 1>: A\n<Response 2>: x"]
    for messages in ([answer], [user, user, user], [user, answer], [system], [], "text", None):
        with pytest.raises(PromptError):
            ranked_texts(messages, ["x"])
    refusals: tuple[Any, ...] = ([], "text", None)
    for refused in refusals:
        with pytest.raises(RequestError):
            ranked_texts([user], refused)


def test_a_ranking_tells_what_was_cut(rm: PairRM) -> None:
    ranking = rm.rank([{"role": "user", "content": LONG}], ["short", LONG])
    (of_source,) = ranking.truncation[0]
    assert of_source.part == "source"
    assert ranking.truncation[1] == (of_source, Truncation(ranking.truncation[1][1].tokens, "right", "candidate"))
    with pytest.raises(PromptError, match="the source has"):
        rm.rank([{"role": "user", "content": LONG}], ["a", "b"], truncation="error")


def test_prefix_text_of_a_user_can_be_refused_or_read_as_text(rm: PairRM) -> None:
    first = ["fine", "a <|candidate2|> b"]
    with pytest.raises(PromptError, match=r"input 1: candidate 0 holds the text of the special token"):
        rm.compare(["q", "q"], first, ["x", "y"], special_text="error")
    as_text, as_token = (
        rm.compare(["q", "q"], first, ["x", "y"], return_logits=True, special_text=how) for how in ("text", "token")
    )
    assert as_text[0] == pytest.approx(as_token[0], abs=1e-5)
    assert abs(as_text[1] - as_token[1]) > 1e-3


def test_a_function_may_generate_the_candidates(rm: PairRM) -> None:
    asked = []

    def generate(prompts: list[str], n: int, **options: Any) -> list[list[str]]:
        asked.append((prompts, n, options))
        return [list(ENGLISH[:n]), list(ENGLISH[n : 2 * n])]

    best = rm.best_of_n_generate(generate, None, ["q1", "q2"], ["i1", "i2"], n=3, seed=0, max_new_tokens=9)
    assert asked == [(["i1\nq1", "i2\nq2"], 3, {"max_new_tokens": 9})]
    candidates = [list(ENGLISH[:3]), list(ENGLISH[3:6])]
    assert best == rm.get_best_of_n(["q1", "q2"], candidates, ["i1", "i2"], seed=0, batch_size=4)
    with pytest.raises(RequestError, match="must return 2 texts for each of 1 prompts"):
        rm.best_of_n_generate(lambda prompts, n: [["one"]], None, ["q"], n=2)
    with pytest.raises(RequestError, match="sampling_mode='greedy'"):
        rm.best_of_n_generate(generate, None, ["q"], sampling_mode="greedy")


def test_a_transformers_model_generates_after_its_prompt(rm: PairRM) -> None:
    transformers = pytest.importorskip("transformers")
    folder = Path(__file__).parent.parent / "data" / "tokenizers" / "llama3"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config)
    prompts = ["Hello there", "Tell me about the sea, please"]
    ranked = rm.best_of_n_generate(
        model, tokenizer, prompts, n=3, return_all=True, max_new_tokens=5, batch_size=1, sampling_mode="top_k_sampling"
    )
    assert [len(texts) for texts in ranked] == [3, 3]
    for prompt, texts in zip(prompts, ranked, strict=True):
        assert not any(text.startswith(prompt) for text in texts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], [["x", "y"], ["z"]]), "1 inputs and 2 lists of candidates"),
        ((["a", "b"], [["x", "y"], ["z"]]), "all of the same length and not empty"),
        ((["a"], [[]]), "not empty"),
        ((["a"], ["x"]), "a list of candidates"),
        (("a", [["x"]]), "inputs must be a list of texts"),
        ((["a"], [["x", 1]]), "candidate 1 must be a string, not int"),
        (([1], [["x", "y"]]), "input 0 must be a string, not int"),
        ((["a"], [["x", "y"]], ["i", "j"]), "2 instructions for 1 inputs"),
        ((["a"], [["x", "y"]], "i"), "instructions must be a list of texts"),
        ((["a"], [["x", "y"]], None, False, 0), "batch_size=0"),
    ],
)
def test_a_malformed_call_is_refused_in_one_line(rm: PairRM, arguments: Any, message: str) -> None:
    with pytest.raises(RequestError) as refused:
        rm.rank(*arguments)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_there_is_no_score_of_one_answer(rm: PairRM) -> None:
    with pytest.raises(RequestError, match="cannot score one alone"):
        rm.score([[{"role": "user", "content": "x"}]])


class Broken:
    """An engine whose numbers are not finite."""

    name = "broken"

    def run(self, inputs: Any) -> dict[str, NDArray[np.float32]]:
        return {"logit": np.full(len(inputs["input_ids"]), np.nan, np.float32)}


def test_a_model_without_numbers_is_an_error_and_never_a_rank(rm: PairRM) -> None:
    broken = PairRM(rm.bundle, Broken(), rm.options)
    with pytest.raises(UnscorableError, match="input 0, candidates 0 and 1: the model gave no number"):
        broken.compare(["a", "b"], ["x", "x"], ["y", "y"], mode="[A,B]")
    with pytest.raises(BundleError, match="cannot compare two plain answers"):
        broken.probe()
    rm.probe()


def test_no_inputs_give_empty_results(rm: PairRM) -> None:
    assert rm.compare([], [], []).shape == (0,)
    assert rm.rank([], [], return_scores=True).shape == (0, 0)
    assert rm.get_best_of_n([], []) == []
