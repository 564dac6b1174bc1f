"""What the multi-turn experiments add to a run: their flags, their tools, their chat."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from common.flags.markers import OWN_CODE
from common.flags.train_config import TrainConfig, by_model
from common.own_code import import_function
from common.rollout.chat import ChatOptions
from common.rollout.multi_turn import Limits, multi_turn
from common.rollout.rollout import Conversation
from common.rollout.tool_chat import ToolChat
from common.tools.environment import EnvironmentFactory
from common.tools.runner import ToolRunner
from common.tools.toolbox import Tool, ToolFunction, make_tool, make_toolbox

if TYPE_CHECKING:
    import transformers


@dataclass(frozen=True, kw_only=True)
class MultiTurnConfig(TrainConfig):
    """Flags of every experiment in which the policy calls tools."""

    bundled_task_limits: ClassVar[Mapping[str, object]] = {}

    max_turns: int = 4
    """Most turns of the policy in a conversation. A call in the last of them is not run, so there
    are at most N - 1 replies; 1 leaves no tool to use."""
    max_invalid_calls: int = 3
    """A conversation ends with this many calls that could not be run."""
    max_tool_tokens: int = by_model(bundled=48, other=512)
    """Most tokens of one reply of a tool; longer ones are cut."""
    tool_timeout: float = 10.0
    """Seconds after which a tool is given up, and its conversation with it."""
    vllm_admission: Literal["waves", "eager"] = "waves"
    """With an engine or a --policy-lag, when what a tool has said is read if it took time: with all
    that is waited for, once nothing is left to sample, so that runs repeat; or at once, which is
    faster and repeats up to rounding."""
    tool_format: Literal["tags", "hermes", "xml"] = by_model(bundled="tags", other="hermes")
    """How calls are written: tags, <tool:name>text</tool>; hermes, JSON in <tool_call> tags, which
    Qwen and others were trained on; or xml, <function=name> and <parameter=x> in such tags, as
    Qwen3-Coder and Qwen3.5 write them."""
    tool: Annotated[tuple[str, ...], OWN_CODE] = ()
    """Tools of your own as module:function or file.py:function."""
    environment: Annotated[str | None, OWN_CODE] = None
    """Tools of your own that share the state of a conversation, as module:Class or file.py:Class,
    of which each conversation has an instance; see "An environment" in CONTRIBUTING.md."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_turns", "max_invalid_calls"):
            self.check(name, lambda count: count >= 1, "at least 1")
        self.check("max_tool_tokens", lambda count: count >= 8, "at least 8")
        self.check("tool_timeout", lambda seconds: 0 < seconds < 1e6, "above 0, in seconds")


def load_tool_chat(
    config: MultiTurnConfig,
    tokenizer: transformers.PreTrainedTokenizerBase,
    tools: Mapping[str, ToolFunction],
    options: ChatOptions,
) -> ToolChat:
    """The chat with the experiment's tools, by the names that the model uses, and the user's own.

    The system prompt says how to call them, unless the chat template does, or the model is one that
    knows (`--system-prompt` is None). Raises `UserError` for a
    function that is no tool, a class that is no environment, two tools of one name, and a template
    that cannot hold the calls.
    """
    given = [make_tool(function, name) for name, function in tools.items()]
    own = [make_tool(import_function("--tool", path)) for path in config.tool]
    environments = EnvironmentFactory(config.environment) if config.environment else None
    toolbox = make_toolbox([*given, *own, *(environments.tools if environments else ())])
    system_prompt = config.system_prompt or ""
    if config.system_prompt is not None and config.tool_format == "tags" and toolbox:
        system_prompt = f"{system_prompt}\n\n{describe(toolbox)}".lstrip()
    return ToolChat(tokenizer, system_prompt, toolbox, config.tool_format, environments, options)


def describe(toolbox: Mapping[str, Tool]) -> str:
    """What the tools are for and how they are called between tags, with a call that was made."""
    lines = ["You may call a tool by writing one of these, and will be told what it says:"]
    for tool in toolbox.values():
        function = tool.schema["function"]
        parameter = function["parameters"]["properties"][tool.main_parameter]
        meaning = f"{function['description']} {parameter.get('description', '')}".strip()
        lines.append(f"<tool:{tool.name}>{tool.main_parameter}</tool>  {meaning}")
    tool = next(iter(toolbox.values()))
    text, reply = tool.example or (_some_value(tool), f"(what {tool.name} says)")
    lines.append(f"For example, you write: <tool:{tool.name}>{text}</tool>")
    lines.append(f"You stop there, and are told: {reply}")
    return "\n".join(lines)


def _some_value(tool: Tool) -> str:
    """Text that may stand between the tags."""
    candidates: tuple[Any, ...] = (3, 1.5, True, ["a"], [1], {"a": 1}, {"a": "b"}, None)
    fits = [value for value in candidates if tool.accepts(tool.main_parameter, value)]
    declared = tool.schema["function"]["parameters"]["properties"][tool.main_parameter]
    chosen: list[Any] = declared.get("enum") or ([] if tool.takes_text else fits)
    if not chosen:
        return f"some {tool.main_parameter}"
    return chosen[0] if isinstance(chosen[0], str) else json.dumps(chosen[0])


def converse_with_tools(
    config: MultiTurnConfig, chat: ToolChat
) -> Callable[..., list[Conversation]]:
    """How a collector holds its conversations."""
    limits = Limits(
        max_turns=config.max_turns,
        max_length=config.max_length,
        max_tool_tokens=config.max_tool_tokens,
        max_invalid_calls=config.max_invalid_calls,
    )
    runner = ToolRunner(chat.toolbox, config.tool_timeout)
    decodes_beside = config.sampler != "local" or config.policy_lag > 0
    in_waves = decodes_beside and config.vllm_admission == "waves"
    return partial(multi_turn, runner=runner, limits=limits, in_waves=in_waves)
