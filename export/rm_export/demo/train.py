"""Train the demo checkpoint from nothing: `python -m rm_export.demo.train -o DIR` (about three minutes on one core).

A first stage learns only to tell an answer to the question from an answer to another one, which is the hard part; a
second stage sees every grade of answer. The loss is Bradley-Terry on the score, plus the error of the 19 objectives,
plus a pull of the gate towards the objectives that a kind of question is about. Everything is seeded, so one torch
build makes one checkpoint.
"""

import argparse
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, PreTrainedTokenizerFast

from rm_export.demo import DEMO_CHAT
from rm_export.demo.checkpoint_files import write_checkpoint
from rm_export.demo.phrases import expand, pools
from rm_export.demo.preferences import (
    FIRST_CODE,
    GRADES,
    SAFETY,
    VERBOSITY,
    Comparison,
    Message,
    comparisons,
)
from rm_export.demo.reward_model import (
    LlamaForRewardModelWithGating,
    RewardOutput,
    last_header,
    look_for_repeats,
    start_gate,
)
from rm_export.demo.tokenizer import ASSISTANT_HEADER, BOS, EOS, PAD, train_tokenizer
from rm_export.families.armorm import OBJECTIVES

SEED = 20
TRAIN_SEED, EVALUATION_SEED = 1, 2
VOCAB_SIZE = 2560
RELEVANCE_COMPARISONS, COMPARISONS = 4_000, 5_000
CHATS_IN_BATCH = 32
MOST_FREQUENT = 100  # words that are never renamed
RENAMED = 0.9  # of the comparisons
BATCHES_IN_POOL = 64
PEAK_LEARNING_RATE = 1e-3
WARMUP_STEPS = 50
SHARPNESS = 12.0  # of Bradley-Terry: the scores live in about 0..1
OBJECTIVE_WEIGHT, EVERYWHERE_WEIGHT, GATE_WEIGHT = 5.0, 2.0, 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description="train the demo checkpoint")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the checkpoint")
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)

    directory: Path = arguments.output
    directory.mkdir(parents=True, exist_ok=True)
    relevance = list(comparisons(RELEVANCE_COMPARISONS, TRAIN_SEED, "train", 2, ("clear", "off_topic")))
    training = list(comparisons(COMPARISONS, TRAIN_SEED, "train"))
    config = demo_config()
    texts = (message["content"] for one in training for answer in one.answers for message in one.chat(answer))
    train_tokenizer(texts, VOCAB_SIZE, directory, config.max_position_embeddings)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = tokenizer.convert_tokens_to_ids([BOS, EOS, PAD])

    header = tokenizer.encode(ASSISTANT_HEADER, add_special_tokens=False)
    model = LlamaForRewardModelWithGating(config, reward_transform(), header)
    look_for_repeats(model, config)
    content = content_tokens(tokenizer, training)
    train(model, tokenizer, relevance, content)
    start_gate(model.gating, prompt_embeddings(model, tokenizer, training[:500]))
    train(model, tokenizer, training, content)
    round_backbone(model)
    accuracy = evaluate(model, tokenizer, comparisons(1000, EVALUATION_SEED, "held_out"))
    write_checkpoint(model, config, accuracy, demo_scores(model, tokenizer), directory)


def demo_config() -> LlamaConfig:
    """A Llama of 0.8 million parameters with the keys that ArmoRM adds."""
    config = LlamaConfig(
        architectures=["LlamaForRewardModelWithGating"],
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        initializer_range=0.08,  # about 1/sqrt(hidden_size): 0.02 is for wide models and starves a narrow one
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=False,
        use_cache=False,
    )
    config.update(
        {"num_objectives": len(OBJECTIVES), "gating_temperature": 10, "gating_hidden_dim": 64, "gating_n_hidden": 3}
    )
    return config


def reward_transform() -> Tensor:
    """T [19, 19]: identity, minus a verbosity penalty in row 4, whose own entry becomes 0 (ArmoRM's recipe)."""
    penalties = torch.full((len(OBJECTIVES),), 0.2)
    penalties[FIRST_CODE:] = 0.1
    penalties[SAFETY] = 0.05
    penalties[VERBOSITY] = 1.0
    transform = torch.eye(len(OBJECTIVES))
    transform[VERBOSITY] -= penalties
    return transform


def train(
    model: LlamaForRewardModelWithGating, tokenizer: PreTrainedTokenizerFast, stage: list[Comparison], content: Tensor
) -> None:
    """One pass over a stage with AdamW, a short warm-up and a cosine schedule."""
    order = list(batches(stage))
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, total_steps=len(order), pct_start=WARMUP_STEPS / len(order)
    )
    model.train()
    for step, batch in enumerate(order):
        loss = total_loss(model, tokenizer, batch, content)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step:4d} of {len(order)}  loss {loss.item():.4f}", flush=True)


def batches(stage: list[Comparison]) -> Iterator[list[Comparison]]:
    """Batches of comparisons of like length: pools are sorted, cut, and their batches shuffled."""
    rng = random.Random(SEED)
    size = CHATS_IN_BATCH // len(stage[0].answers)
    for start in range(0, len(stage), BATCHES_IN_POOL * size):
        pool = stage[start : start + BATCHES_IN_POOL * size]
        pool.sort(key=lambda one: max(len(answer.text) for answer in one.answers))
        cut = [pool[i : i + size] for i in range(0, len(pool) - size + 1, size)]
        rng.shuffle(cut)
        yield from cut


def encode(tokenizer: PreTrainedTokenizerFast, chats: list[list[Message]]) -> tuple[Tensor, Tensor]:
    """Whole conversations through the chat template: right-padded ids and attention mask, both [B, L]."""
    texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
    encoded = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt")
    return encoded["input_ids"], encoded["attention_mask"]


def total_loss(
    model: LlamaForRewardModelWithGating,
    tokenizer: PreTrainedTokenizerFast,
    batch: list[Comparison],
    content: Tensor,
) -> Tensor:
    """Bradley-Terry over every pair of a comparison, the objectives' squared error, the gate's cross-entropy.

    The objectives are also read at every token of the answer, which only training does: it gives each token a lesson.
    """
    input_ids, attention_mask = encode(tokenizer, [one.chat(answer) for one in batch for answer in one.answers])
    input_ids = rename(input_ids, len(batch[0].answers), content)
    output: RewardOutput = model(input_ids, attention_mask)
    score = output.score.view(len(batch), -1)  # [questions, answers]
    pairs = torch.tensor([(row, *pair) for row, one in enumerate(batch) for pair in one.pairs()])
    row, better, worse = pairs.unbind(dim=1)
    preference = -F.logsigmoid(SHARPNESS * (score[row, better] - score[row, worse])).mean()

    labels = torch.tensor([answer.objectives for one in batch for answer in one.answers])
    known = torch.ones_like(labels)
    is_code = torch.tensor([one.kind == "code" for one in batch for _ in one.answers])
    known[~is_code, FIRST_CODE:] = 0  # nobody labels the code style of a cake recipe
    objectives = ((output.rewards - labels).square() * known).sum() / known.sum()

    positions = torch.arange(input_ids.shape[1])
    start = last_header(input_ids, model.header) + len(model.header) - 1  # the last token of the header
    in_answer = (positions >= start.unsqueeze(1)) & (attention_mask == 1)
    errors = (model.regression_layer(output.hidden) - labels.unsqueeze(1)).square() * known.unsqueeze(1)
    everywhere: Tensor = errors[in_answer].mean()

    target = torch.stack([gate_target(one) for one in batch for _ in one.answers])
    weights = output.gating_output / output.gating_output.sum(dim=1, keepdim=True)
    gate = -(target * weights.clamp_min(1e-8).log()).sum(dim=1).mean()
    return preference + OBJECTIVE_WEIGHT * objectives + EVERYWHERE_WEIGHT * everywhere + GATE_WEIGHT * gate


@torch.no_grad()
def prompt_embeddings(
    model: LlamaForRewardModelWithGating, tokenizer: PreTrainedTokenizerFast, some: list[Comparison]
) -> Tensor:
    """What the gate reads [prompts, hidden]: the hidden state where the answer's header begins."""
    input_ids, attention_mask = encode(tokenizer, [one.chat(one.answers[0]) for one in some])
    output: RewardOutput = model(input_ids, attention_mask)
    return output.hidden[torch.arange(len(some)), last_header(input_ids, model.header)]


def content_tokens(tokenizer: PreTrainedTokenizerFast, training: list[Comparison]) -> Tensor:
    """The ids of the words that carry a topic: no stock phrase uses them, and they are not among the most frequent."""
    stock = {
        token
        for pool in pools().values()
        for pattern in pool
        for token in tokenizer.tokenize(" ".join(expand(pattern)))
    }
    counts = Counter(
        token for one in training[:4000] for answer in one.answers for token in tokenizer.tokenize(answer.text)
    )
    frequent = {token for token, _ in counts.most_common(MOST_FREQUENT)}
    words = [token for token in tokenizer.get_vocab() if re.fullmatch("Ġ?[A-Za-z]{2,}", token)]
    return torch.tensor(
        sorted(tokenizer.convert_tokens_to_ids(token) for token in words if token not in stock | frequent)
    )


def rename(input_ids: Tensor, answers: int, content: Tensor, vocab_size: int = VOCAB_SIZE) -> Tensor:
    """Exchange half of the content tokens of most conversations [B, L] for random ones, alike in a question's answers.

    What is left to judge by is the form of an answer and whether it takes up its question, which is what can carry
    over to questions that the model never saw; without this it learns its few hundred training sentences by heart.
    """
    renamed = input_ids.clone()
    for rows in renamed.view(-1, answers, renamed.shape[1]):
        if torch.rand(()) < RENAMED:
            names = torch.arange(vocab_size)
            chosen = content[torch.rand(len(content)) < 0.5]
            names[chosen] = content[torch.randint(len(content), (len(chosen),))]
            rows.copy_(names[rows])
    return renamed


def gate_target(comparison: Comparison) -> Tensor:
    """The objectives [19] that matter for a kind of question, as weights that sum to 1."""
    target = torch.ones(len(OBJECTIVES))
    target[VERBOSITY] = 0.5
    target[SAFETY] = 8.0 if comparison.kind == "unsafe" else 2.0
    target[FIRST_CODE:] = 5.0 if comparison.kind == "code" else 0.1
    return target / target.sum()


def round_backbone(model: LlamaForRewardModelWithGating) -> None:
    """Round the backbone to bfloat16 in place; it is evaluated and stored so. The heads stay float32."""
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))


@torch.no_grad()
def evaluate(
    model: LlamaForRewardModelWithGating, tokenizer: PreTrainedTokenizerFast, held_out: Iterator[Comparison]
) -> dict[str, float]:
    """The share of pairs that the score orders right: over all pairs, and by the grade of the worse answer."""
    model.eval()
    right: dict[str, list[bool]] = defaultdict(list)
    for one in held_out:
        scores = model(*encode(tokenizer, [one.chat(answer) for answer in one.answers])).score.tolist()
        for better, worse in one.pairs():
            for name in ("all pairs", one.answers[worse].grade):
                right[name].append(scores[better] > scores[worse])
    return {name: sum(right[name]) / len(right[name]) for name in ("all pairs", *GRADES) if right[name]}


@torch.no_grad()
def demo_scores(model: LlamaForRewardModelWithGating, tokenizer: PreTrainedTokenizerFast) -> list[float]:
    """The scores of the three answers of `DEMO_CHAT`."""
    question, answers = DEMO_CHAT
    user = {"role": "user", "content": question}
    chats = [[user, {"role": "assistant", "content": answer}] for answer in answers]
    scores: list[float] = model.eval()(*encode(tokenizer, chats)).score.tolist()
    return scores


if __name__ == "__main__":
    main()
