"""What a policy is told of its tools, where the chat template says nothing of them."""

from __future__ import annotations

from typing import Literal

import pytest

from common.flags.train_config import resolve_defaults
from common.tools.calculator import calculate
from common.tools.toolbox import Tool, make_tool, make_toolbox
from common.training.conversations import describe
from common.training.open_chat import open_chat
from tests.helpers import load_script

EXPERIMENT = "experiment_multiturn_tool_calling"


def prompt(system_prompt: str | None) -> str:
    """That of the bundled model, whose flag has this value or is not given."""
    flags = {} if system_prompt is None else {"system_prompt": system_prompt}
    config = resolve_defaults(load_script(EXPERIMENT).Config(**flags), bundled=True)
    chat = open_chat(config, {"calc": calculate})
    return str(chat.tokenizer.decode(chat.prompt_ids("2+2?")))


DESCRIPTION = describe(make_toolbox([make_tool(calculate, "calc")]))
ASKED = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("system_prompt", "expected"),
    [
        (None, ASKED),
        ("", f"<|im_start|>system\n{DESCRIPTION}<|im_end|>\n{ASKED}"),
        ("Be brief.", f"<|im_start|>system\nBe brief.\n\n{DESCRIPTION}<|im_end|>\n{ASKED}"),
    ],
)
def test_tools_are_left_out_for_a_model_that_knows_them_and_a_flag_not_given(
    system_prompt, expected
):
    assert prompt(system_prompt) == expected


def test_the_description_shows_a_call_that_was_made():
    *_, call, reply = DESCRIPTION.splitlines()
    assert call == "For example, you write: <tool:calc>(12 + 5) * 3</tool>"
    assert reply == "You stop there, and are told: 51"
    assert calculate("(12 + 5) * 3") == "51"


def whole(number: int) -> str:
    """Look.

    Args:
        number: Which.
    """
    return str(number)


def several(names: list[str]) -> str:
    """Look.

    Args:
        names: Which.
    """
    return str(names)


def either(way: Literal["left", "right"]) -> str:
    """Look.

    Args:
        way: Which.
    """
    return way


def free(query: str) -> str:
    """Look.

    Args:
        query: Which.
    """
    return query


@pytest.mark.parametrize(
    ("function", "text"),
    [(whole, "3"), (several, '["a"]'), (either, "left"), (free, "some query")],
)
def test_a_tool_without_an_example_is_shown_with_a_value_of_its_type(function, text):
    tool: Tool = make_tool(function)
    assert f"\nFor example, you write: <tool:{tool.name}>{text}</tool>\n" in describe(
        {tool.name: tool}
    )
