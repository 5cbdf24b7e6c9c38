"""A whole benchmark: rows, contenders, scenarios -> the report as JSON."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from rm_runtime.bench.contenders import Contender, ContenderSpec, contender_specs
from rm_runtime.bench.endpoint_contender import EndpointContender, EndpointSpec, answers_to_ask
from rm_runtime.bench.machine import machine_facts
from rm_runtime.bench.rows import rows_of, rows_without_bundle
from rm_runtime.bench.scenarios import offline, server, single_stream
from rm_runtime.bundle import MANIFEST_NAME, open_bundle
from rm_runtime.engines import chosen_engine
from rm_runtime.errors import EngineError, RequestError
from rm_runtime.token_budget import default_batch_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rm_runtime.bench.rows import Rows
    from rm_runtime.bench.scenarios import Arrive, Run
    from rm_runtime.bundle import Bundle

    Spec = ContenderSpec | EndpointSpec

FORMAT_VERSION = 1
SCENARIOS = ("single-stream", "offline", "server")


@dataclass(frozen=True)
class BenchSettings:
    """What is measured, and how.

    engines, versus: as rm_runtime.bench.contenders.contender_specs. queries: rows. warmup: rows that each contender
    runs before anything counts, after the longest one. rounds: of Offline. rate: of Server in conversations per second,
    None = the highest that keeps p99_ms. checkpoint: of the reference, None = the one the bundle names.
    reference_batch_rows: rows a reference takes at once, in the order they come. chats: a JSONL file. share_prefixes,
    batch_tokens: of the bundle's engines, as load has them. one_at_a_time: each contender is opened, measured and
    closed before the next is opened. urls: servers, model: of theirs, connections: to each at once.
    """

    engines: tuple[str, ...] = ("auto",)
    versus: str | None = None
    scenarios: tuple[str, ...] = SCENARIOS
    queries: int = 128
    warmup: int = 8
    rounds: int = 3
    seed: int = 0
    rate: float | None = None
    p99_ms: float = 1000.0
    threads: int | None = None
    device: str | None = None
    batch_tokens: int | None = None
    checkpoint: str | None = None
    reference_batch_rows: int = 8
    chats: Path | None = None
    share_prefixes: bool = True
    one_at_a_time: bool = False
    urls: tuple[str, ...] = ()
    model: str | None = None
    connections: int = 16

    def __post_init__(self) -> None:
        """Raises RequestError for a value that nothing can be measured with."""
        for name in ("queries", "rounds", "batch_tokens", "reference_batch_rows", "connections"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise RequestError(f"{name}={getattr(self, name)}: at least 1")
        if self.warmup < 0 or self.p99_ms <= 0 or (self.rate is not None and self.rate <= 0):
            raise RequestError("warmup must not be negative, p99_ms and rate must be above 0")
        unknown = [name for name in self.scenarios if name not in SCENARIOS]
        if unknown or not self.scenarios:
            raise RequestError(f"scenarios={self.scenarios!r}: some of {', '.join(SCENARIOS)}")


def bench(
    path: Path | None, settings: BenchSettings, on_step: Callable[[str], None] = lambda step: None
) -> dict[str, Any]:
    """Measure a bundle and servers; returns the report, as report.schema.json describes it.

    path: None = servers only, whose rows have estimated lengths. on_step: told what is done next. A contender that
    cannot be opened, or fails on the way, has its reason in its "failure" and no figures. Raises BundleError,
    RequestError; EngineError if no contender could be measured.
    """
    specs: list[Spec] = [EndpointSpec(url, settings.model, settings.connections) for url in settings.urls]
    bundle = None if path is None else open_bundle(path)
    if bundle is None:
        if not specs:
            raise RequestError("nothing to measure: neither a bundle nor a server")
        answers = answers_to_ask(specs[0].name, settings.model)
        rows = rows_without_bundle(settings.queries, answers, settings.seed, settings.chats)
    else:
        specs = [*contender_specs(settings.engines, settings.versus), *specs]
        if settings.batch_tokens is None:
            settings = replace(settings, batch_tokens=default_batch_tokens(bundle, settings.device))
        rows = rows_of(bundle, settings.queries, settings.seed, settings.chats)
    machine = machine_facts()
    fields = [[spec] for spec in specs] if settings.one_at_a_time else [specs]
    reports = [report for field in fields for report in _measured(field, bundle, rows, settings, on_step)]
    if all(report["failure"] for report in reports):
        raise EngineError("; ".join(report["failure"] for report in reports))
    report = {
        "kind": "rm-runtime bench",
        "format": FORMAT_VERSION,
        "bundle": None if bundle is None else _bundle_facts(bundle),
        "machine": machine,
        "settings": _described(settings),
        "rows": {**rows.described(), "origin": rows.origin},
        "auto": None if bundle is None else chosen_engine(bundle, settings.device),
        "contenders": reports,
    }
    return _as_in_a_file(report)


def _bundle_facts(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "path": str(bundle.path),
        "sha256": hashlib.sha256((bundle.path / MANIFEST_NAME).read_bytes()).hexdigest(),
        "source": manifest.source.id,
        "family": manifest.family,
        "precision": manifest.precision,
        "target": manifest.target,
    }


def _as_in_a_file(report: dict[str, Any]) -> dict[str, Any]:
    """With lists for tuples, so that a report equals itself read again."""
    read: dict[str, Any] = json.loads(json.dumps(report))
    return read


def _measured(
    specs: Sequence[Spec],
    bundle: Bundle | None,
    rows: Rows,
    settings: BenchSettings,
    on_step: Callable[[str], None],
) -> list[dict[str, Any]]:
    """The reports of contenders that are open together and take turns."""
    start: dict[str, Any] = {
        "bundle": None if bundle is None else str(bundle.path),
        "checkpoint": settings.checkpoint,
        "threads": settings.threads,
        "device": settings.device,
        "batch_tokens": settings.batch_tokens,
        "share_prefixes": settings.share_prefixes,
        "batch_rows": settings.reference_batch_rows,
        "rows": [row.tolist() for row in rows.ids],
    }
    field = _Field()
    with contextlib.ExitStack() as stack:
        for spec in specs:
            on_step(f"opening {spec.name}")
            field.open(spec, start, rows.requests, stack)
        lengths = rows.lengths
        longest = max(range(len(lengths)), key=lambda row: lengths[row])
        on_step("warming up")
        for run in field.runs().values():
            run([longest])
            for row in range(min(settings.warmup, len(lengths))):
                run([row])
        if "single-stream" in settings.scenarios and (runs := field.runs()):
            on_step("single-stream")
            field.note("single_stream", single_stream(runs, len(lengths)))
        if "offline" in settings.scenarios and (runs := field.runs()):
            on_step("offline")
            field.note("offline", offline(runs, lengths, settings.rounds))
        if "server" in settings.scenarios and (runs := field.runs()):
            on_step("server")
            bound, seed = settings.p99_ms, settings.seed
            tokens, live = settings.batch_tokens or 0, field.live()
            field.note("server", server(runs, lengths, tokens, bound, seed, settings.rate, live))
        return field.reports()


class _Field:
    """The contenders of one benchmark and what is known of each. One that failed runs no more, the others go on."""

    def __init__(self) -> None:
        self._reports: dict[str, dict[str, Any]] = {}
        self._contenders: dict[str, Contender | EndpointContender] = {}

    def open(self, spec: Spec, start: dict[str, Any], requests: Sequence[str], stack: contextlib.ExitStack) -> None:
        """Start it, or call the server; it is stopped with the stack."""
        report = {"name": spec.name, "reference": spec.is_reference, "failure": None}
        self._reports[spec.name] = report
        try:
            contender: Contender | EndpointContender = (
                EndpointContender(spec, requests) if isinstance(spec, EndpointSpec) else Contender(spec, start)
            )
        except EngineError as error:
            report["failure"] = str(error)
            return
        stack.callback(contender.stop)
        report.update(contender.opened)
        self._contenders[spec.name] = contender

    def runs(self) -> dict[str, Run]:
        """Those that have not failed."""
        return {name: self._guarded(name) for name in self._contenders if not self._reports[name]["failure"]}

    def live(self) -> dict[str, Arrive]:
        """Those that are servers; once one failed it answers anything after a second, and nobody sees the result."""
        return {
            name: self._guarded_live(name, contender)
            for name, contender in self._contenders.items()
            if isinstance(contender, EndpointContender)
        }

    def note(self, scenario: str, results: dict[str, Any]) -> None:
        """Enter a scenario's results, but for contenders that failed in it."""
        for name, result in results.items():
            if not self._reports[name]["failure"]:
                self._reports[name][scenario] = asdict(result)

    def reports(self) -> list[dict[str, Any]]:
        """Close all; one report a contender, in their order."""
        for name, contender in self._contenders.items():
            if not self._reports[name]["failure"]:
                try:
                    self._reports[name]["peak_bytes"] = contender.close()
                except EngineError as error:
                    self._reports[name]["failure"] = str(error)
        return list(self._reports.values())

    def _guarded(self, name: str) -> Run:
        """Its run; once it failed it takes a second for anything, and nobody sees the result."""

        def run(rows: Sequence[int]) -> float:
            report = self._reports[name]
            if report["failure"]:
                return 1.0
            try:
                return self._contenders[name].run(rows)
            except EngineError as error:
                report["failure"] = str(error)
                return 1.0

        return run

    def _guarded_live(self, name: str, contender: EndpointContender) -> Arrive:
        def arrive(rows: Sequence[int], arriving: Sequence[float]) -> list[float]:
            report = self._reports[name]
            if not report["failure"]:
                try:
                    return contender.answered_at(rows, arriving)
                except EngineError as error:
                    report["failure"] = str(error)
            return [arrival + 1.0 for arrival in arriving]

        return arrive


def _described(settings: BenchSettings) -> dict[str, Any]:
    described = asdict(settings)
    described["chats"] = None if settings.chats is None else str(settings.chats)
    return described
