"""`python -m rm_export.demo BUNDLE`: three answers to one question, ranked by the demo bundle, as a table."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rm_export.demo import DEMO_CHAT
from rm_runtime import ArmoScore, load
from rm_runtime.results import competition_ranks

_BAR = 16
_STYLES = ("bold green", "yellow", "red")


def main(bundle: str) -> None:
    """Load the bundle, score the demo's three answers, print them best first."""
    began = time.perf_counter()
    model = load(bundle)
    loaded = time.perf_counter()
    question, responses = DEMO_CHAT
    messages = [{"role": "user", "content": question}]
    scores = model.score([[*messages, {"role": "assistant", "content": response}] for response in responses])
    scored = time.perf_counter()
    console = Console()
    console.print(Panel(Text(question, style="bold"), title="question", title_align="left"))
    console.print(_table(responses, scores))
    console.print(
        f"[dim]loaded in {loaded - began:.2f} s, three answers scored in {1000 * (scored - loaded):.0f} ms, "
        f"by {bundle}[/dim]"
    )


def _table(responses: tuple[str, ...], scores: list[ArmoScore]) -> Table:
    table = Table(show_lines=True)
    table.add_column("rank", justify="center")
    table.add_column("answer", ratio=2)
    table.add_column("score", justify="right")
    table.add_column("what weighed most: coefficient x reward", ratio=2, overflow="fold")
    ranks = competition_ranks([score.score for score in scores])
    low, high = min(s.score for s in scores), max(s.score for s in scores)
    for rank, response, score in sorted(zip(ranks, responses, scores, strict=True), key=lambda row: row[0]):
        style = _STYLES[min(rank, len(_STYLES)) - 1]
        filled = round(_BAR * (score.score - low) / (high - low)) if high > low else _BAR
        bar = Text("█" * max(1, filled), style=style)
        table.add_row(
            Text(str(rank), style=style),
            Text(response),
            Text(f"{score.score:+.2f}\n", style=style) + bar,
            "\n".join(f"{name}  {weight:+.2f} x {score.rewards[name]:+.2f}" for name, weight in score.top(3)),
        )
    return table


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m rm_export.demo BUNDLE")
    main(sys.argv[1])
