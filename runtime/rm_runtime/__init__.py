"""Score chats with an exported reward model: `load(bundle).score(conversations)`."""

from rm_runtime.errors import (
    BundleError,
    EngineError,
    PromptError,
    RequestError,
    RewardModelError,
    ScoringError,
    UnscorableError,
)
from rm_runtime.loading import load
from rm_runtime.results import ArmoScore, Comparison, DPAScore, LogitsScore, Ranking, Score, Truncation

__all__ = [
    "ArmoScore",
    "BundleError",
    "Comparison",
    "DPAScore",
    "EngineError",
    "LogitsScore",
    "PromptError",
    "Ranking",
    "RequestError",
    "RewardModelError",
    "Score",
    "ScoringError",
    "Truncation",
    "UnscorableError",
    "load",
]
