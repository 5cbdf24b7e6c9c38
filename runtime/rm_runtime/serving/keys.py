"""API keys: from a file or the environment, never from the command line, which every user of a machine sees."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable
from pathlib import Path

from rm_runtime.serving.errors import ServingError

ENVIRONMENT = "RM_RUNTIME_API_KEYS"
"""Keys, separated by white space."""


class ApiKeys:
    """Which keys may ask. Compared by their hashes in constant time: neither length nor content shows in the time."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def allow(self, authorization: str | None) -> bool:
        """Whether an Authorization header holds one of the keys, or none is asked for."""
        scheme, _, key = (authorization or "").partition(" ")
        digest = _digest(key.strip())
        matches = [hmac.compare_digest(digest, known) for known in self._digests]  # all, whichever matches
        return not self._digests or (scheme.lower() == "bearer" and any(matches))

    def client(self, authorization: str | None, peer: str) -> str:
        """Whose a request is that `allow` let in: its key's, where keys are asked for, else its address's."""
        return _digest((authorization or "").partition(" ")[2].strip()).hex() if self else peer


def read_keys(path: Path | None) -> ApiKeys:
    """The keys of a file, one a line, and of the environment. Raises ServingError for a file without any."""
    of_file = path.read_text(encoding="utf-8").split() if path else []
    if path and not of_file:
        raise ServingError(f"{path} holds no API key; write one a line")
    return ApiKeys([*of_file, *os.environ.get(ENVIRONMENT, "").split()])


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
