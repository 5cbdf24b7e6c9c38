"""What decides an answer: answers of other settings are not mixed into one file."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from rm_runtime.prompt_spec import prompt_to_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rm_runtime.bundle import Bundle

_OF_SPEED = ("threads", "batch_tokens", "share_prefixes", "verify")
"""Options of load that change what a run costs and not what it decides: a run that lacked memory may go on with
others."""


def answer_settings(bundle: Bundle, engine: str, command: str, options: Mapping[str, Any]) -> dict[str, str]:
    """What the answers of a run come from, by names that its user knows. engine: that which runs, not "auto"."""
    chosen = {name.replace("_", " "): str(value) for name, value in options.items() if name not in _OF_SPEED}
    return {"bundle": fingerprint(bundle), "command": command, **chosen, "engine": engine}


def differing(settings: Mapping[str, str], others: Mapping[str, str]) -> list[str]:
    """Names of what is not the same in both."""
    return [name for name in {**settings, **others} if settings.get(name) != others.get(name)]


def fingerprint(bundle: Bundle) -> str:
    """Hex sha256: the same for a bundle that was only verified or compiled since, other for one exported again."""
    manifest = bundle.manifest
    deciding = {
        "family": manifest.family,
        "files": {
            name: record.sha256
            for name, record in sorted(manifest.files.items())
            if name in manifest.graphs.values() or name.endswith(".data") or name == "tokenizer.json"
        },
        "pooling": manifest.pooling,
        "pad_token_id": manifest.pad_token_id,
        "prompt": prompt_to_json(manifest.prompt),
        "parameters": dict(manifest.parameters),
    }
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()
