"""A talk with a policy by hand, held as a run holds its conversations."""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from common.errors import UserError
from common.flags.train_config import TrainConfig
from common.models.load import load_policy, max_positions, stop_token_ids
from common.models.vocabulary import embedding_rows, num_tokens, tokens_beyond
from common.printable import printable, storable
from common.rewards.transcript import Transcript
from common.rollout.chat import ChatFormat
from common.rollout.rollout import Conversation
from common.rollout.sampling import Sampling, StreamKey
from common.rollout.tool_chat import ToolChat
from common.run.directory import newest_checkpoint, run_at
from common.tasks.task import Task
from common.training.open_chat import how_to_converse
from common.training.task_order import load_task_split
from common.views.samples import failure_line, turn_line

if TYPE_CHECKING:
    import transformers

# Questions and replies together, where the model has as many positions.
MAX_LENGTH = 4096
# Tokens, without which a question is not asked in a conversation, but begins a new one.
LEAST_ROOM = 16
START_ANEW = "/new"


class UnansweredError(UserError):
    """A question that the model cannot read, or has no room to answer."""


class Talk:
    """One conversation after another, with a question at a time."""

    def __init__(
        self,
        chat: ChatFormat,
        converse: Callable[..., list[Conversation]],
        max_length: int,
        tasks: Sequence[Task] = (),
        unreadable: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        """`tasks` are those of which an environment is told; where there is one, each question
        begins a conversation, as the environment ends with it. `unreadable` are tokens that the
        model does not embed."""
        self._chat = chat
        self._converse = converse
        self._max_length = max_length
        self._tasks = tasks
        self._unreadable = unreadable
        self._seed = time.time_ns() % 2**63
        self._asked = 0
        self._so_far: list[int] = []

    def start_anew(self) -> None:
        self._so_far = []

    def is_full(self, question: str) -> bool:
        """Whether the question has no room in the conversation so far."""
        length = len(self._chat.after(self._so_far).prompt_ids(question))
        return bool(self._so_far) and length + LEAST_ROOM > self._max_length

    def ask(self, question: str) -> Transcript:
        """Raises `UnansweredError` for a question that leaves the talk as it was."""
        stream = StreamKey(self._seed, 0, self._asked, 0)
        self._asked += 1
        chat = self._chat.after(self._so_far)
        for token_id in chat.prompt_ids(question):
            if token_id in self._unreadable:
                raise UnansweredError(
                    f"the prompt holds {self._unreadable[token_id]!r}, which is token {token_id} "
                    "to the tokenizer, and the model has fewer; ask without it, or take the "
                    "tokenizer that belongs to the model"
                )
        ((trajectory, transcript),) = self._converse([(self._task(question), stream)], chat=chat)
        if not trajectory.num_sampled:
            raise UnansweredError(
                f"no room is left for an answer: the prompt has {len(trajectory.token_ids)} "
                f"tokens, and a conversation at most {self._max_length}; ask a shorter question"
            )
        if not self._tasks:
            self._so_far = trajectory.token_ids
        return transcript

    def _task(self, question: str) -> Task:
        """The task of that question, else the first one, asked otherwise."""
        same = [task for task in self._tasks if task.question == question]
        for task in [*same, *self._tasks]:
            return replace(task, question=question)
        return Task(0, question, "")


def talk_with_run(config: TrainConfig, chat: ChatFormat, device: torch.device) -> None:
    """Talk with the newest checkpoint of the run that `--chat` names.

    Raises `UserError` if there is none.
    """
    assert config.chat is not None
    checkpoint = newest_checkpoint(run_at(config.chat))
    options = replace(config.model_options(device), num_tokens=num_tokens(chat.tokenizer))
    tasks: Sequence[Task] = ()
    if isinstance(chat, ToolChat) and chat.environments:
        train_tasks, held_out = load_task_split(config)
        tasks = [*held_out, *train_tasks]
    talk_with(
        load_policy(options, checkpoint),
        chat,
        lambda max_length: how_to_converse(replace(config, max_length=max_length), chat),
        config.sampling(config.temperature),
        config.max_completion_tokens,
        str(checkpoint),
        config.question,
        tasks=tasks,
        use_bfloat16=options.use_bfloat16,
    )


def talk_with(
    model: transformers.PreTrainedModel,
    chat: ChatFormat,
    how: Callable[[int], Callable[..., list[Conversation]]],
    sampling: Sampling,
    max_completion_tokens: int,
    name: str,
    question: str | None,
    *,
    tasks: Sequence[Task] = (),
    use_bfloat16: bool = False,
) -> None:
    """Ask one question, or all that are typed.

    `how` tells how conversations of at most so many tokens are held. Raises `UserError` if the one
    question cannot be answered; of those that are typed it is said.
    """
    from common.rollout.generate import LocalGenerator

    max_length = min(MAX_LENGTH, max_positions(model) or MAX_LENGTH)
    stop_ids = stop_token_ids(model, chat.tokenizer) | chat.turn_end_ids
    generator = LocalGenerator(
        model,
        stop_ids,
        max_length,
        ends_turn=chat.ends_turn,
        turn_ending_ids=chat.turn_ending_ids,
        use_bfloat16=use_bfloat16,
    )
    converse = partial(
        how(max_length),
        generator=generator,
        sampling=sampling,
        max_completion_tokens=max_completion_tokens,
    )
    unreadable = tokens_beyond(chat.tokenizer, embedding_rows(model))
    talk = Talk(chat.ending_at(stop_ids), converse, max_length, tasks, unreadable)
    console = Console()
    say = partial(console.out, highlight=False)
    if chat.warning:
        say(chat.warning)
    if question is not None:
        show(console, talk.ask(as_question(question)), chat)
        return
    say(f"{name}: ask a question, for example What is 3+5-2?  ({START_ANEW} forgets, Ctrl-D ends)")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    for line in filter(None, map(str.strip, sys.stdin)):
        if line == START_ANEW:
            talk.start_anew()
            continue
        if talk.is_full(as_question(line)):
            say("no room is left: the conversation starts anew")
            talk.start_anew()
        try:
            show(console, talk.ask(as_question(line)), chat)
        except UnansweredError as error:
            say(str(error))


def as_question(text: str) -> str:
    """The text; a bare sum such as 12+5-3 in the words that the bundled model knows."""
    text = storable(text)
    return f"What is {text}?" if re.fullmatch(r"[-+\d ]+", text) else text


def show(console: Console, transcript: Transcript, chat: ChatFormat) -> None:
    """What was written; where there are tools, with what they replied."""
    if not isinstance(chat, ToolChat):
        console.print(printable(transcript), markup=False, highlight=False)
        return
    for message in transcript.messages:
        console.print(turn_line(message.role, message.content), soft_wrap=True)
    for call in transcript.calls:
        if call.outcome != "answered":
            console.print(failure_line(call.outcome, call.tool, call.reply), soft_wrap=True)
    if transcript.environment_reward is not None:
        console.print(f"environment: {transcript.environment_reward:g}", highlight=False)
