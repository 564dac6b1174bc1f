"""From messages to prompt tokens and from sampled tokens to text."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from common.errors import UserError

_PLACEHOLDER = "QUESTIONGOESHERE"

# Some templates print today's date; a prompt must not change from one day to the next.
_PINNED_DATE = "01 Jan 2025"


class ChatFormat:
    """Renders the first prompt of a conversation through the tokenizer's chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system_prompt: str | None) -> None:
        self._tokenizer = tokenizer
        self._special_ids = frozenset(tokenizer.all_special_ids)
        messages = [{"role": "system", "content": system_prompt}] if system_prompt else []
        rendered = tokenizer.apply_chat_template(
            [*messages, {"role": "user", "content": _PLACEHOLDER}],
            add_generation_prompt=True,
            tokenize=False,
            date_string=_PINNED_DATE,
            strftime_now=lambda _: _PINNED_DATE,
        )
        self._before, found, self._after = str(rendered).partition(_PLACEHOLDER)
        if not found:
            raise UserError(
                f"the chat template of {tokenizer.name_or_path!r} drops the user's message; "
                "use a model with another chat template"
            )
        self._num_special = self._count_special(self._encode(str(rendered)))

    def prompt_ids(self, question: str) -> list[int]:
        """Tokens of the system prompt, the question and the opening of the assistant's turn.

        A question that spells a turn delimiter is encoded apart, as plain text, so that it cannot
        end its own turn; any other is encoded in one piece with the template around it.
        """
        whole = self._encode(self._before + question + self._after)
        if self._count_special(whole) == self._num_special:
            return whole
        plain = self._tokenizer(question, add_special_tokens=False, split_special_tokens=True)
        return self._encode(self._before) + list(plain.input_ids) + self._encode(self._after)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of sampled tokens without turn delimiters; tags such as `<answer>` stay."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def _count_special(self, token_ids: Sequence[int]) -> int:
        return sum(token_id in self._special_ids for token_id in token_ids)
