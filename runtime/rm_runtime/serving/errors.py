"""What a server may answer instead of a score: each error knows its HTTP status."""

from __future__ import annotations

from rm_runtime.errors import RequestError, RewardModelError, ScoringError
from rm_runtime.serving.logs import LOG


class ServingError(RewardModelError):
    """Base of the server's own refusals. retry_after: seconds a client should wait, None = do not come back as is."""

    status = 500
    retry_after: int | None = None


class BadBodyError(ServingError):
    """The body is not JSON, or came in a form the server does not read."""

    status = 400


class UnauthorizedError(ServingError):
    """No API key, or a wrong one."""

    status = 401


class UnknownModelError(ServingError):
    """No bundle of that name is served."""

    status = 404


class SlowBodyError(ServingError):
    """The body did not come in time."""

    status = 408


class TooLargeError(ServingError):
    """More bytes, rows or tokens than one request may have."""

    status = 413


class BusyError(ServingError):
    """Base of what passes: its answers always say when to come back."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFullError(BusyError):
    """More rows or tokens wait than the server holds."""

    status = 429


class ClientGoneError(ServingError):
    """The client hung up before it was answered; nobody reads this. 499 is nginx's number for it."""

    status = 499


class NotReadyError(BusyError):
    """Bundles are being loaded, or the server is about to stop."""

    status = 503


class DeadlineError(ServingError):
    """The answer did not come in the time a request has."""

    status = 504


def status_of(error: Exception) -> int:
    """The HTTP status an error is answered with: 422 for what the client wrote, 500 for what is ours."""
    if isinstance(error, ServingError):
        return error.status
    return 422 if isinstance(error, (RequestError, ScoringError)) else 500


def told(error: Exception) -> str:
    """What a client is told of an error, in one line; of a defect only that there is one, the log has the rest."""
    if isinstance(error, RewardModelError):
        return str(error)
    LOG.error("defect", exc_info=error)
    return "the server has a defect; its log has more"
