"""The conversations that a run's flags ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from common.flags.train_config import TrainConfig
from common.models.load import load_tokenizer
from common.rollout.chat import ChatFormat, ChatOptions
from common.rollout.rollout import Conversation, single_turn
from common.rollout.template_args import check_template_args, parse_template_args, read_template
from common.rollout.tool_chat import ToolChat
from common.tools.toolbox import ToolFunction
from common.training.conversations import MultiTurnConfig, converse_with_tools, load_tool_chat


def open_chat(config: TrainConfig, tools: Mapping[str, ToolFunction] | None = None) -> ChatFormat:
    """How prompts and turns are written; `tools` are for a config with the flags of conversations.

    Raises `UserError` for a chat template that cannot be used, and for tools that are none.
    """
    tokenizer = load_tokenizer(config.model_name, trust_remote_code=config.trust_remote_code)
    if config.chat_template is not None:
        # The tokenizer has it from here on, and so have the checkpoints.
        tokenizer.chat_template = read_template(config.chat_template)
        tokenizer.name_or_path = str(config.chat_template)
    template_args = parse_template_args(config.chat_template_args)
    check_template_args(template_args, str(tokenizer.chat_template))
    options = ChatOptions(config.reasoning_tag, template_args, config.stop)
    if isinstance(config, MultiTurnConfig):
        return load_tool_chat(config, tokenizer, tools or {}, options)
    return ChatFormat(tokenizer, config.system_prompt or "", options=options)


def how_to_converse(config: TrainConfig, chat: ChatFormat) -> Callable[..., list[Conversation]]:
    """How a collector holds its conversations."""
    if isinstance(config, MultiTurnConfig) and isinstance(chat, ToolChat):
        return converse_with_tools(config, chat)
    return single_turn
