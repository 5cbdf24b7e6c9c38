"""The tiny checkpoints are what transformers expects, and their scores are spread out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import checkpoints
from checkpoints.hub_folder import TOKENIZERS, read_json, write_json
from conversations import conversations, preference_groups

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

CHATS = 24
SPREAD = 0.3
FIRST_SCORE_WEIGHTS = [0.11944645, 0.08411154, -0.09876749]

SCALAR_VARIANTS = [
    ("llama", {}),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}, "attention_bias": True, "mlp_bias": True}),
    ("llama", {"head_dim": 24, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    ("mistral", {"sliding_window": 16}),
    ("qwen2", {"use_sliding_window": True}),
    ("qwen2", {"num_labels": 2}),
    ("qwen3", {"attention_bias": True}),
    ("gemma", {}),
    ("gemma2", {}),
]


def stored(folder: Path) -> dict[str, Any]:
    """Every tensor of a checkpoint, in its stored dtype."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


def load(model_class: str, folder: Path, **options: Any) -> tuple[Any, set[str], set[str]]:
    """(float32 eager model, missing keys, unexpected keys)."""
    torch.set_num_threads(1)
    model, report = getattr(transformers, model_class).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, **options
    )
    assert not report["mismatched_keys"]
    return model.eval(), set(report["missing_keys"]), set(report["unexpected_keys"])


def rendered(folder: Path, *, system: bool) -> list[list[int]]:
    """Token ids of some chats, through tokenizer.json itself."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    template = transformers.AutoTokenizer.from_pretrained(folder)
    return [
        tokenizer.encode(template.apply_chat_template(chat, tokenize=False), add_special_tokens=False).ids
        for chat in conversations(CHATS, system=system)
    ]


def hidden_states(model: Any, rows: list[list[int]]) -> list[Any]:
    with torch.inference_mode():
        return [model(torch.tensor([ids])).last_hidden_state[0] for ids in rows]


def takes_system(backbone: str) -> bool:
    return backbone not in ("gemma", "gemma2", "mistral")


@pytest.mark.parametrize(("backbone", "options"), SCALAR_VARIANTS)
def test_scalar_checkpoints_load_completely_and_spread(tmp_path: Path, backbone: str, options: dict[str, Any]) -> None:
    folder = checkpoints.scalar(tmp_path, backbone=backbone, **options)
    class_name = read_json(folder / "config.json")["architectures"][0]
    model, missing, unexpected = load(class_name, folder)
    assert missing == unexpected == set()
    with torch.inference_mode():
        logits = torch.stack(
            [model(torch.tensor([ids])).logits[0] for ids in rendered(folder, system=takes_system(backbone))]
        )
    assert logits.shape == (CHATS, options.get("num_labels", 1))
    assert logits.std(0).min() > SPREAD


@pytest.mark.parametrize(
    ("backbone", "written", "read"),
    [
        ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}, {"rope_scaling": None}),
        ("mistral", {"sliding_window": 16}, {"sliding_window": 17}),
        ("qwen2", {"use_sliding_window": True}, {"use_sliding_window": False}),
        ("gemma", {}, {"rope_theta": 20000.0}),
        ("gemma2", {}, {"attn_logit_softcapping": None}),
        ("gemma2", {}, {"query_pre_attn_scalar": 32}),
        ("gemma2", {}, {"sliding_window": 25}),
    ],
)
def test_a_wrong_option_shows_in_the_scores(
    tmp_path: Path, backbone: str, written: dict[str, Any], read: dict[str, Any]
) -> None:
    folder = checkpoints.scalar(tmp_path, backbone=backbone, **written)
    config = read_json(folder / "config.json")
    rows = rendered(folder, system=takes_system(backbone))
    logits = []
    for options in ({}, read):
        write_json(folder / "config.json", config | options)
        model, _, _ = load(config["architectures"][0], folder)
        with torch.inference_mode():
            logits.append(torch.stack([model(torch.tensor([ids])).logits[0] for ids in rows]))
    assert (logits[0] - logits[1]).abs().median() > 0.03


@pytest.mark.parametrize("backbone", ["llama", "gemma2"])
def test_armorm_has_backbone_and_heads_and_spreads(tmp_path: Path, backbone: str) -> None:
    folder = checkpoints.armorm(tmp_path, backbone=backbone, shards=3)
    model, missing, unexpected = load("AutoModel", folder)
    assert missing == set()
    tensors = stored(folder)
    heads = {name for name in tensors if not name.startswith("model.")}
    assert unexpected == heads
    assert {tensors[name].dtype for name in heads} == {torch.float32}
    assert {tensor.dtype for name, tensor in tensors.items() if name not in heads} == {torch.bfloat16}

    transform, scale = tensors["reward_transform_matrix"], tensors["gating.logit_scale"]
    scores, transposed, gates = [], [], []
    for states in hidden_states(model, rendered(folder, system=takes_system(backbone))):
        rewards = states[-1] @ tensors["regression_layer.weight"].T
        gate = states[len(states) // 2]
        for layer in range(4):
            gate = gate @ tensors[f"gating.layers.{layer}.weight"].T + tensors[f"gating.layers.{layer}.bias"]
            gate = torch.relu(gate) if layer < 3 else gate
        gate = torch.softmax(gate / 10, 0) * scale
        gates.append(gate)
        scores.append(float((rewards @ transform) @ gate))
        transposed.append(float((rewards @ transform.T) @ gate))
    assert np.std(scores) > SPREAD
    assert torch.stack(gates).std(0).mean() > 0.01
    assert np.median(np.abs(np.subtract(scores, transposed))) > 0.1


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("llama", {}),
        ("llama", {"vhead_num_layers": 2, "tie_word_embeddings": False, "dtype": "bfloat16"}),
        ("llama", {"vhead_layer_type": "linear"}),
        ("gemma", {"vhead_num_layers": 3}),
        ("gemma2", {}),
    ],
)
def test_grm_is_a_causal_model_with_a_value_head_and_spreads(
    tmp_path: Path, backbone: str, options: dict[str, Any]
) -> None:
    folder = checkpoints.grm(tmp_path, backbone=backbone, **options)
    class_name = read_json(folder / "config.json")["architectures"][0]
    model, missing, unexpected = load(class_name, folder)
    tensors = stored(folder)
    heads = {name for name in tensors if name.startswith("v_head.")}
    assert missing == set()
    assert unexpected == heads
    assert ("lm_head.weight" in tensors) is not options.get("tie_word_embeddings", True)

    values = []
    layers = options.get("vhead_num_layers", 1)
    linear = options.get("vhead_layer_type") == "linear"
    names = ["v_head.summary"] if linear else [f"v_head.summary.{2 * index}" for index in range(layers + 1)]
    assert heads == {f"{name}.{part}" for name in names for part in ("weight", "bias")}
    for states in hidden_states(model.model, rendered(folder, system=takes_system(backbone))):
        value = states[-1]
        for name in names:
            value = torch.relu(value) if name != names[0] else value
            value = value @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]
        values.append(float(value))
    assert np.std(values) > SPREAD


@pytest.mark.parametrize("header", ["always", "conditional"])
def test_pair_pm_is_a_plain_llama_whose_a_and_b_logits_spread(tmp_path: Path, header: Any) -> None:
    folder = checkpoints.pair_pm(tmp_path, header=header, shards=2)
    model, missing, unexpected = load("LlamaForCausalLM", folder)
    assert missing == unexpected == set()
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.token_to_id("[PAD]") is None
    template = transformers.AutoTokenizer.from_pretrained(folder)
    prompts = [
        template.apply_chat_template(
            [
                {
                    "role": "user",
                    "content": f"[CONTEXT] {messages[0]['content']} [RESPONSE A] {a} [RESPONSE B] {b}",
                }
            ],
            tokenize=False,
            add_generation_prompt=header == "conditional",
        )
        for messages, (a, b) in preference_groups(CHATS, responses=2)
    ]
    letters = [tokenizer.encode(letter, add_special_tokens=False).ids for letter in "AB"]
    assert [len(ids) for ids in letters] == [1, 1]
    margins = []
    with torch.inference_mode():
        for prompt in prompts:
            encoded = tokenizer.encode(prompt.replace("<|begin_of_text|>", ""), add_special_tokens=False)
            assert encoded.tokens[-5:] == [
                "<|eot_id|>",
                "<|start_header_id|>",
                "assistant",
                "<|end_header_id|>",
                "ĊĊ",
            ]
            last = model(torch.tensor([encoded.ids])).logits[0, -1]
            margins.append(float(last[letters[0][0]] - last[letters[1][0]]))
    assert np.std(margins) > SPREAD


@pytest.mark.parametrize("bias", [False, True])
def test_dpa_rm_has_ten_scores_and_no_padding(tmp_path: Path, bias: bool) -> None:
    folder = checkpoints.dpa_rm(tmp_path, bias=bias)
    assert "pad_token_id" not in read_json(folder / "config.json")
    model, missing, unexpected = load("MistralForSequenceClassification", folder)
    assert missing == set()
    assert unexpected == ({"score.bias"} if bias else set())
    with torch.inference_mode():
        logits = torch.stack([model(torch.tensor([ids])).logits[0] for ids in rendered(folder, system=False)])
    assert logits.shape == (CHATS, 10)
    assert logits.std(0).min() > SPREAD


@pytest.mark.parametrize("layout", ["PairRM-hf", "PairRM"])
def test_pairrm_is_a_deberta_with_one_head_and_spreads(tmp_path: Path, layout: Any) -> None:
    folder = checkpoints.pairrm(tmp_path, layout=layout)
    ranker = read_json(folder / "config.json")
    backbone = folder if layout == "PairRM-hf" else folder / ranker["model_name"]
    config = transformers.DebertaV2Config(**read_json(backbone / "config.json"))
    tensors = stored(folder)
    config.vocab_size = tensors["pretrained_model.embeddings.word_embeddings.weight"].shape[0]
    model = transformers.DebertaV2Model(config)
    prefix = "pretrained_model."
    model.load_state_dict(
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)},
        strict=True,
    )
    heads = {name for name in tensors if not name.startswith(prefix)}
    assert heads == {f"head_layer.{index}.{part}" for index in (1, 4) for part in ("weight", "bias")}

    tokenizer = tokenizers.Tokenizer.from_file(str(TOKENIZERS / "deberta" / "tokenizer.json"))
    rows = [
        [
            token
            for text in (f"<|source|>{messages[-1]['content']}", f"<|candidate1|>{a}", f"<|candidate2|>{b}")
            for token in tokenizer.encode(text).ids
        ]
        for messages, (a, b) in preference_groups(CHATS, responses=2)
    ]
    prefixes = [tokenizer.token_to_id(name) for name in ("<|source|>", "<|candidate1|>", "<|candidate2|>")]
    logits = []
    for ids, states in zip(rows, hidden_states(model.eval(), rows), strict=True):
        source, left, right = (states[ids.index(token)] for token in prefixes)
        pair = []
        for candidate in (left, right):
            inner = torch.cat([source, candidate]) @ tensors["head_layer.1.weight"].T
            inner = torch.tanh(inner + tensors["head_layer.1.bias"])
            pair.append(float(inner @ tensors["head_layer.4.weight"].T + tensors["head_layer.4.bias"]))
        logits.append(pair[0] - pair[1])
    assert np.std(logits) > SPREAD


def test_weights_do_not_depend_on_shards_and_do_on_the_seed(tmp_path: Path) -> None:
    one = stored(checkpoints.scalar(tmp_path / "one"))
    three = stored(checkpoints.scalar(tmp_path / "three", shards=3))
    other = stored(checkpoints.scalar(tmp_path / "other", seed=1))
    assert len(list((tmp_path / "three").glob("*.safetensors"))) == 3
    assert one.keys() == three.keys() == other.keys()
    assert all(torch.equal(one[name], three[name]) for name in one)
    assert not torch.equal(one["score.weight"], other["score.weight"])


def test_weights_are_the_same_everywhere(tmp_path: Path) -> None:
    weight = stored(checkpoints.scalar(tmp_path, dtype="float32"))["score.weight"]
    assert np.allclose(weight[0, :3], FIRST_SCORE_WEIGHTS, rtol=1e-6)
