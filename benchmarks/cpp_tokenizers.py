"""Which tokenizers that C++ can link give the ids of the package tokenizers: the table in docs/cpp.md.

    python benchmarks/cpp_tokenizers.py [--texts 5000]

The texts are sentences in many scripts, code, special-token text, white space and odd letters, put together, without
NUL (some end a text there); the tokenizers are the tests'. Ids count as equal with or without the special tokens that a
post-processor adds. Candidates that are not installed are left out: openvino-tokenizers (with openvino and
transformers), onnxruntime-extensions (its C API, through ctypes, which is what its C++ library would be), and this
repository's reader in runtime/cpp, for which it needs what docs/cpp.md installs.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

TESTS = Path(__file__).parent.parent / "tests"
FAMILIES = {
    "llama3": "byte-level BPE (Llama 3)",
    "qwen": "byte-level BPE with NFC (Qwen)",
    "mistral": "sentencepiece BPE (Mistral)",
    "gemma": "sentencepiece BPE (Gemma)",
    "deberta": "Unigram with a normalisation map (DeBERTa)",
}
Encode = Callable[[Sequence[str]], "list[list[int] | None]"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=5000)
    count = parser.parse_args().texts
    sys.path.insert(0, str(TESTS))
    from cpp.test_tokenizer import mixed_texts

    texts = [text for text in mixed_texts(2 * count) if "\0" not in text][:count]
    candidates = {"runtime/cpp": of_this_repository}
    if find_spec("openvino_tokenizers") is not None:
        candidates["openvino-tokenizers"] = of_openvino
    if find_spec("onnxruntime_extensions") is not None:
        candidates["onnxruntime-extensions"] = of_extensions
    print(f"| tokenizer | {' | '.join(candidates)} |\n|---|{'---|' * len(candidates)}")
    for family, name in FAMILIES.items():
        folder = TESTS / "data" / "tokenizers" / family
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        plain, added = tokenizer.encode_batch(texts, add_special_tokens=False), tokenizer.encode_batch(texts)
        cells = []
        for candidate in candidates.values():
            got = zip(candidate(folder)(texts), plain, added, strict=True)
            cells.append(str(sum(ids not in (without.ids, full.ids) for ids, without, full in got)))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def of_this_repository(folder: Path) -> Encode:
    import cpp_builds

    program = cpp_builds.sanitized() / "token_ids"

    def encode(texts: Sequence[str]) -> list[list[int] | None]:
        lines = "".join(f"{json.dumps(text)}\n" for text in texts)
        command = [program, folder / "tokenizer.json"]
        printed = subprocess.run(command, input=lines, capture_output=True, text=True, check=True)
        return [json.loads(line) for line in printed.stdout.splitlines()]

    return encode


def of_openvino(folder: Path) -> Encode:
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from transformers import PreTrainedTokenizerFast

    source = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    model = openvino.compile_model(convert_tokenizer(source), "CPU")
    return lambda texts: [model([text])["input_ids"][0].tolist() for text in texts]


def of_extensions(folder: Path) -> Encode:
    library, tokenizer, files = _opened_extensions(folder)

    def encode(texts: Sequence[str]) -> list[list[int] | None]:
        assert files.name
        return [_extensions_ids(library, tokenizer, text) for text in texts]

    return encode


def _opened_extensions(folder: Path) -> tuple[Any, ctypes.c_void_p, Any]:
    spec = find_spec("onnxruntime_extensions")
    assert spec is not None
    assert spec.submodule_search_locations
    (path,) = Path(spec.submodule_search_locations[0]).glob("*.so")
    library = ctypes.CDLL(str(path))
    library.OrtxGetLastErrorMessage.restype = ctypes.c_char_p
    library.OrtxTokenId2DArrayGetItem.argtypes = [
        *(ctypes.c_void_p, ctypes.c_size_t),
        *(ctypes.POINTER(ctypes.POINTER(ctypes.c_uint32)), ctypes.POINTER(ctypes.c_size_t)),
    ]
    files = tempfile.TemporaryDirectory()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, files.name)
    tokenizer = ctypes.c_void_p()
    if library.OrtxCreateTokenizer(ctypes.byref(tokenizer), files.name.encode()):
        raise SystemExit(f"{folder.name}: {library.OrtxGetLastErrorMessage().decode()}")
    return library, tokenizer, files


def _extensions_ids(library: Any, tokenizer: ctypes.c_void_p, text: str) -> list[int] | None:
    result = ctypes.c_void_p()
    texts = (ctypes.c_char_p * 1)(text.encode())
    if library.OrtxTokenize(tokenizer, texts, ctypes.c_size_t(1), ctypes.byref(result)):
        return None
    ids, length = ctypes.POINTER(ctypes.c_uint32)(), ctypes.c_size_t()
    library.OrtxTokenId2DArrayGetItem(result, 0, ctypes.byref(ids), ctypes.byref(length))
    values = ids[: length.value]
    library.OrtxDispose(ctypes.byref(result))
    return values


if __name__ == "__main__":
    main()
