"""Special-token text typed by a user ("<|eot_id|>" in a message): found, refused, or encoded as plain text.

Encoding it as plain text must change nothing else. Two steps make that exact for every kind of tokenizer:

1. Before rendering, `ControlText.mask` breaks each such literal in the user's texts with one private-use
   character that the request does not hold. What is whole in the rendered string is the template's (so is
   what a template puts together from pieces, '<|' + role + '|>').
2. `PlainTextTokenizer` is the same tokenizer with its control tokens *renamed* to texts nobody types. The
   template's are replaced by those names, the marks are removed, and the string is encoded whole: normaliser,
   pre-tokeniser, merges and ids are untouched, only the user's literals no longer match a token.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rm_runtime.errors import PromptError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tokenizers import Encoding, Tokenizer

# A control token's name is OPEN, one character of plane 15, CLOSE: private use, and refused in users' texts.
_NAME_OPEN, _NAME_CLOSE = "\U0010fffc", "\U0010fffd"
_NAME_FIRST, _NAME_LAST = 0xF0000, 0xFFFFD
_NAME = re.compile(f"{_NAME_OPEN}[{chr(_NAME_FIRST)}-{chr(_NAME_LAST)}]{_NAME_CLOSE}")
_MARKS = range(0xE000, 0xF900)


def control_tokens(tokenizer: Tokenizer, written_by: Iterable[str] = ()) -> dict[str, int]:
    """Text -> id of the tokens that structure a prompt, which a user's text should not be able to write.

    These are the added tokens marked special, and those not marked so whose text occurs in `written_by` (the
    chat template's source, PairRM's prefixes). Whitespace never counts, nor do the other plain added tokens:
    Gemma's "\\n\\n" and "<h1>" are ordinary text. The rule is that of transformers 5.23's
    `sanitize_control_tokens`.
    """
    sources = tuple(written_by)
    return {
        token.content: token_id
        for token_id, token in sorted(tokenizer.get_added_tokens_decoder().items())
        if token.content.strip() and (token.special or any(token.content in text for text in sources))
    }


class ControlText:
    """Where control tokens occur in texts. Scans are linear in the text for every input."""

    def __init__(self, tokenizer: Tokenizer, tokens: Mapping[str, int]) -> None:
        longest_first = sorted(tokens, key=len, reverse=True)
        pattern = "|".join(map(re.escape, longest_first)) or "(?!)"
        self.tokens = dict(tokens)
        self.whole = re.compile(pattern)
        self._starts = re.compile(f"(?=(?:{pattern}))(.)", re.DOTALL)
        self._single = {text for text in tokens if len(text) == 1}
        self._normalizer = tokenizer.normalizer
        normalized = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.normalized}
        # tokens the tokenizer looks for in normalised text: fullwidth letters or capitals can write them too
        self._normalized = (
            {self._normalizer.normalize_str(text): text for text in longest_first if text in normalized}
            if self._normalizer is not None
            else {}
        )

    def find(self, text: str) -> str | None:
        """The first control token that `text` would be encoded with, or None."""
        if found := self.whole.search(text):
            return found[0]
        if self._normalized and self._normalizer is not None:
            written = self._normalizer.normalize_str(text)
            return next((token for form, token in self._normalized.items() if form in written), None)
        return None

    def mask(self, texts: Iterable[str], taken: Iterable[str] = ()) -> MaskedText:
        """`texts` with every control token broken by a mark that neither they nor `taken` hold."""
        originals = list(texts)
        used = set().union(*originals, *taken)
        free = (chr(code) for code in _MARKS if chr(code) not in used)
        try:
            mark = next(free)
            stand_ins = {next(free): single for single in sorted(self._single)}
        except StopIteration:
            raise PromptError("the texts use every private-use character; special_text='text' needs one") from None
        of_single = {single: stand_in for stand_in, single in stand_ins.items()}

        def break_token(start: re.Match[str]) -> str:
            return of_single.get(start[1]) or start[1] + mark

        masked = [self._starts.sub(break_token, text) for text in originals]
        return MaskedText(masked, str.maketrans({mark: "", **stand_ins}))


@dataclass(frozen=True)
class MaskedText:
    """texts: the user's texts with marks in them; marks: the translation that takes the marks out again."""

    texts: list[str]
    marks: dict[int, str]

    def restore(self, rendered: str) -> str:
        """A rendered string without the marks, as its reader should see it."""
        return rendered.translate(self.marks)


class PlainTextTokenizer:
    """The tokenizer with its control tokens renamed (see the module's docstring); a second vocabulary.

    Raises PromptError if a token cannot be renamed. Ids are those of the original tokenizer. Also right
    where the model itself would write a control token from plain text (a Unigram vocabulary that lists
    "[SEP]"): the renamed piece is out of reach.
    """

    def __init__(self, tokenizer: Tokenizer, tokens: ControlText) -> None:
        from tokenizers import Tokenizer

        if len(tokens.tokens) > _NAME_LAST - _NAME_FIRST:
            raise PromptError(f"special_text='text' cannot rename {len(tokens.tokens)} control tokens")
        self._control = tokens
        self._names = {
            text: f"{_NAME_OPEN}{chr(_NAME_FIRST + index)}{_NAME_CLOSE}" for index, text in enumerate(tokens.tokens)
        }
        # A name has no word boundaries; and a one-character piece may be a byte or letter of other words.
        unfit = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.single_word}
        unfit |= {text for text in tokenizer.get_vocab(with_added_tokens=False) if len(text) == 1}
        renamed = _rename_tokens(json.loads(tokenizer.to_str()), self._names)
        self._tokenizer = Tokenizer.from_str(json.dumps(renamed, ensure_ascii=False))
        for text, token_id in tokens.tokens.items():
            if text in unfit or self._tokenizer.token_to_id(self._names[text]) != token_id:
                raise PromptError(f"special_text='text' cannot rename the token {text!r} of this tokenizer")

    def encode(self, rendered: str, masked: MaskedText, *, add_special_tokens: bool) -> Encoding:
        """Encode a string rendered from masked texts: control tokens of the template only."""
        if _NAME.search(rendered):
            raise PromptError("the text holds private-use characters that special_text='text' reserves")
        named = self._control.whole.sub(lambda token: self._names[token[0]], rendered)
        return self._tokenizer.encode(masked.restore(named), add_special_tokens=add_special_tokens)


def _rename_tokens(tokenizer: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A tokenizer.json with tokens renamed wherever text can match them; ids and post-processor stay."""
    model = tokenizer["model"]
    for token in tokenizer["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    if isinstance(model["vocab"], dict):  # BPE, WordPiece, WordLevel: piece -> id
        model["vocab"] = {names.get(piece, piece): index for piece, index in model["vocab"].items()}
    else:  # Unigram: [piece, score] by id
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:  # a merge that would write a control token from plain text goes with its name
        model["merges"] = [pair for pair in model["merges"] if not names.keys() & {pair[0], pair[1], pair[0] + pair[1]}]
    return tokenizer
