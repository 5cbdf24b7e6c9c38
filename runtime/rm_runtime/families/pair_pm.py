"""The pairwise preference model: a prompt and two answers -> the probability that the first is better.

Every comparison asks the model twice, with the answers in both orders, and takes the mean of the two
probabilities of the same answer, as RLHFlow's reference does (semantics.md 2): a preference for the place
"A" cancels out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from rm_runtime.batching import run_rows
from rm_runtime.errors import (
    BundleError,
    PromptError,
    RequestError,
    RewardModelError,
    UnscorableError,
    raise_if_asked,
)
from rm_runtime.options import RequestOptions, check_error_policy
from rm_runtime.preferences import Preferences, preferences_of_comparisons
from rm_runtime.prompt_spec import PairChatPrompt
from rm_runtime.prompts import PairChatPrompter, Prompt
from rm_runtime.results import Comparison, Ranking, Truncation
from rm_runtime.templates import validate_conversation, validate_text
from rm_runtime.tournament import CONTESTS

if TYPE_CHECKING:
    from rm_runtime.bundle import Bundle
    from rm_runtime.engines.protocol import Engine

Messages = Sequence[Mapping[str, Any]]
Question = tuple[Messages, str, str]
Result = TypeVar("Result")


class PairPM:
    """A loaded bundle that compares answers. Messages come without an answer: the user's turn is the last."""

    def __init__(self, bundle: Bundle, engine: Engine, options: RequestOptions) -> None:
        prompt = bundle.manifest.prompt
        if not isinstance(prompt, PairChatPrompt):
            raise BundleError(f"{bundle.path}: family {bundle.manifest.family} needs a pair-chat prompt")
        self.bundle = bundle
        self.engine = engine
        self.options = options
        self._prompter = PairChatPrompter(prompt, bundle.tokenizer())
        self._question_end = prompt.chat.required_suffix

    @property
    def family(self) -> str:
        """The bundle's family name."""
        return self.bundle.manifest.family

    def score(self, *_: Any, **__: Any) -> NoReturn:
        """Raises RequestError: there is no score of one answer."""
        raise RequestError(
            f"a {self.family} model compares answers and cannot score one alone; "
            "use rank(messages, responses) or compare(messages, a, b)"
        )

    def compare(
        self, messages: Messages, a: str, b: str, temperature: float | None = None, **options: Any
    ) -> Comparison:
        """Compare two answers to one prompt, in two forwards.

        temperature: the T of sigmoid((l_A - l_B) / T), None = the bundle's own. options: RequestOptions
        fields that overrule the loaded ones for this call. Exactly 0.5 if the order of the answers changes
        nothing.
        Raises PromptError if no prompt can be made of it, UnscorableError if the model gives no number for
        it.
        """
        (result,) = self.compare_many([(messages, a, b)], temperature, "return", **options)
        return _or_raise(result)

    def compare_many(
        self,
        comparisons: Sequence[Question],
        temperature: float | None = None,
        errors: str = "raise",
        **options: Any,
    ) -> list[Comparison | RewardModelError]:
        """Compare many (messages, a, b), batched together; one Comparison each, in their order.

        errors: "raise" raises one ScoringError that names every comparison that failed, after the others were
        computed, and carries them; "return" puts the error in that comparison's place. Otherwise as
        `compare`.
        """
        check_error_policy(errors)
        divisor = self._temperature(temperature)
        chosen = replace(self.options, **options)
        orders = [order for messages, a, b in comparisons for order in ((messages, a, b), (messages, b, a))]
        encoded = self._prompter.encode(orders, truncation=chosen.truncation, special_text=chosen.special_text)
        replies = self._replies([self._answerable(prompt) for prompt in encoded], chosen.batch_tokens)
        pairs = zip(replies[::2], replies[1::2], strict=True)
        return raise_if_asked([_comparison(a_first, b_first, divisor) for a_first, b_first in pairs], errors)

    def rank(
        self,
        messages: Messages,
        responses: Sequence[str],
        method: str = "tournament",
        temperature: float | None = None,
        **options: Any,
    ) -> Ranking:
        """Rank answers to one prompt.

        method: "tournament", a knock-out with 2(n - 1) forwards, or "round-robin" with n(n - 1). The bracket,
        the tie rule and what scores mean are in tournament.py; two answers score their two probabilities.
        Raises RequestError for bad responses or method, and what `compare` raises, naming the two answers.
        """
        (result,) = self.rank_many([(messages, responses)], method, temperature, "return", **options)
        return _or_raise(result)

    def rank_many(
        self,
        groups: Sequence[tuple[Messages, Sequence[str]]],
        method: str = "tournament",
        temperature: float | None = None,
        errors: str = "raise",
        **options: Any,
    ) -> list[Ranking | RewardModelError]:
        """Rank many (messages, responses), their rounds batched together; one Ranking each, in their order.

        errors: as in `compare_many`. Otherwise as `rank`.
        """
        check_error_policy(errors)
        if method not in CONTESTS:
            raise RequestError(f"method={method!r}: {' or '.join(map(repr, CONTESTS))}")
        entries = [_Entry(messages, responses, method) for messages, responses in groups]
        while playing := [(entry, questions) for entry in entries if (questions := entry.questions())]:
            asked = [question for _, questions in playing for question in questions]
            answers = iter(self.compare_many(asked, temperature, "return", **options))
            for entry, questions in playing:
                entry.play([next(answers) for _ in questions])
        return raise_if_asked([entry.result() for entry in entries], errors)

    def preferences_many(
        self,
        groups: Sequence[tuple[Messages, Sequence[str]]],
        temperature: float | None = None,
        errors: str = "raise",
        **options: Any,
    ) -> list[Preferences | RewardModelError]:
        """Every pair of the answers of many (messages, responses), n(n - 1) forwards each; ranked as by `rank`.

        errors: as in `compare_many`. Otherwise as `rank`.
        """
        check_error_policy(errors)
        refused = [_refusal(messages, responses) for messages, responses in groups]
        asked = [
            (messages, responses[i], responses[j])
            for (messages, responses), error in zip(groups, refused, strict=True)
            if error is None
            for i, j in combinations(range(len(responses)), 2)
        ]
        answers = iter(self.compare_many(asked, temperature, "return", **options))
        results = [
            error or preferences_of_comparisons(len(responses), list(islice(answers, math.comb(len(responses), 2))))
            for (_, responses), error in zip(groups, refused, strict=True)
        ]
        return raise_if_asked(results, errors)

    def probe(self) -> None:
        """Compare two short answers. Raises BundleError if the bundle gives no number for them."""
        try:
            self.compare([{"role": "user", "content": "Hello"}], "Hi", "Bye")
        except RequestError as error:
            raise BundleError(
                f"{self.bundle.path} cannot compare even two plain answers: {error}; export the bundle again"
            ) from None

    def _answerable(self, prompt: Prompt | PromptError) -> Prompt | PromptError:
        """The prompt, or an error if truncation took the end of it, after which the model answers."""
        end = self._question_end
        if isinstance(prompt, PromptError) or not end or tuple(prompt.ids[-len(end) :].tolist()) == end:
            return prompt
        cut = "; ".join(map(str, prompt.truncation))
        return PromptError(f"the prompt is too long, and the model cannot answer without its end ({cut})")

    def _replies(self, prompts: Sequence[Prompt | PromptError], batch_tokens: int) -> list[_Reply | PromptError]:
        """The model's reply to each prompt. Equal prompts are run once, so that equal answers tie exactly."""
        unique = {prompt.ids.tobytes(): prompt.ids for prompt in prompts if isinstance(prompt, Prompt)}
        rows = list(unique.values())
        outputs = run_rows(self.engine, rows, self.bundle.manifest.pad_token_id, batch_tokens)
        logits = {key: outputs["logits"][row].tolist() for row, key in enumerate(unique)}
        return [
            prompt if isinstance(prompt, PromptError) else _Reply(prompt, *logits[prompt.ids.tobytes()])
            for prompt in prompts
        ]

    def _temperature(self, temperature: float | None) -> float:
        if temperature is not None:
            if not _is_temperature(temperature):
                raise RequestError(f"temperature={temperature!r}: a finite number above 0")
            return float(temperature)
        of_bundle: Any = self.bundle.manifest.parameters.get("temperature")
        if not _is_temperature(of_bundle):
            raise BundleError(f"{self.bundle.path}: its temperature is {of_bundle!r}; export the bundle again")
        return float(of_bundle)


@dataclass(frozen=True, eq=False)
class _Reply:
    """What the model said to one prompt: the logits of the next tokens "A" and "B"."""

    prompt: Prompt
    a: float
    b: float

    @property
    def margin(self) -> float:
        """Log-odds of "A" at temperature 1."""
        return self.a - self.b


class _Entry:
    """One prompt's answers on their way through a contest, until it is over or a comparison fails."""

    def __init__(self, messages: Messages, responses: Sequence[str], method: str) -> None:
        self._messages = messages
        self._responses = responses
        self._error: RewardModelError | None = _refusal(messages, responses)
        self._contest = CONTESTS[method](0 if self._error else len(responses))
        self._truncation: list[dict[Truncation, None]] = [{} for _ in self._contest.scores]

    def questions(self) -> list[Question]:
        """What to compare next; empty when there is a result."""
        if self._error:
            return []
        answers = self._responses
        return [(self._messages, answers[first], answers[second]) for first, second in self._contest.matches()]

    def play(self, answers: Sequence[Comparison | RewardModelError]) -> None:
        """Enter the answers to `questions`, in its order."""
        probabilities = []
        for (first, second), answer in zip(self._contest.matches(), answers, strict=True):
            if isinstance(answer, RewardModelError):
                self._error = type(answer)(f"responses {first} and {second}: {answer}")
                return
            probabilities.append(answer.probability)
            for response in (first, second):
                self._truncation[response].update(dict.fromkeys(answer.truncation))
        self._contest.play(probabilities)

    def result(self) -> Ranking | RewardModelError:
        """The ranking; its truncation lists what was cut from any prompt that an answer took part in."""
        cuts = [tuple(of_response) for of_response in self._truncation]
        return self._error or Ranking.from_scores(self._contest.scores, cuts)


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), without overflow."""
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    power = math.exp(x)
    return power / (1 + power)


def _comparison(
    a_first: _Reply | PromptError, b_first: _Reply | PromptError, temperature: float
) -> Comparison | RewardModelError:
    """The first answer is "A" in the prompt of `a_first` and "B" in that of `b_first`."""
    if isinstance(a_first, PromptError):
        return a_first
    if isinstance(b_first, PromptError):
        return b_first
    for reply in (a_first, b_first):
        if not math.isfinite(reply.margin):
            reason = "its weights or activations are not finite" if len(reply.prompt.ids) else "no token to read"
            return UnscorableError(f"the model gave no number for it: {reason}")
    first, second = sigmoid(a_first.margin / temperature), sigmoid(-b_first.margin / temperature)
    # the rounding of a mean must not decide between answers that the model holds equal
    probability = 0.5 if a_first.margin == b_first.margin else (first + second) / 2
    logits = ((a_first.a, a_first.b), (b_first.a, b_first.b))
    prompts = (a_first.prompt, b_first.prompt)
    cuts = prompts[0].truncation + prompts[1].truncation
    return Comparison(probability, (first, second), logits, cuts, max(len(prompt.ids) for prompt in prompts))


def _refusal(messages: object, responses: object) -> RequestError | None:
    """Why these answers cannot be ranked, or None."""
    if not isinstance(responses, (list, tuple)) or not responses:
        return RequestError("responses must be a list of at least one text")
    try:
        validate_conversation(messages)
        for place, response in enumerate(responses):
            validate_text(response, f"response {place}")
    except PromptError as error:
        return error
    return None


def _is_temperature(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _or_raise(result: Result | RewardModelError) -> Result:
    if isinstance(result, RewardModelError):
        raise result
    return result
