"""From messages to prompt tokens and from sampled tokens to text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import transformers

from common.errors import UserError
from common.rewards.transcript import DEFAULT_REASONING_TAG, Message, Transcript
from common.rollout.trajectory import Trajectory

_PLACEHOLDER = "QUESTIONGOESHERE"
_REPLY = "REPLYGOESHERE"

# Some templates print today's date; a prompt must not change from one day to the next. A template
# gets the function as a macro, because transformers passes on data only.
_PINNED_DATE = "01 Jan 2025"
_PINNED_CLOCK = f"{{% macro strftime_now(format) %}}{_PINNED_DATE}{{% endmacro %}}"


class ChatFormat:
    """Renders the first prompt of a conversation through the tokenizer's chat template."""

    def __init__(
        self,
        tokenizer: transformers.PreTrainedTokenizerBase,
        system_prompt: str,
        tool_schemas: Sequence[Mapping[str, Any]] = (),
        reasoning_tag: str = DEFAULT_REASONING_TAG,
    ) -> None:
        """`tool_schemas` are shown by the template to a model that was trained to read them."""
        self.tokenizer = tokenizer
        self.reasoning_tag = reasoning_tag
        self._special_ids = _special_ids(tokenizer)
        self._tool_schemas = list(tool_schemas)
        self.opening = self._opening_messages(system_prompt)
        rendered = self.render(self.opening)
        if (times := rendered.count(_PLACEHOLDER)) != 1:
            raise UserError(
                f"the chat template of {tokenizer.name_or_path} writes the user's message {times} "
                "times instead of once; use a model with another chat template"
            )
        self._before, _, self._after = rendered.partition(_PLACEHOLDER)
        self._num_special = self.count_special(self.encode(rendered))

    def ends_turn(self, token_ids: Sequence[int]) -> bool:
        """Whether a turn ends here although no stop token says so; here never."""
        del token_ids
        return False

    @property
    def turn_end_ids(self) -> frozenset[int]:
        """The first special token that the template writes after a reply, if there is one.

        Base models that were given a chat template name another token as their end.
        """
        reply = {"role": "assistant", "content": _REPLY}
        rendered = self.render([*self.opening, reply], open_reply=False)
        after = self.encode(rendered.rpartition(_REPLY)[2])
        return frozenset([token for token in after if token in self._special_ids][:1])

    def prompt_ids(self, question: str) -> list[int]:
        """Tokens of the system prompt, the question and the opening of the assistant's turn.

        A question that spells a turn delimiter is encoded apart, as plain text, so that it cannot
        end its own turn; any other is encoded in one piece with the template around it.
        """
        whole = self.encode(self._before + question + self._after)
        if self.count_special(whole) == self._num_special:
            return whole
        return self.encode(self._before) + self.encode_plain(question) + self.encode(self._after)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of sampled tokens without turn delimiters; tags such as `<answer>` stay."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def transcript(self, trajectory: Trajectory) -> Transcript:
        """What the policy wrote in a conversation of one turn."""
        completion = self.decode(trajectory.sampled_ids)
        messages = [Message("assistant", completion)]
        return Transcript(completion, messages, reasoning_tag=self.reasoning_tag)

    def encode(self, text: str) -> list[int]:
        """Tokens of text that the template wrote."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def encode_plain(self, text: str) -> list[int]:
        """Tokens of text from outside: what spells a special token stays text."""
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return list(encoded.input_ids)

    def count_special(self, token_ids: Sequence[int]) -> int:
        return sum(token_id in self._special_ids for token_id in token_ids)

    def render(self, messages: Sequence[Mapping[str, str]], open_reply: bool = True) -> str:
        """The template's text for the messages, with the opening of a reply after them."""
        tokenizer = self.tokenizer
        schemas: Any = [dict(schema) for schema in self._tool_schemas] or None
        try:
            rendered = tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=schemas,
                chat_template=_PINNED_CLOCK + tokenizer.get_chat_template(tools=schemas),
                add_generation_prompt=open_reply,
                tokenize=False,
                date_string=_PINNED_DATE,
            )
        except (jinja2.TemplateError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"the chat template of {tokenizer.name_or_path} cannot render "
                f"{', '.join(message['role'] for message in messages)} messages ({error}); "
                "use a model with another chat template"
            ) from None
        return str(rendered)

    def _opening_messages(self, system_prompt: str) -> list[dict[str, str]]:
        """System and user message; a template that knows no system role gets both in one."""
        user = {"role": "user", "content": _PLACEHOLDER}
        if not system_prompt:
            return [user]
        messages = [{"role": "system", "content": system_prompt}, user]
        try:
            rendered = self.render(messages)
        except UserError:
            rendered = ""
        if system_prompt in rendered:
            return messages
        return [{"role": "user", "content": f"{system_prompt}\n\n{_PLACEHOLDER}"}]


def _special_ids(tokenizer: transformers.PreTrainedTokenizerBase) -> frozenset[int]:
    """Every special token: `all_special_ids` has those with a role only, not Llama 3's headers."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(tokenizer.all_special_ids) | {number for number, new in added if new.special}
