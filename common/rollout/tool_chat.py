"""From a tool's reply to the tokens between one turn of the policy and the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from common.errors import UserError
from common.rewards.tags import after_thought
from common.rewards.transcript import Transcript
from common.rollout.chat import (
    ANOTHER_TEMPLATE,
    NO_OPTIONS,
    ChatFormat,
    ChatOptions,
    without_empty_thoughts,
)
from common.rollout.stop_strings import StopString, ending_ids
from common.tools.calls import Call, Format, closing_tag, opens_call, parse_calls
from common.tools.environment import EnvironmentFactory
from common.tools.toolbox import Tool, make_tool

if TYPE_CHECKING:
    import transformers

_TURNS = ("FIRSTTURN", "SECONDTURN")
_REPLIES = ("FIRSTREPLY", "SECONDREPLY")
_SHOWN: tuple[Format, ...] = ("hermes", "xml")
_CUT = " [cut]"
# No token of a common vocabulary is longer; more characters need not be looked at.
_CHARACTERS_PER_TOKEN = 128


class ToolChat(ChatFormat):
    """A chat in which the policy may call tools.

    The bridge from a finished turn to the next is what the template writes between the two. It is
    appended to the tokens so far, which stay as they were sampled.
    """

    def __init__(
        self,
        tokenizer: transformers.PreTrainedTokenizerBase,
        system_prompt: str,
        toolbox: Mapping[str, Tool],
        call_format: Format,
        environments: EnvironmentFactory | None = None,
        options: ChatOptions = NO_OPTIONS,
    ) -> None:
        """`environments` makes one for each conversation; the toolbox has its tools among others.

        Raises `UserError` for a chat template that cannot hold such a conversation.
        """
        for tool in toolbox.values():
            if call_format == "tags" and not tool.needs_one_argument:
                raise UserError(
                    f"tool {tool.name}: needs more than the text between tags; give its other "
                    "arguments defaults, or use --tool-format hermes or xml"
                )
        schemas = [tool.schema for tool in toolbox.values()] if call_format != "tags" else []
        super().__init__(tokenizer, system_prompt, schemas, options)
        self.toolbox = toolbox
        self.environments = environments
        self.call_format: Format = call_format
        self._ends_call = StopString(tokenizer, closing_tag(call_format))
        if schemas:
            self._check_shown_format()
        self._check_template()

    @property
    def turn_ending_ids(self) -> frozenset[int] | None:
        return ending_ids([self._ends_call, *self._stops])

    def ends_turn(self, token_ids: Sequence[int]) -> bool:
        """Also where a call has just been closed: what follows is for the tool to say."""
        if self._ends_call(token_ids):
            written = self._beside_thought(self.turn_text(token_ids))
            if closing_tag(self.call_format) in written:
                return True
        return super().ends_turn(token_ids)

    def call_in(self, turn: str) -> Call | None:
        """The attempt to call a tool in what the policy wrote, if there is one.

        In a thought calls are text, like answers: one that is mentioned there is none.
        """
        written = self._beside_thought(turn)
        return next(iter(parse_calls(written, self.call_format, self.toolbox)), None)

    def cut(self, reply: str, max_tokens: int) -> str:
        """The reply, shortened to that many tokens, the mark of the cut included."""
        token_ids = self.encode_plain(reply[: max_tokens * _CHARACTERS_PER_TOKEN])
        if len(token_ids) <= max_tokens and len(reply) <= max_tokens * _CHARACTERS_PER_TOKEN:
            return reply
        kept = token_ids[: max(0, max_tokens - len(self.encode_plain(_CUT)))]
        return self.decode(kept).rstrip("\N{REPLACEMENT CHARACTER}") + _CUT

    def _beside_thought(self, turn: str) -> str:
        """Where a call is one: after the thought. All of a turn that opens none anywhere: a closing
        tag that closes nothing is an attempt, too, wherever it stands.
        """
        after = after_thought(Transcript(turn, reasoning_tag=self.reasoning_tag))
        return after if after or opens_call(turn, self.call_format) else turn

    def _check_shown_format(self) -> None:
        """Refuse a template that shows no tools, or calls in another form than the chosen one."""
        name, opening = self.tokenizer.name_or_path, self.render(self.opening)
        shows_all = all(schema["function"]["name"] in opening for schema in self._tool_schemas)
        forms = self._shown_formats(opening)
        if not (shows_all and forms):
            raise UserError(
                f"--tool-format {self.call_format}: the chat template of {name} does not show "
                "tools and how to call them as hermes or xml has it; use --tool-format tags"
            )
        if self.call_format not in forms:
            raise UserError(
                f"--tool-format {self.call_format}: the chat template of {name} shows calls in the "
                f"form of {forms[0]}; use --tool-format {forms[0]}"
            )

    def _shown_formats(self, opening: str) -> list[Format]:
        """The forms in which the template writes a call that was made.

        One that leaves it out, or cannot render it, shows its form where it tells of the tools.
        """
        probe = make_tool(_probe)
        function = {"name": probe.name, "arguments": {"text": _REPLIES[0]}}
        calls = [{"type": "function", "function": function}]
        made = {"role": "assistant", "content": "", "tool_calls": calls}
        with suppress(UserError):
            written = self.render([*self.opening, made], open_reply=False)
            written = written.removeprefix(self.render(self.opening, open_reply=False))
            if probe.name in written:
                return [form for form in _SHOWN if _reads(written, form, probe)]
        if "<function=" in opening:
            return ["xml"]
        return ["hermes"] if "<tool_call>" in opening else []

    def _check_template(self) -> None:
        """Refuse a template that would write earlier turns anew once there are later ones."""
        name = self.tokenizer.name_or_path
        opening = self.render(self.opening)
        once = self.render([*self.opening, *_exchange(0, _REPLIES[0])])
        twice = self.render([*self.opening, *_exchange(0, _REPLIES[0]), *_exchange(1, _REPLIES[1])])
        if any(once.count(text) != 1 for text in (_TURNS[0], _REPLIES[0])):
            raise UserError(
                f"the chat template of {name} has no place for the reply of a tool (role tool) "
                f"after a turn of the assistant; {ANOTHER_TEMPLATE}"
            )
        bridge = once.partition(_TURNS[0])[2]
        before, _, rest = twice.partition(_TURNS[0])
        between, _, after = rest.partition(_TURNS[1])
        second_bridge = bridge.replace(_REPLIES[0], _REPLIES[1])
        for what, first, later in (
            ("the question", opening, before),
            ("the reply of a tool", bridge, between),
            ("the second reply of a tool", second_bridge, after),
        ):
            if self._lasting(first) != self._lasting(later):
                raise UserError(
                    f"the chat template of {name} rewrites {what} once there are later turns "
                    f"({_difference(first, later)}); what the policy saw could not be learned "
                    f"from; {ANOTHER_TEMPLATE}"
                )

    def _lasting(self, text: str) -> str:
        """Earlier turns stay as they were sampled: what opens one may lack its thought later."""
        return without_empty_thoughts(text.removesuffix(self.opened_tag)).rstrip()


def _reads(written: str, form: Format, tool: Tool) -> bool:
    return [call.status for call in parse_calls(written, form, {tool.name: tool})] == ["ok"]


def _probe(text: str) -> str:
    """What a template shows a call of.

    Args:
        text: Anything.
    """
    return text


def _exchange(number: int, reply: str) -> list[dict[str, str]]:
    return [
        {"role": "assistant", "content": _TURNS[number]},
        {"role": "tool", "content": reply},
    ]


def _difference(first: str, later: str) -> str:
    """The first place where two texts part."""
    same = next(
        (i for i, (a, b) in enumerate(zip(first, later, strict=False)) if a != b),
        min(len(first), len(later)),
    )
    return f"{first[same : same + 30]!r} becomes {later[same : same + 30]!r}"
