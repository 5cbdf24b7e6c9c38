"""Conversation -> prompt (token ids), from a bundle's prompt spec and tokenizer.json alone.

A conversation is validated, rendered by its template (templates.py), guarded against special-token text that
a user typed (special_text.py), and tokenised (tokenization.py). One bad row never fails its neighbours: its
error takes its place in the list.
"""

from __future__ import annotations

import itertools
import string
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from rm_runtime.errors import BundleError, PromptError, RequestError
from rm_runtime.special_text import ControlText, PlainTextTokenizer, control_tokens
from rm_runtime.templates import Messages, render_chat, render_template, validate_conversation, validate_text
from rm_runtime.tokenization import OnTooLong, Prompt, PromptTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tokenizers import Tokenizer

    from rm_runtime.prompt_spec import ChatPrompt, PairChatPrompt

__all__ = ["ChatPrompter", "Draft", "OnSpecialText", "OnTooLong", "PairChatPrompter", "Prompt"]

OnSpecialText = Literal["token", "text", "error"]
"""What special-token text in a message means: the token itself (the reference), plain text, or an error."""

_PROBE: Messages = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
_PAIR_PROBE: Messages = ({"role": "user", "content": "a"},)
_ROWS_AT_A_TIME = 256
"""Rows tokenised in one call: enough to fill every core, few enough that their encodings stay small."""


@dataclass(frozen=True)
class Draft:
    """A row before rendering: the user's texts, what to call each in an error, what renders such texts."""

    texts: list[str]
    places: list[str]
    render: Callable[[Sequence[str]], str]


class ChatPrompter:
    """Conversations -> prompts by a ChatPrompt. Safe to share between threads.

    Takes the tokenizer over: its padding and truncation settings are switched off. `probe` is a conversation
    the template can render; it is encoded once, and BundleError raised if spec and tokenizer do not belong
    together: the template fails, or the BOS count or the suffix is not the spec's.
    """

    def __init__(
        self,
        spec: ChatPrompt,
        tokenizer: Tokenizer,
        *,
        probe: Messages = _PROBE,
        written_by: Iterable[str] = (),
    ) -> None:
        self.spec = spec
        self._tokenizer = PromptTokenizer(spec, tokenizer)
        variables = (text for text in spec.variables.values() if isinstance(text, str))
        self._sources = [spec.template, *variables, *written_by]
        self.control_text = ControlText(tokenizer, control_tokens(tokenizer, self._sources))
        self._plain_text: PlainTextTokenizer | PromptError | None = None
        self._plain_text_lock = threading.Lock()
        (prompt,) = self.encode([probe])
        if isinstance(prompt, PromptError):
            raise BundleError(f"the bundle's prompt spec does not fit its template or tokenizer: {prompt}")

    def encode(
        self,
        conversations: Iterable[object],
        truncation: OnTooLong = "cut",
        special_text: OnSpecialText = "token",
    ) -> list[Prompt | PromptError]:
        """One prompt a conversation, in order; one that cannot be encoded gives its error in its place.

        Raises RequestError for unknown option values only.
        """
        drafts = (_attempt(self._draft, messages) for messages in conversations)
        return self.encode_drafts(drafts, truncation, special_text)

    def encode_rendered(self, texts: Iterable[object], truncation: OnTooLong = "cut") -> list[Prompt | PromptError]:
        """Prompts of strings rendered elsewhere; special-token text in them is special tokens.

        What follows rendering is as in `encode`: BOS text removed, special tokens added, BOS and suffix
        checked.
        """
        drafts = (_attempt(_rendered_draft, text) for text in texts)
        return self.encode_drafts(drafts, truncation)

    def encode_drafts(
        self,
        drafts: Iterable[Draft | PromptError],
        truncation: OnTooLong = "cut",
        special_text: OnSpecialText = "token",
    ) -> list[Prompt | PromptError]:
        """`encode` for texts that reach the template another way (an answer pair). Errors pass through."""
        _check_option("truncation", truncation, OnTooLong)
        _check_option("special_text", special_text, OnSpecialText)
        prompts: list[Prompt | PromptError] = []
        rows = iter(drafts)
        while chunk := list(itertools.islice(rows, _ROWS_AT_A_TIME)):
            prompts += self._encode_chunk(chunk, truncation, special_text)
        return prompts

    def _draft(self, messages: object) -> Draft:
        texts, places = _texts_of(messages, "message")
        return Draft(texts, places, lambda texts: render_chat(self.spec, _messages_of(texts)))

    def _encode_chunk(
        self, drafts: Sequence[Draft | PromptError], truncation: OnTooLong, special_text: OnSpecialText
    ) -> list[Prompt | PromptError]:
        """Rows whose users typed no special-token text share one tokenizer call; the others go alone."""
        prompts: dict[int, Prompt | PromptError] = {}
        rendered: dict[int, tuple[Draft, str]] = {}
        for row, draft in enumerate(drafts):
            try:
                if isinstance(draft, PromptError):
                    prompts[row] = draft
                elif special_text != "token" and self._holds_control_text(draft, special_text):
                    prompts[row] = self._encode_as_text(draft, truncation)
                else:
                    rendered[row] = (draft, self._tokenizer.without_bos(draft.render(draft.texts)))
            except PromptError as error:
                prompts[row] = error
        encodings = self._tokenizer.encode([text for _, text in rendered.values()])
        for (row, (draft, text)), encoding in zip(rendered.items(), encodings, strict=True):
            try:
                if isinstance(encoding, PromptError):
                    prompts[row] = encoding
                else:
                    prompts[row] = self._tokenizer.finish(encoding, text, draft.texts, truncation)
            except PromptError as error:
                prompts[row] = error
        return [prompts[row] for row in range(len(drafts))]

    def _holds_control_text(self, draft: Draft, special_text: OnSpecialText) -> bool:
        for text, place in zip(draft.texts, draft.places, strict=True):
            token = self.control_text.find(text)
            if token is not None and special_text == "error":
                raise PromptError(f"{place} holds the text of the special token {token!r}")
            if token is not None:
                return True
        return False

    def _encode_as_text(self, draft: Draft, truncation: OnTooLong) -> Prompt:
        """BOS text that a user typed stays, too: remove_bos_text removes only what the template wrote."""
        masked = self.control_text.mask(draft.texts, taken=self._sources)
        rendered = self._tokenizer.without_bos(draft.render(masked.texts))
        tokenizer = self._plain_text_tokenizer()
        encoding = tokenizer.encode(rendered, masked, add_special_tokens=self.spec.add_special_tokens)
        return self._tokenizer.finish(encoding, masked.restore(rendered), (), truncation)

    def _plain_text_tokenizer(self) -> PlainTextTokenizer:
        """Built on first use: with 128,000 pieces it takes about a second and the memory of a tokenizer."""
        with self._plain_text_lock:
            if self._plain_text is None:
                try:
                    self._plain_text = PlainTextTokenizer(self._tokenizer.tokenizer, self.control_text)
                except PromptError as error:
                    self._plain_text = error
        if isinstance(self._plain_text, PromptError):
            raise PromptError(str(self._plain_text))
        return self._plain_text


class PairChatPrompter:
    """(context messages, answer A, answer B) -> prompts by a PairChatPrompt (pair-preference-model).

    The context is rendered by its own template, put with both answers into the message as raw text (braces
    in it mean nothing), and that message is the one user turn of the chat template. Otherwise as
    ChatPrompter.
    """

    def __init__(self, spec: PairChatPrompt, tokenizer: Tokenizer) -> None:
        self.spec = spec
        self._message = _message_parts(spec.message)
        try:
            message = self._user_message([*_texts_of(_PAIR_PROBE, "message")[0], "b", "c"])
        except PromptError as error:
            raise BundleError(f"the bundle's context template does not work: {error}") from None
        sources = (spec.context_template, spec.message)
        self.chat = ChatPrompter(spec.chat, tokenizer, probe=message, written_by=sources)

    def encode(
        self,
        pairs: Iterable[object],
        truncation: OnTooLong = "cut",
        special_text: OnSpecialText = "token",
    ) -> list[Prompt | PromptError]:
        """One prompt a (context messages, answer A, answer B), in order; errors as in ChatPrompter.encode."""
        drafts = (_attempt(self._draft, pair) for pair in pairs)
        return self.chat.encode_drafts(drafts, truncation, special_text)

    def _draft(self, pair: object) -> Draft:
        if not isinstance(pair, (list, tuple)) or len(pair) != 3:
            raise PromptError("a pair is (context messages, answer A, answer B)")
        context, a, b = pair
        texts, places = _texts_of(context, "context message")
        answers = [validate_text(a, "answer A"), validate_text(b, "answer B")]
        places += ["answer A", "answer B"]
        return Draft([*texts, *answers], places, lambda texts: render_chat(self.spec.chat, self._user_message(texts)))

    def _user_message(self, texts: Sequence[str]) -> Messages:
        *context_texts, a, b = texts
        context = render_template(self.spec.context_template, _messages_of(context_texts), self.spec.chat.date)
        fields = {"context": context, "a": a, "b": b}
        content = "".join(literal + fields.get(field, "") for literal, field in self._message)
        return [{"role": "user", "content": content}]


def _attempt(draft: Callable[[object], Draft], row: object) -> Draft | PromptError:
    try:
        return draft(row)
    except PromptError as error:
        return error


def _rendered_draft(text: object) -> Draft:
    rendered = validate_text(text, "the rendered prompt")
    return Draft([], [], lambda _: rendered)


def _texts_of(messages: object, name: str) -> tuple[list[str], list[str]]:
    """A conversation as role, content, role, content, ... and what to call each of these in an error."""
    conversation = validate_conversation(messages)
    texts = [text for message in conversation for text in (message["role"], message["content"])]
    places = [f"the {key} of {name} {i}" for i in range(len(conversation)) for key in ("role", "content")]
    return texts, places


def _messages_of(texts: Sequence[str]) -> Messages:
    return [{"role": role, "content": content} for role, content in zip(texts[::2], texts[1::2], strict=True)]


def _message_parts(message: str) -> list[tuple[str, str]]:
    """(literal, field after it) pairs of PairChatPrompt.message; attributes, indices and formats are
    refused."""
    try:
        parsed = list(string.Formatter().parse(message))
    except ValueError as error:
        raise BundleError(f"the prompt spec's message {message!r} is not a format string: {error}") from None
    parts = [(literal, field or "") for literal, field, _, _ in parsed]
    plain = all(not spec and not conversion for _, _, spec, conversion in parsed)
    fields = sorted(field for _, field in parts if field)
    if not plain or fields != ["a", "b", "context"]:
        raise BundleError(f"the prompt spec's message must hold {{context}}, {{a}} and {{b}} once: {message!r}")
    return parts


def _check_option(name: str, value: object, options: Any) -> None:
    known = get_args(options)
    if value not in known:
        raise RequestError(f"unknown {name} {value!r}; choose one of {', '.join(map(repr, known))}")
