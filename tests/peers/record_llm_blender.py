"""Record LLM-Blender's own results on the tiny PairRM checkpoint: tests/data/peers/llm_blender.json.

Run in an environment of its own (the recorded file is committed, this is only to make it anew):

    python -m venv peers
    peers/bin/pip install torch==2.13.0 transformers==4.46.3 'numpy<2' ml_dtypes safetensors sentencepiece
    peers/bin/pip install protobuf dataclasses_json tqdm
    peers/bin/pip install --no-deps llm-blender==0.0.2
    PYTHONPATH=tests peers/bin/python tests/peers/record_llm_blender.py    # about ten minutes on two cores
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DebertaV2Config, DebertaV2Model

import checkpoints
from conversations import preference_groups
from corpus import CODE, ENGLISH, OTHER_LANGUAGES, SYMBOLS

RECORD = Path(__file__).parent.parent / "data" / "peers" / "llm_blender.json"
BACKBONE = "microsoft/deberta-v3-large"
PERMUTATION = [2, 0, 3, 1]
"""Where every recorded bubble pass starts."""

Texts = list[str]

EDGE_TEXTS = (
    "",
    " ",
    "\n",
    "a",
    "👍",
    "👩‍👩‍👧 🇫🇷 ❤️ done",
    "ﬁnd the ½ cup, Ｆｕｌｌ ｗｉｄｔｈ… №5 ㎏",
    "one[SEP]two [SEP][SEP] three",
    "[CLS] typed [MASK] by [PAD] hand [UNK]",
    "  spaces   inside    and around   ",
    "tabs\tand\r\nnewlines\n\n\nhere",
    "e\u0301 \u200bzero\u200bwidth no\u00a0break soft\u00adhyphen",
    "▁underline▁ of sentencepiece",
)


def long_text(words: int, seed: int) -> str:
    rng = np.random.default_rng(seed)
    vocabulary = " ".join((*ENGLISH, *CODE, *OTHER_LANGUAGES)).split()
    return " ".join(rng.choice(vocabulary, words))


def comparisons() -> list[tuple[str, str, str]]:
    """(source, candidate A, candidate B), every kind of text in every place."""
    rows = []
    for messages, answers in preference_groups(150, seed=3, responses=2):
        source = "\n".join(message["content"] for message in messages)  # also what a several-turn chat reads like
        rows.append((source, answers[0], answers[1]))
    pool = (*ENGLISH, *SYMBOLS, *CODE)
    for place, edge in enumerate(EDGE_TEXTS):
        other, third = pool[place], pool[-1 - place]
        rows += [(edge, other, third), (other, edge, third), (other, third, edge)]
    rows.append((ENGLISH[0], ENGLISH[1], ENGLISH[1]))
    rows.append((long_text(900, 1), ENGLISH[0], ENGLISH[1]))  # source beyond its budget
    rows.append((long_text(250, 2), long_text(900, 3), long_text(20, 4)))
    rows.append((ENGLISH[2], long_text(20, 5), long_text(900, 6)))
    rows.append((long_text(900, 7), long_text(900, 8), long_text(900, 9)))  # all 2,048 ids
    rows += [(long_text(60 + 10 * n, 20 + n), long_text(120, 40 + n), long_text(40, 60 + n)) for n in range(16)]
    return rows


def ranked_groups() -> dict[str, list[tuple[str, Texts]]]:
    """Groups of 1 to 5 candidates, by their number; "long" are three whose sources differ much in length."""
    groups: dict[str, list[tuple[str, Texts]]] = {}
    for count, size in ((1, 2), (2, 9), (3, 9), (4, 10), (5, 5)):
        groups[str(count)] = [
            (messages[-1]["content"], answers)
            for messages, answers in preference_groups(size, seed=count, responses=count)
        ]
    groups["3"].append((ENGLISH[4], [ENGLISH[5], ENGLISH[6], ENGLISH[5]]))  # a tie
    groups["long"] = [
        (ENGLISH[0], [long_text(500, 70), long_text(500, 71)]),
        (long_text(250, 72), [long_text(500, 73), ENGLISH[3]]),
        (ENGLISH[7], [long_text(500, 74), long_text(500, 75)]),
        (ENGLISH[8], [ENGLISH[9], long_text(450, 76)]),
    ]
    return groups


def conversation_pairs() -> list[tuple[list[dict[str, str]], list[dict[str, str]]]]:
    pairs = []
    for number, (messages, answers) in enumerate(preference_groups(10, seed=9, responses=2)):
        sides = []
        for side, answer in enumerate(answers):
            turns = [{"role": message["role"].upper(), "content": message["content"]} for message in messages]
            for place in range(1, len(turns), 2):
                turns[place]["content"] += ("", f" Take {number}.")[side]
            sides.append([*turns, {"role": "ASSISTANT", "content": answer}])
        pairs.append((sides[0], sides[1]))
    return pairs


def open_blender(folder: Path) -> Any:
    """LLM-Blender on the tiny checkpoint; it finds the backbone as a path relative to the working directory."""
    from llm_blender import Blender
    from llm_blender.blender.config import BlenderConfig

    checkpoints.pairrm(folder, layout="PairRM")
    backbone = folder / BACKBONE
    model = DebertaV2Model(DebertaV2Config.from_pretrained(backbone))
    model.save_pretrained(backbone)  # overwritten by PairRM's weights, but asked for
    os.chdir(folder)
    blender = Blender(blender_config=BlenderConfig(device="cpu", use_tqdm=False))
    blender.loadranker(str(folder), device="cpu", cache_dir=folder / "cache")
    return blender


def record(blender: Any) -> dict[str, Any]:
    rows = comparisons()
    sources, first, second = (list(column) for column in zip(*rows, strict=True))
    fed: list[list[int]] = []

    def keep_ids(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
            fed.append(ids[: int(mask.sum())].tolist())

    hook = blender.ranker.pretrained_model.register_forward_pre_hook(keep_ids, with_kwargs=True)
    one_order = blender.compare(sources, first, second, batch_size=1, return_logits=True, mode="[A,B]")
    hook.remove()
    compare = {
        mode: blender.compare(sources, first, second, batch_size=size, return_logits=True, mode=mode).tolist()
        for mode, size in (("[B,A]", 4), ("[A,B]+[B,A]", 5))
    }
    result: dict[str, Any] = {
        "comparisons": rows,
        "ids": fed,
        "logits": {"[A,B]": one_order.tolist(), **compare},
        "better": blender.compare(sources, first, second, batch_size=4).tolist(),
        "groups": ranked_groups(),
        "ranked": {},
        "permutation": PERMUTATION,
        "conversations": conversation_pairs(),
    }
    for count, groups in result["groups"].items():
        inputs, candidates = [source for source, _ in groups], [texts for _, texts in groups]
        instructions = [f"Task {number}: " for number in range(len(groups))]
        result["ranked"][count] = {
            "scores": blender.rank(inputs, candidates, return_scores=True).tolist(),
            "scores_in_batches_of_3": blender.rank(
                inputs, candidates, instructions, return_scores=True, batch_size=3
            ).tolist(),
        }
        if count == "long":
            continue
        result["ranked"][count] |= {
            "ranks": blender.rank(inputs, candidates).tolist(),
            "scores_with_limits": blender.rank(
                inputs, candidates, return_scores=True, source_max_length=40, candidate_max_length=30
            ).tolist(),
            "with_ref": {
                mode: blender.rank_with_ref(inputs, candidates, return_scores=True, ref_mode=mode).tolist()
                for mode in ("longest", "shortest", "median_length", "first", "last")
            },
        }
    bubbles = [*result["groups"]["4"]]
    inputs, candidates = [source for source, _ in bubbles], [texts for _, texts in bubbles]
    torch.randperm = lambda n: torch.tensor(PERMUTATION)
    result["best"] = blender.get_best_of_n(inputs, candidates, return_all=True)
    result["worst"] = blender.get_worst_of_n(inputs, candidates, return_all=True)
    result["best_full"] = [str(text) for text in blender.get_best_of_n(inputs, candidates, pairrm_cmp_type="full")]
    sides = [list(side) for side in zip(*result["conversations"], strict=True)]
    result["conversation_logits"] = blender.compare_conversations(*sides, return_logits=True).tolist()
    return result


def main() -> None:
    target = RECORD.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        result = record(open_blender(Path(folder)))
    target.write_text(json.dumps(result, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{target}: {target.stat().st_size} bytes, {len(result['ids'])} comparisons")


if __name__ == "__main__":
    main()
