"""Ends of a turn that a tokenizer may spell with several tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import transformers


class StopString:
    """Whether sampled tokens have just completed a string, whatever tokens spell it."""

    def __init__(self, tokenizer: transformers.PreTrainedTokenizerBase, text: str) -> None:
        self._tokenizer = tokenizer
        self._text = text
        self.ending_ids = _tokens_with(tokenizer, text[-1])
        """The tokens that may complete it; None where any may."""

    def __call__(self, token_ids: Sequence[int]) -> bool:
        if self.ending_ids is not None and token_ids[-1] not in self.ending_ids:
            return False
        # A token has at least a byte, so these cannot but hold the string if it is there.
        tail = list(token_ids[-len(self._text.encode()) :])
        before = self._tokenizer.decode(tail[:-1], skip_special_tokens=False)
        # A character whose tokens are not all there yet is none.
        known = len(str(before).rstrip("\N{REPLACEMENT CHARACTER}"))
        written = self._tokenizer.decode(tail, skip_special_tokens=False)
        return self._text in written[max(0, known - len(self._text) + 1) :]


def ending_ids(strings: Sequence[StopString]) -> frozenset[int] | None:
    """The tokens that may complete one of them; None where any may."""
    each = [string.ending_ids for string in strings]
    return None if None in each else frozenset().union(*filter(None, each))


def _tokens_with(
    tokenizer: transformers.PreTrainedTokenizerBase, character: str
) -> frozenset[int] | None:
    """The tokens that can complete a string: decoding takes long, and no others need it.

    None where any may: white space, and what is not ASCII, is spelled otherwise in a vocabulary.
    """
    if not (character.isascii() and character.isprintable()) or character == " ":
        return None
    alone = f"<0x{ord(character):02X}>"
    vocabulary = tokenizer.get_vocab().items()
    return frozenset(n for token, n in vocabulary if character in token or token == alone)
