"""From messages to prompt tokens and from sampled tokens to text."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import jinja2

from common.errors import UserError
from common.printable import storable
from common.rewards.transcript import DEFAULT_REASONING_TAG, Message, Transcript
from common.rollout.stop_strings import StopString, ending_ids
from common.rollout.trajectory import Trajectory

if TYPE_CHECKING:
    import transformers

_PLACEHOLDER = "QUESTIONGOESHERE"
_REPLY = "REPLYGOESHERE"

# Some templates print today's date; a prompt must not change from one day to the next. A template
# gets the function as a macro, because transformers passes on data only.
_PINNED_DATE = "01 Jan 2025"
_PINNED_CLOCK = f"{{% macro strftime_now(format) %}}{_PINNED_DATE}{{% endmacro %}}"

ANOTHER_TEMPLATE = "give another with --chat-template, or use another model"

_TAG = re.compile(r"<([\w:.-]+)>")
_EMPTY_THOUGHT = re.compile(r"<([\w:.-]+)>\s*</\1>\s*")


@dataclass(frozen=True)
class ChatOptions:
    """How conversations are written, whatever the model."""

    reasoning_tag: str = DEFAULT_REASONING_TAG
    template_args: Mapping[str, Any] = field(default_factory=dict)
    """What else the chat template is given, such as enable_thinking."""
    stop: Sequence[str] = ()
    """Texts at which a turn ends, as at its end token."""


NO_OPTIONS = ChatOptions()


class ChatFormat:
    """Renders the first prompt of a conversation through the tokenizer's chat template."""

    def __init__(
        self,
        tokenizer: transformers.PreTrainedTokenizerBase,
        system_prompt: str,
        tool_schemas: Sequence[Mapping[str, Any]] = (),
        options: ChatOptions = NO_OPTIONS,
    ) -> None:
        """`tool_schemas` are shown by the template to a model that was trained to read them."""
        self.tokenizer = tokenizer
        self.reasoning_tag = options.reasoning_tag
        self._template_args = options.template_args
        self._so_far: tuple[int, ...] = ()
        self._bridges: dict[str, tuple[list[int], list[int]]] = {}
        self._stops = [StopString(tokenizer, text) for text in options.stop]
        self._special_ids = _special_ids(tokenizer)
        self._tool_schemas = list(tool_schemas)
        self.opening = self._opening_messages(system_prompt)
        rendered = self.render(self.opening)
        if (times := rendered.count(_PLACEHOLDER)) != 1:
            raise UserError(
                f"the chat template of {tokenizer.name_or_path} writes the user's message {times} "
                f"times instead of once; {ANOTHER_TEMPLATE}"
            )
        self._before, _, self._after = rendered.partition(_PLACEHOLDER)
        replied = self.render([*self.opening, _message("assistant", _REPLY)], open_reply=False)
        heading, _, ending = replied.partition(_PLACEHOLDER)[2].rpartition(_REPLY)
        self._heading = without_empty_thoughts(heading)
        of_every_turn = self._heading.replace(f"<{self.reasoning_tag}>", "")
        self.opened_tag = opened_tag(self._after, of_every_turn)
        """What the template has begun to write in the model's place: `<think>` and white space."""
        special = [token for token in self.encode(ending) if token in self._special_ids]
        self.turn_end_ids = frozenset(special[:1])
        """The first special token that the template writes after a reply, if there is one: base
        models that were given a chat template name another token as their end."""
        self._no_text = self._delimiters() | _ids_without_text(tokenizer)
        self._protected_ids = self._special_ids - (_tag_ids(tokenizer) - self._no_text)
        self._num_protected = self.count_protected(self.encode(rendered))

    @property
    def warning(self) -> str | None:
        """What is wrong with the template although it can be used."""
        ignored = self.render(self.opening, open_reply=False) == self.render(self.opening)
        if not ignored or self._heading.rstrip() == self._after.rstrip():
            return None
        missing = self._heading.removeprefix(self._after)
        return (
            f"warning: the chat template of {self.tokenizer.name_or_path} ignores "
            f"add_generation_prompt, so that nothing tells the model to reply ({missing!r} before "
            f"a reply is missing); {ANOTHER_TEMPLATE}"
        )

    def ending_at(self, stop_ids: frozenset[int]) -> Self:
        """The same for a model with ends of its own, which are no text either."""
        chat = copy.copy(self)
        chat._no_text |= stop_ids
        return chat

    @property
    def turn_ending_ids(self) -> frozenset[int] | None:
        """The tokens after which `ends_turn` may say so; None where any may be one."""
        return ending_ids(self._stops)

    def ends_turn(self, token_ids: Sequence[int]) -> bool:
        """Whether a turn ends here although no stop token says so: at a stop string."""
        return any(has_ended(token_ids) for has_ended in self._stops)

    def prompt_ids(self, question: str) -> list[int]:
        """Tokens of the system prompt, the question and the opening of the assistant's turn.

        A question that spells a turn delimiter is encoded apart, as plain text, so that it cannot
        end its own turn; any other is encoded in one piece with the template around it.
        """
        if self._so_far:
            return [*self._so_far, *self.bridge(self._so_far, question, "user")]
        whole = self.encode(self._before + question + self._after)
        if self.count_protected(whole) == self._num_protected:
            return whole
        return self.encode(self._before) + self.encode_plain(question) + self.encode(self._after)

    def after(self, token_ids: Sequence[int]) -> Self:
        """The same in the middle of a conversation, of which these are the tokens so far."""
        chat = copy.copy(self)
        chat._so_far = tuple(token_ids)
        return chat

    def bridge(self, turn_ids: Sequence[int], text: str, role: str = "tool") -> list[int]:
        """What stands between a turn and the next: the end of the first, as far as it was not
        sampled, what a tool replies or the user says, and the opening of the next.

        A text that spells a delimiter is encoded apart, as plain text, so that it cannot end its
        own turn.
        """
        whole = self.encode(self._bridge_text(role, text))
        around = self._around(role)
        if self.count_protected(whole) != sum(map(self.count_protected, around)):
            whole = around[0] + self.encode_plain(text) + around[1]
        end = next((i for i, token in enumerate(whole) if token in self.turn_end_ids), None)
        ended = bool(turn_ids) and end is not None and turn_ids[-1] == whole[end]
        return whole[end + 1 :] if ended and end is not None else whole

    def prompt_lengths(self, questions: Sequence[str]) -> list[int]:
        """How many `prompt_ids` each question has; they are encoded in one call."""
        texts = [self._before + question + self._after for question in questions]
        encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
        return [
            len(whole)
            if self.count_protected(whole) == self._num_protected
            else len(self.prompt_ids(question))
            for question, whole in zip(questions, encoded.input_ids, strict=True)
        ]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of sampled tokens without turn delimiters, padding and ends.

        They are known by their ids: a tag such as `<answer>` stays, be it a special token or not.
        """
        kept = [token for token in token_ids if token not in self._no_text]
        return str(self.tokenizer.decode(kept, skip_special_tokens=False))

    def turn_text(self, token_ids: Sequence[int]) -> str:
        """A turn as its reader sees it: with the tag that the template opened for the model."""
        return self.opened_tag + self.decode(token_ids)

    def transcript(self, trajectory: Trajectory) -> Transcript:
        """What the policy wrote in a conversation of one turn."""
        completion = self.turn_text(trajectory.sampled_ids)
        messages = [Message("assistant", completion)]
        return Transcript(completion, messages, reasoning_tag=self.reasoning_tag)

    def encode(self, text: str) -> list[int]:
        """Tokens of text that the template wrote."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def encode_plain(self, text: str) -> list[int]:
        """Tokens of text from outside: what spells a special token stays text."""
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return list(encoded.input_ids)

    def count_protected(self, token_ids: Sequence[int]) -> int:
        """Tokens that text from outside must not spell: special ones, but for tags."""
        return sum(token_id in self._protected_ids for token_id in token_ids)

    def render(self, messages: Sequence[Mapping[str, Any]], open_reply: bool = True) -> str:
        """The template's text for the messages, with the opening of a reply after them.

        What no tokenizer reads is replaced: Jinja, too, can spell half of a surrogate pair.
        """
        tokenizer = self.tokenizer
        schemas: Any = [dict(schema) for schema in self._tool_schemas] or None
        try:
            rendered = tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=schemas,
                chat_template=_PINNED_CLOCK + tokenizer.get_chat_template(tools=schemas),
                add_generation_prompt=open_reply,
                tokenize=False,
                **{"date_string": _PINNED_DATE, **self._template_args},
            )
        except (jinja2.TemplateError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"the chat template of {tokenizer.name_or_path} cannot render "
                f"{', '.join(message['role'] for message in messages)} messages ({error}); "
                f"{ANOTHER_TEMPLATE}"
            ) from None
        return storable(str(rendered))

    def _opening_messages(self, system_prompt: str) -> list[dict[str, str]]:
        """System and user message; a template that knows no system role gets both in one."""
        user = _message("user", _PLACEHOLDER)
        if not system_prompt:
            return [user]
        messages = [_message("system", system_prompt), user]
        try:
            rendered = self.render(messages)
        except UserError:
            rendered = ""
        # Some templates trim what they are given.
        if system_prompt.strip() in rendered:
            return messages
        return [_message("user", f"{system_prompt}\n\n{_PLACEHOLDER}")]

    def _bridge_text(self, role: str, text: str) -> str:
        exchange = [_message("assistant", _REPLY), _message(role, text)]
        return self.render([*self.opening, *exchange]).partition(_REPLY)[2]

    def _around(self, role: str) -> tuple[list[int], list[int]]:
        """The tokens of a bridge before its text, and after it."""
        if role not in self._bridges:
            before, _, after = self._bridge_text(role, _PLACEHOLDER).partition(_PLACEHOLDER)
            self._bridges[role] = (self.encode(before), self.encode(after))
        return self._bridges[role]

    def _delimiters(self) -> frozenset[int]:
        """The special tokens that the template writes around turns, and none that it shows in
        what it says of tools or opens for the model."""
        reply, again = _message("assistant", _REPLY), _message("user", _REPLY)
        turns = self.render([*self.opening, reply, again]).partition(_PLACEHOLDER)[2]
        turns = without_empty_thoughts(turns.removesuffix(self.opened_tag))
        return frozenset(token for token in self.encode(turns) if token in self._special_ids)


def opened_tag(opened: str, heading: str) -> str:
    """What a template has begun to write in the model's place, from a tag on that is not closed.

    `opened` is where the model goes on, and `heading` what stands before a reply that is there
    already: a tag in both, such as `<start_of_turn>`, belongs to the turn.
    """
    for tag in _TAG.finditer(opened):
        if f"</{tag[1]}>" not in opened[tag.end() :] and tag[0] not in heading:
            return opened[tag.start() :]
    return ""


def without_empty_thoughts(text: str) -> str:
    """The text without tags that hold nothing, as some templates write before a reply."""
    return _EMPTY_THOUGHT.sub("", text)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _ids_without_text(tokenizer: transformers.PreTrainedTokenizerBase) -> frozenset[int]:
    """Padding and its like, which tokenizers know by their roles."""
    ids = (
        *(tokenizer.pad_token_id, tokenizer.unk_token_id),
        *(tokenizer.bos_token_id, tokenizer.eos_token_id),
    )
    return frozenset(token for token in ids if isinstance(token, int))


def _special_ids(tokenizer: transformers.PreTrainedTokenizerBase) -> frozenset[int]:
    """Every special token: `all_special_ids` has those with a role only, not Llama 3's headers."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(tokenizer.all_special_ids) | {number for number, new in added if new.special}


def _tag_ids(tokenizer: transformers.PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens such as `<answer>`, `</tool>` and `<tool:calc>`: those that a token closes."""
    spelled = {new.content: number for number, new in tokenizer.added_tokens_decoder.items()}
    closed = {match[1] for token in spelled if (match := re.fullmatch(r"</(\w+)>", token))}
    tags = {token: re.fullmatch(r"</?(\w+)[^<>]*>", token) for token in spelled}
    return frozenset(spelled[token] for token, tag in tags.items() if tag and tag[1] in closed)
