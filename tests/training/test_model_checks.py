"""Tokens that a tokenizer knows and its model does not, where they could be met; ends of turns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.errors import UserError
from common.models.load import ModelOptions, load_policy, load_tokenizer
from common.models.log_probs import TokenLogProbs
from common.rollout.chat import ChatFormat
from common.rollout.tool_chat import ToolChat
from common.tasks.task import Task
from common.tools.calculator import calculate
from common.tools.toolbox import make_tool, make_toolbox
from common.training.model_checks import check_model, check_tokens
from tests.helpers import load_script
from tests.small_models import CHATML, save_model

# Of the small tokenizers; what is added to one has higher ids.
KNOWN = 400
LEGS = [Task(7, "How many legs have 2 cows?", "8")]
ZEBRAS = [*LEGS, Task(8, "How many legs have 2 zebras?", "8")]


@pytest.fixture
def tokenizer(tmp_path):
    """A user's own to change."""
    return load_tokenizer(str(save_model("gpt2", tmp_path)))


def complaint(chat: ChatFormat, tasks: list[Task], stop_ids: frozenset[int] = frozenset()) -> str:
    with pytest.raises(UserError) as caught:
        check_tokens("mine", KNOWN, stop_ids, chat, tasks)
    return str(caught.value)


def test_a_tokenizer_of_the_models_own_is_fine(tokenizer):
    check_tokens("mine", KNOWN, {0}, ChatFormat(tokenizer, "Be brief."), ZEBRAS)


def test_a_word_beyond_the_embedding_is_refused_where_a_task_has_it(tokenizer):
    tokenizer.add_tokens(["zebra"])
    chat = ChatFormat(tokenizer, "")
    check_tokens("mine", KNOWN, {0}, chat, LEGS)
    assert complaint(chat, ZEBRAS) == (
        "--model-name mine: the prompt of line 9 holds 'zebra', which is token 400 to the "
        "tokenizer, and the model has 400; take the tokenizer that belongs to the model, or resize "
        "its embedding"
    )


def test_or_the_system_prompt(tokenizer):
    tokenizer.add_tokens(["zebra"])
    assert "the prompt of line 8 holds 'zebra'" in complaint(
        ChatFormat(tokenizer, "Count zebras."), LEGS
    )


def test_a_chat_template_with_delimiters_of_its_own_is_refused(tokenizer):
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = CHATML
    assert "line 8 holds '<|im_start|>', which is token 400" in complaint(
        ChatFormat(tokenizer, ""), LEGS
    )


def test_a_delimiter_that_text_spells_is_text(tokenizer):
    """It is encoded apart, so that the special token is nowhere."""
    tokenizer.add_tokens(["<|pad|>"], special_tokens=True)
    task = Task(0, "What does <|pad|> mean?", "nothing")
    check_tokens("mine", KNOWN, {0}, ChatFormat(tokenizer, ""), [task])


def test_an_end_that_the_model_cannot_write_is_refused(tokenizer):
    tokenizer.add_tokens(["<|end|>"], special_tokens=True)
    chat = ChatFormat(tokenizer, "")
    assert "a turn ends with '<|end|>', which is token 400" in complaint(
        chat, LEGS, frozenset({400})
    )


@pytest.mark.parametrize(("special", "refused"), [(False, True), (True, False)])
def test_a_tool_could_say_a_word_but_spells_no_special_token(tokenizer, special, refused):
    tokenizer.add_tokens(["zebra"], special_tokens=special)
    chat = ToolChat(tokenizer, "", make_toolbox([make_tool(calculate)]), "tags")
    if refused:
        assert "what a tool says may hold 'zebra'" in complaint(chat, LEGS)
    else:
        check_tokens("mine", KNOWN, {0}, chat, LEGS)


@pytest.mark.parametrize("end", ["<|endoftext|>", None])
def test_a_model_that_nothing_ends_is_said(end, tmp_path: Path):
    ids = {} if end else {"eos_token_id": None}
    directory = str(save_model("gpt2", tmp_path, **ids))
    tokenizer = load_tokenizer(directory)
    tokenizer.eos_token = end
    policy = TokenLogProbs(load_policy(ModelOptions(directory, torch.device("cpu"))), 1.0)
    said: list[str] = []
    config = load_script("experiment_base").Config(model_name="mine")
    check_model(config, policy, ChatFormat(tokenizer, ""), LEGS, said.append)
    assert said == (
        []
        if end
        else [
            "warning: no token of mine ends a completion: each has --max-completion-tokens; give "
            "its tokenizer an eos_token, or --stop"
        ]
    )


def test_a_model_that_cannot_share_prompts_is_said(tmp_path: Path):
    directory = str(save_model("gemma3", tmp_path))
    tokenizer = load_tokenizer(directory)
    policy = TokenLogProbs(load_policy(ModelOptions(directory, torch.device("cpu"))), 1.0)
    said: list[str] = []
    config = load_script("experiment_base").Config(model_name="mine")
    check_model(config, policy, ChatFormat(tokenizer, ""), LEGS, said.append)
    assert said == [
        "equal prompts are not read once for all: Gemma3ForCausalLM has layers that keep a window "
        "or a state of what they read"
    ]
