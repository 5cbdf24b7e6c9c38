"""rm-export inspect: a bundle at one glance."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rm_calibration.recipe import Recipe
from rm_export.template_pieces import why_not_in_pieces
from rm_runtime.bundle import Bundle
from rm_runtime.manifest import Manifest, TensorRecord
from rm_runtime.prompt_spec import ChatPrompt, PairChatPrompt, PromptSpec


def print_bundle(bundle: Bundle, hashes_checked: bool, console: Console | None = None) -> None:
    """Print what the bundle scores, from what, in which precision, how it reads prompts, and what was proved."""
    console = console or Console()
    manifest = bundle.manifest
    headline = f"{manifest.family}, {manifest.precision} for {manifest.target}"
    console.print(Text(headline, style="bold") + Text(f"   {bundle.path}", style="dim"))
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in _facts(bundle, hashes_checked):
        table.add_row(label, Text(value))
    console.print(table)


def _facts(bundle: Bundle, hashes_checked: bool) -> Iterator[tuple[str, str]]:
    manifest = bundle.manifest
    source = manifest.source
    yield "source", source.id + (f" @ {source.revision[:12]}" if source.revision else "")
    architecture = manifest.architecture
    if architecture:
        shape = ", ".join(f"{key} {value}" for key, value in architecture.items() if key != "model_type")
        yield "backbone", f"{architecture.get('model_type', '?')}: {shape}"
    yield "inputs", ", ".join(_signature(tensor) for tensor in manifest.inputs)
    yield "outputs", ", ".join(_signature(tensor) for tensor in manifest.outputs)
    yield "reads", f"{manifest.pooling}, padded on the right with id {manifest.pad_token_id}"
    yield "prompt", _prompt(manifest.prompt)
    if failure := why_not_in_pieces(manifest.prompt):
        yield "in C++", f"takes rendered text: {failure}"
    total = sum(record.size for record in manifest.files.values())
    checked = "sha256 of every file checked" if hashes_checked else "sizes checked; --verify checks the hashes"
    yield "files", f"{len(manifest.files)}, {_bytes(total)} ({checked})"
    if manifest.recipe:
        yield "recipe", _recipe(bundle, manifest.recipe)
    yield "parity", _parity(manifest)
    for plan in manifest.engines:
        yield "engine", f"{plan.graph}: {plan.runtime} {plan.version}, {plan.compute_capability or 'any GPU'}"
    yield "made with", ", ".join(f"{tool} {version}" for tool, version in manifest.tools.items())


def _signature(tensor: TensorRecord) -> str:
    return f"{tensor.name} {tensor.dtype}[{', '.join(map(str, tensor.shape))}]"


def _prompt(prompt: PromptSpec) -> str:
    if isinstance(prompt, PairChatPrompt):
        return "two answers in one user message; " + _prompt(prompt.chat)
    if isinstance(prompt, ChatPrompt):
        return (
            f"chat template of {len(prompt.template)} characters, {prompt.bos_count} BOS, dated {prompt.date}, at most "
            f"{prompt.max_length} ids, longer ones lose their {prompt.truncation_side} end"
        )
    return (
        f"three segments: source of at most {prompt.source_max_length} ids, candidates of at least "
        f"{prompt.candidate_max_length}, longer ones lose their {prompt.truncation_side} end"
    )


def _recipe(bundle: Bundle, name: str) -> str:
    recipe = Recipe.from_yaml((bundle.path / name).read_bytes(), name)
    quantised = sum(gemm.decision == "int8" for gemm in recipe.gemms.values())
    smoothed = sum(activation.smoothing is not None for activation in recipe.activations.values())
    made, precision = recipe.calibration, bundle.manifest.precision
    return (
        f"{name}: {quantised} of {len(recipe.gemms)} products in {precision}, {smoothed} of {len(recipe.activations)} "
        f"inputs smoothed, embedding tables {recipe.embeddings.decision}, ranges by {made.observer} over "
        f"{made.tokens:,} tokens of {made.conversations} prompts"
    )


def _parity(manifest: Manifest) -> str:
    parity = manifest.parity
    if parity is None:
        return "not measured yet: rm-export verify BUNDLE --checkpoint ..."
    error, spearman = parity.get("max_error_in_std"), parity.get("spearman")
    told = [str(parity.get("verdict", "see parity.json"))]
    rate, interval = parity.get("clear_flip_rate"), parity.get("clear_flip_interval")
    if isinstance(rate, float) and isinstance(interval, list):
        told.append(f"{100 * rate:.2f} % of clear ones (95 % interval to {100 * interval[-1]:.2f} %)")
    if isinstance(error, float):
        told.append(f"largest error {error:.2g} std")
    if isinstance(spearman, float):
        told.append(f"Spearman {spearman:.5f}")
    return "; ".join([*told, f"{parity.get('rows')} rows, by {parity.get('engine')}"])


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
