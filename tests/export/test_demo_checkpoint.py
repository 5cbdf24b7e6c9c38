"""The demo checkpoint is small, has ArmoRM's layout, and prefers the better answer on questions it never saw."""

from __future__ import annotations

import json

import pytest

from rm_export.demo import DEMO_CHAT, checkpoint_path, write_demo
from rm_export.demo.preferences import OBJECTIVES, VERBOSITY, comparisons
from rm_export.demo.questions import bank

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
load_file = pytest.importorskip("safetensors.torch").load_file

HEADER = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
UNUSED_SEED = 20_261
SAFETY, FIRST_CODE = OBJECTIVES.index("beavertails-is_safe"), OBJECTIVES.index("code-complexity")


@pytest.fixture(scope="module")
def config():
    return json.loads((checkpoint_path() / "config.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tensors():
    return load_file(checkpoint_path() / "model.safetensors")


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(checkpoint_path())


@pytest.fixture(scope="module")
def score(tensors, tokenizer):
    """The reference maths of ArmoRM's `modeling_custom.py` in float32, one unpadded chat at a time."""
    backbone = transformers.LlamaModel(transformers.LlamaConfig.from_pretrained(checkpoint_path())).eval()
    backbone.load_state_dict(
        {k.removeprefix("model."): v.float() for k, v in tensors.items() if k.startswith("model.")}
    )
    header = tokenizer.encode(HEADER, add_special_tokens=False)

    def score(chat):
        ids = tokenizer.apply_chat_template(chat, tokenize=True)["input_ids"]
        hidden = backbone(torch.tensor([ids])).last_hidden_state[0]
        start = max(i for i in range(len(ids) - 4) if ids[i : i + 5] == header)
        rewards = tensors["regression_layer.weight"] @ hidden[-1]
        x = hidden[start]
        for i in range(4):
            x = tensors[f"gating.layers.{i}.weight"] @ x + tensors[f"gating.layers.{i}.bias"]
            x = x.relu() if i < 3 else x
        gate = (x / 10).softmax(0) * tensors["gating.logit_scale"][0]
        return float((gate * (rewards @ tensors["reward_transform_matrix"])).sum()), rewards, gate

    with torch.no_grad():
        yield score


def _chat(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_the_folder_is_under_four_megabytes_and_has_the_hubs_files():
    files = {path.name: path.stat().st_size for path in checkpoint_path().iterdir()}
    assert set(files) == {
        "README.md",
        "config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(files.values()) < 4_000_000


def test_the_config_names_armorm_and_needs_no_remote_code(config):
    assert config["architectures"] == ["LlamaForRewardModelWithGating"]
    assert config["model_type"] == "llama"
    assert "auto_map" not in config
    expected = {"num_objectives": 19, "gating_temperature": 10, "gating_hidden_dim": 64, "gating_n_hidden": 3}
    assert {key: config[key] for key in expected} == expected


def test_backbone_is_bfloat16_and_heads_are_float32_under_armorms_names(config, tensors):
    hidden, width = config["hidden_size"], config["gating_hidden_dim"]
    heads = {name: tuple(tensor.shape) for name, tensor in tensors.items() if not name.startswith("model.")}
    assert heads == {
        "regression_layer.weight": (19, hidden),
        "reward_transform_matrix": (19, 19),
        "gating.layers.0.weight": (width, hidden),
        "gating.layers.0.bias": (width,),
        "gating.layers.1.weight": (width, width),
        "gating.layers.1.bias": (width,),
        "gating.layers.2.weight": (width, width),
        "gating.layers.2.bias": (width,),
        "gating.layers.3.weight": (19, width),
        "gating.layers.3.bias": (19,),
        "gating.logit_scale": (1,),
    }
    for name, tensor in tensors.items():
        assert tensor.dtype == (torch.bfloat16 if name.startswith("model.") else torch.float32), name
    assert 300_000 < sum(tensor.numel() for tensor in tensors.values()) < 1_000_000


def test_the_reward_transform_is_the_identity_but_for_the_verbosity_row(tensors):
    transform = tensors["reward_transform_matrix"]
    others = [i for i in range(19) if i != VERBOSITY]
    assert torch.equal(transform[others], torch.eye(19)[others])
    assert transform[VERBOSITY, VERBOSITY] == 0
    assert (transform[VERBOSITY, others] < 0).all()
    assert not torch.equal(transform, transform.T)


def test_the_tokenizer_adds_one_bos_and_makes_five_tokens_of_the_assistant_header(config, tokenizer):
    assert tokenizer("hello")["input_ids"].count(config["bos_token_id"]) == 1
    assert len(tokenizer.encode(HEADER, add_special_tokens=False)) == 5
    assert len(tokenizer) == config["vocab_size"]
    assert tokenizer.pad_token_id == config["pad_token_id"] == config["vocab_size"] - 1
    assert tokenizer.eos_token_id == config["eos_token_id"]


def test_a_chat_has_one_bos_and_ends_in_eot_unless_a_header_is_asked_for(config, tokenizer):
    chat = _chat("  Why is the sky blue? ", "Because of the air.\n")
    ids = tokenizer.apply_chat_template(chat, tokenize=True)["input_ids"]
    assert ids.count(config["bos_token_id"]) == 1
    assert ids[-1] == tokenizer.convert_tokens_to_ids("<|eot_id|>")
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert "\n\nWhy is the sky blue?<|eot_id|>" in text
    assert text.endswith("Because of the air.<|eot_id|>")
    asked = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert asked == text + HEADER.removeprefix("<|eot_id|>")


@pytest.mark.parametrize("text", ["naïve café, 日本語 🙂", "def f(x):\n\treturn x  # 1234567", "\r\n  \n\n a  b"])
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_held_out_questions_are_not_training_questions():
    seen = {question.text for records in bank("train").values() for record in records for question in record}
    kept = {question.text for records in bank("held_out").values() for record in records for question in record}
    assert kept
    assert not seen & kept
    assert DEMO_CHAT[0] not in seen | kept


def test_the_score_orders_four_of_five_held_out_pairs_right(score):
    verdicts = []
    for one in comparisons(120, UNUSED_SEED, "held_out"):
        scores = [score(one.chat(answer))[0] for answer in one.answers]
        verdicts += [scores[better] > scores[worse] for better, worse in one.pairs()]
    assert len(verdicts) > 500
    assert sum(verdicts) / len(verdicts) >= 0.8


def test_every_objective_follows_its_label_and_the_gate_turns_to_code_for_code(score):
    rewards, labels, unsafe, code_share = [], [], [], {True: [], False: []}
    for one in comparisons(80, UNUSED_SEED, "held_out"):
        for answer in one.answers:
            _, values, gate = score(one.chat(answer))
            rewards.append(values)
            labels.append(torch.tensor(answer.objectives))
            unsafe.append(answer.grade == "unsafe")
            code_share[one.kind == "code"].append(float(gate[FIRST_CODE:].sum() / gate.sum()))
    rewards, labels, unsafe = torch.stack(rewards), torch.stack(labels), torch.tensor(unsafe)
    for i, name in enumerate(OBJECTIVES):
        assert torch.corrcoef(torch.stack([rewards[:, i], labels[:, i]]))[0, 1] > 0.4, name
    assert rewards[unsafe, SAFETY].mean() < rewards[~unsafe, SAFETY].mean() - 0.3
    assert sum(code_share[True]) / len(code_share[True]) > 3 * sum(code_share[False]) / len(code_share[False])


def test_the_demos_three_answers_are_ranked_good_mediocre_bad_with_clear_margins(score):
    question, answers = DEMO_CHAT
    good, mediocre, bad = (score(_chat(question, answer))[0] for answer in answers)
    assert good > mediocre + 0.1
    assert mediocre > bad + 0.1


def test_write_demo_makes_a_copy_and_refuses_a_folder_with_files(tmp_path):
    directory = write_demo(tmp_path / "new" / "demo")
    assert {path.name for path in directory.iterdir()} == {path.name for path in checkpoint_path().iterdir()}
    with pytest.raises(FileExistsError, match="not an empty folder"):
        write_demo(directory)
