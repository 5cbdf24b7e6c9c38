"""Train the small tokenizers under tests/data/tokenizers: `python tests/make_tokenizers.py [family ...]`.

Each keeps the pipeline of the published tokenizer it stands for (pre-tokenizer expression, byte fallback,
normaliser, post-processor, special tokens and their order) with a vocabulary of one to two thousand entries.
Needs sentencepiece and protobuf; the results are committed, so tests do not.
"""

import io
import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece as spm
from sentencepiece import sentencepiece_model_pb2
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

import chat_templates
from corpus import CODE, ENGLISH, OTHER_LANGUAGES, SYMBOLS

FOLDER = Path(__file__).parent / "data" / "tokenizers"
UNBOUNDED = 1000000000000000019884624838656
"""transformers' value of model_max_length for a tokenizer without a limit."""
ROLES = ("assistant\n\n", "user\n\n", "system\n\n", "model\n", "assistant\n", "user\n", "system\n")
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_WORDS = LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))
CONTROL, USER_DEFINED = 3, 4
"""Piece types of sentencepiece_model.proto."""


def corpus() -> list[str]:
    return [*ENGLISH, *OTHER_LANGUAGES, *CODE, *SYMBOLS] * 3 + [*ROLES] * 50


def special(content: str) -> AddedToken:
    return AddedToken(content, special=True, normalized=False)


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_configs(folder: Path, tokenizer: Tokenizer, special_names: dict[str, str], **config: object) -> None:
    """tokenizer.json, tokenizer_config.json and special_tokens_map.json as transformers 4 saves them."""
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    state = json.loads(tokenizer.to_str())
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    added = {str(token["id"]): {flag: token[flag] for flag in flags} for token in state["added_tokens"]}
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": added, **special_names, **config})
    write_json(
        folder / "special_tokens_map.json",
        {
            role: {
                "content": content,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
            }
            for role, content in special_names.items()
        },
    )


def emptied(family: str) -> Path:
    folder = FOLDER / family
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def byte_level_bpe(words: str, vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def llama3(family: str, template: str) -> None:
    tokenizer = byte_level_bpe(LLAMA3_WORDS, 1280)
    state = json.loads(tokenizer.to_str())
    state["model"]["ignore_merges"] = True
    tokenizer = Tokenizer.from_str(json.dumps(state))
    reserved = (f"<|reserved_special_token_{index}|>" for index in range(8))
    # the published order: id 128000 + index
    tokenizer.add_special_tokens(
        [
            special(content)
            for content in (
                "<|begin_of_text|>",
                "<|end_of_text|>",
                *(next(reserved) for _ in range(4)),
                "<|start_header_id|>",
                "<|end_header_id|>",
                next(reserved),
                "<|eot_id|>",
                *reserved,
                "[PAD]",
            )
        ]
    )
    bos = "<|begin_of_text|>"
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{bos}:0 $A:0",
                pair=f"{bos}:0 $A:0 {bos}:1 $B:1",
                special_tokens=[(bos, tokenizer.token_to_id(bos))],
            ),
        ]
    )
    write_configs(
        emptied(family),
        tokenizer,
        {"bos_token": bos, "eos_token": "<|end_of_text|>", "pad_token": "[PAD]"},
        chat_template=template,
        clean_up_tokenization_spaces=True,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=131072,
        tokenizer_class="PreTrainedTokenizerFast",
    )


def qwen() -> None:
    tokenizer = byte_level_bpe(QWEN2_WORDS, 1200)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    folder = emptied("qwen")
    tokenizer.model.save(str(folder))  # vocab.json and merges.txt
    tokenizer.add_special_tokens([special(name) for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    write_configs(
        folder,
        tokenizer,
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        add_prefix_space=False,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        bos_token=None,
        chat_template=chat_templates.QWEN,
        clean_up_tokenization_spaces=False,
        errors="replace",
        model_max_length=32768,
        split_special_tokens=False,
        tokenizer_class="Qwen2Tokenizer",
        unk_token=None,
    )


def train_sentencepiece(texts: Iterable[str], **options: object) -> bytes:
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        byte_fallback=True,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def parse(model: bytes) -> Any:
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    return proto


def sentencepiece_bpe(proto: Any) -> Tokenizer:
    """The BPE tokenizer of a sentencepiece model: a merge for every split of a piece into two pieces."""
    ids = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    scored = []
    for piece in proto.pieces:
        splits = ((piece.piece[:cut], piece.piece[cut:]) for cut in range(1, len(piece.piece)))
        found = sorted((ids[left], ids[right]) for left, right in splits if left in ids and right in ids)
        scored += [(piece.score, proto.pieces[left].piece, proto.pieces[right].piece) for left, right in found]
    scored.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    merges = [(left, right) for _, left, right in scored]
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    for index, piece in enumerate(proto.pieces):
        if piece.type in (CONTROL, USER_DEFINED) or piece.piece == "<unk>":
            is_special = piece.type != USER_DEFINED or piece.piece.startswith(("<start_of", "<end_of"))
            token = AddedToken(piece.piece, special=is_special, normalized=False)
            (tokenizer.add_special_tokens if is_special else tokenizer.add_tokens)([token])
            assert tokenizer.token_to_id(piece.piece) == index
    return tokenizer


def starts_with(tokenizer: Tokenizer, bos: str) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos}:0 $A:0",
        pair=f"{bos}:0 $A:0 {bos}:1 $B:1",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )


def gemma() -> None:
    user_defined = (
        "<mask>",
        *(f"<unused{index}>" for index in range(8)),
        "<start_of_turn>",
        "<end_of_turn>",
        *("\n" * count for count in range(1, 5)),
        *("▁" * count for count in range(2, 9)),
    )
    model = train_sentencepiece(
        (line for text in corpus() for line in text.split("\n") if line),
        model_type="bpe",
        vocab_size=1500,
        character_coverage=0.985,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        user_defined_symbols=list(user_defined),
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
    )
    tokenizer = sentencepiece_bpe(parse(model))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous", invert=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    starts_with(tokenizer, "<bos>")
    folder = emptied("gemma")
    (folder / "tokenizer.model").write_bytes(model)
    write_configs(
        folder,
        tokenizer,
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"},
        add_bos_token=True,
        add_eos_token=False,
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>"],
        chat_template=chat_templates.GEMMA,
        clean_up_tokenization_spaces=False,
        model_max_length=UNBOUNDED,
        sp_model_kwargs={},
        spaces_between_special_tokens=False,
        tokenizer_class="GemmaTokenizer",
        use_default_system_prompt=False,
    )


def mistral() -> None:
    model = train_sentencepiece(
        # no piece holds a newline: it is <0x0A>, as in the published model
        (line for text in [*corpus(), *["[INST] Hi [/INST]"] * 50] for line in text.split("\n") if line),
        model_type="bpe",
        vocab_size=1400,
        character_coverage=0.985,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
    )
    tokenizer = sentencepiece_bpe(parse(model))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    starts_with(tokenizer, "<s>")
    folder = emptied("mistral")
    (folder / "tokenizer.model").write_bytes(model)
    write_configs(
        folder,
        tokenizer,
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        add_bos_token=True,
        add_eos_token=False,
        additional_special_tokens=[],
        chat_template=chat_templates.MISTRAL,
        clean_up_tokenization_spaces=False,
        legacy=True,
        model_max_length=UNBOUNDED,
        pad_token=None,
        sp_model_kwargs={},
        spaces_between_special_tokens=False,
        tokenizer_class="LlamaTokenizer",
        use_default_system_prompt=False,
    )


def deberta() -> None:
    """spm.model as microsoft/deberta-v3-large has it; tokenizer.json as transformers 4 converts it.

    The converter keeps the normalisation map of the sentencepiece model and drops its byte fallback: a
    character outside the vocabulary is [UNK]. PairRM's four prefix tokens are ordinary added tokens.
    """
    model = train_sentencepiece(
        corpus(),
        model_type="unigram",
        vocab_size=1500,
        hard_vocab_limit=False,
        character_coverage=0.99,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        unk_piece="[UNK]",
        normalization_rule_name="nmt_nfkc",
    )
    proto = parse(model)
    tokenizer = Tokenizer(
        models.Unigram([(piece.piece, piece.score) for piece in proto.pieces], unk_id=3, byte_fallback=False)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Strip(),
            normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens([special(name) for name in ("[PAD]", "[CLS]", "[SEP]")])
    tokenizer.add_special_tokens([AddedToken("[UNK]", special=True, normalized=True)])
    tokenizer.add_special_tokens([special("[MASK]")])
    tokenizer.add_tokens(
        [
            AddedToken(name, normalized=True)
            for name in ("<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>")
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    folder = emptied("deberta")
    (folder / "spm.model").write_bytes(model)
    write_configs(
        folder,
        tokenizer,
        {
            "bos_token": "[CLS]",
            "cls_token": "[CLS]",
            "eos_token": "[SEP]",
            "mask_token": "[MASK]",
            "pad_token": "[PAD]",
            "sep_token": "[SEP]",
            "unk_token": "[UNK]",
        },
        clean_up_tokenization_spaces=False,
        do_lower_case=False,
        model_max_length=UNBOUNDED,
        sp_model_kwargs={},
        split_by_punct=False,
        tokenizer_class="DebertaV2Tokenizer",
        vocab_type="spm",
    )
    added = json.loads(tokenizer.to_str())["added_tokens"]
    size = len(proto.pieces)
    write_json(
        folder / "added_tokens.json",
        {token["content"]: token["id"] for token in added if token["id"] >= size},
    )


FAMILIES = {
    "llama3": lambda: llama3("llama3", chat_templates.LLAMA3),
    "llama31": lambda: llama3("llama31", chat_templates.LLAMA31),
    "gemma": gemma,
    "mistral": mistral,
    "qwen": qwen,
    "deberta": deberta,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or FAMILIES:
        FAMILIES[name]()
