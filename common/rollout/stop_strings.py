"""Ends of a turn that a tokenizer may spell with several tokens."""

from __future__ import annotations

from collections.abc import Sequence

import transformers


class StopString:
    """Whether sampled tokens have just completed a string, whatever tokens spell it."""

    def __init__(self, tokenizer: transformers.PreTrainedTokenizerBase, text: str) -> None:
        self._tokenizer = tokenizer
        self._text = text
        self._ending = frozenset(
            number for token, number in tokenizer.get_vocab().items() if text[-1] in token
        )
        """Decoding takes long, and no other token can complete the string."""

    def __call__(self, token_ids: Sequence[int]) -> bool:
        if token_ids[-1] not in self._ending:
            return False
        # A token has at least a byte, so these cannot but hold the string if it is there.
        tail = list(token_ids[-len(self._text.encode()) :])
        before = self._tokenizer.decode(tail[:-1], skip_special_tokens=False)
        return (
            self._text
            in self._tokenizer.decode(tail, skip_special_tokens=False)[
                max(0, len(before) - len(self._text) + 1) :
            ]
        )
