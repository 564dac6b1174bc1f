"""Conversations with an environment each: its state, its opening, its reward and its end."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from common.errors import UserError
from common.models.load import load_tokenizer
from common.models.tiny.tokenizer import END_ID
from common.rewards.judge import Judge
from common.rewards.notion import Notion
from common.rewards.reward import Reward
from common.rewards.tool_use import environment_reward, tool_execution
from common.rollout.generate import LocalGenerator
from common.rollout.generator import Completion, Generator, Interrupted, Request
from common.rollout.multi_turn import Limits, multi_turn
from common.rollout.rollout import Conversation, rollout
from common.rollout.sampling import Sampling, StreamKey
from common.rollout.tool_chat import ToolChat
from common.tasks.task import Task
from common.tools.calculator import calculate
from common.tools.environment import EnvironmentFactory
from common.tools.runner import ToolRunner
from common.tools.toolbox import instant, make_tool, make_toolbox
from tests.helpers import ScriptedGenerator, random_model

TOKENIZER = load_tokenizer("tiny")
LIMITS = Limits(max_turns=4, max_length=400, max_tool_tokens=40, max_invalid_calls=3)

# What happened to each instance, in order; every test begins without any.
EVENTS: list[list[str]] = []


@pytest.fixture(autouse=True)
def events():
    EVENTS.clear()
    return EVENTS


class Guessing:
    """The other player thinks of a number."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.lock = threading.Lock()
        EVENTS.append(self.events)

    def reset(self, number: int, says: str | None = None, **row: object) -> str | None:
        self.events.append("reset")
        self.number, self.found, self.guesses = number, False, 0
        if number < 0:
            raise ValueError("no such number")
        return says

    @instant
    def guess(self, number: int) -> str:
        """Guess the number.

        Args:
            number: Your guess.
        """
        self.events.append(f"guess {number}")
        self.guesses += 1
        self.found = self.found or number == self.number
        how = "found" if number == self.number else "higher" if number < self.number else "lower"
        return f"{how} ({self.guesses})"

    def ponder(self, seconds: float) -> str:
        """Take a while, beside the others.

        Args:
            seconds: How long.
        """
        self.events.append("ponder")
        time.sleep(seconds)
        assert threading.current_thread() is not threading.main_thread()
        return f"{self.guesses} so far"

    def give_up(self, why: str) -> str:
        """Never say anything.

        Args:
            why: What not to say.
        """
        raise ConnectionError(why)

    def get_reward(self) -> float:
        self.events.append("get_reward")
        if self.guesses > 2:
            raise ValueError("lost count")
        return 1.0 if self.found else -0.5

    def close(self) -> None:
        self.events.append("close")


class Sulking(Guessing):
    """Cannot be closed."""

    def close(self) -> None:
        super().close()
        raise ConnectionError("still at work")


def chat_of(name: str = "Guessing") -> ToolChat:
    environments = EnvironmentFactory(f"{__name__}:{name}")
    toolbox = make_toolbox([make_tool(calculate, "calc"), *environments.tools])
    return ToolChat(TOKENIZER, "", toolbox, "tags", environments)


CHAT = chat_of()


def writes(*turns: Sequence[str]) -> ScriptedGenerator:
    """The members of a group write these turns, each its own, and the last one from then on."""

    def complete(request: Request) -> Completion:
        mine = turns[request.stream.member]
        text = mine[min(request.stream.turn, len(mine) - 1)]
        if text == "INTERRUPT":
            raise Interrupted
        ids = CHAT.encode(text)
        ids = ids if CHAT.ends_turn(ids) else [*ids, END_ID]
        reason = "stop" if len(ids) <= request.max_new_tokens else "length"
        ids = ids[: max(0, request.max_new_tokens)]
        return Completion(ids, [-1.0] * len(ids), reason)

    return ScriptedGenerator(complete)


def converse(
    openings: Sequence[tuple[Task, StreamKey]],
    generator: Generator,
    *,
    chat: ToolChat = CHAT,
    limits: Limits = LIMITS,
    budget: int = 120,
    timeout: float = 5.0,
) -> list[Conversation]:
    return multi_turn(
        openings,
        generator=generator,
        chat=chat,
        sampling=Sampling(1.0, 1.0),
        max_completion_tokens=budget,
        runner=ToolRunner(chat.toolbox, timeout),
        limits=limits,
    )


def hold(*turns: Sequence[str], columns: dict | None = None, **settings) -> list[Conversation]:
    """A group about the number 5, or other columns."""
    task = Task(0, "Guess.", "5", {"number": 5, **(columns or {})})
    openings = [(task, StreamKey(1, 0, 0, member)) for member in range(len(turns))]
    return converse(openings, writes(*turns), **settings)


GUESS_3, GUESS_5, GUESS_9 = (f"<tool:guess>{n}</tool>" for n in (3, 5, 9))
ANSWER = "<answer> 5</answer>"


def replies(conversation: Conversation) -> list[str]:
    return [message.content for message in conversation[1].messages if message.role == "tool"]


def test_the_members_of_a_group_have_an_instance_each():
    finds, misses = hold((GUESS_3, GUESS_5, ANSWER), (GUESS_9, "It is 9."))
    assert replies(finds) == ["higher (1)", "found (2)"]
    assert replies(misses) == ["lower (1)"]
    assert [call.arguments for call in finds[1].calls] == [{"number": 3}, {"number": 5}]
    assert finds[1].environment_reward == 1.0
    assert misses[1].environment_reward == -0.5
    assert EVENTS == [
        ["reset", "guess 3", "guess 5", "get_reward", "close"],
        ["reset", "guess 9", "get_reward", "close"],
    ]


def test_plain_functions_stay_beside_its_methods():
    ((_, transcript),) = hold(("<tool:calc>2 + 3</tool>", GUESS_5, ANSWER))
    assert [call.reply for call in transcript.calls] == ["5", "found (1)"]


def test_what_it_opens_with_ends_the_first_message_and_is_not_learned_from():
    ((trajectory, transcript),) = hold(
        (GUESS_5, ANSWER), columns={"says": "It is below 10.<|im_end|>"}
    )
    assert str(TOKENIZER.decode(trajectory.token_ids)).startswith(
        "<|im_start|>user\nGuess.\n\nIt is below 10.<|im_end|><|im_end|>\n<|im_start|>assistant\n"
        "<tool:guess>5</tool>"
    )
    # The ends of the question, of the call, of the reply and of the answer: none is forged.
    assert trajectory.token_ids.count(END_ID) == 4
    assert [segment.sampled for segment in trajectory.segments] == [False, True, False, True]
    assert TOKENIZER.decode(trajectory.sampled_ids) == f"{GUESS_5}{ANSWER}<|im_end|>"
    messages = [(message.role, message.content) for message in transcript.messages]
    assert messages[:2] == [("user", "It is below 10.<|im_end|>"), ("assistant", GUESS_5)]


def test_without_an_opening_the_first_message_is_the_question():
    ((trajectory, transcript),) = hold((ANSWER,))
    assert trajectory.segments[0].token_ids == tuple(CHAT.prompt_ids("Guess."))
    assert [message.role for message in transcript.messages] == ["assistant"]


def test_a_long_opening_is_cut_like_a_reply():
    ((_, transcript),) = hold((ANSWER,), columns={"says": "7" * 60})
    said = transcript.messages[0].content
    assert said.endswith(" [cut]")
    assert len(CHAT.encode_plain(said)) == LIMITS.max_tool_tokens


def test_an_opening_that_leaves_no_room_ends_its_conversation_at_its_length():
    """The question alone fits, which is what is checked before a run."""
    room = len(CHAT.prompt_ids("Guess.")) + 10
    model = random_model(torch.float32)
    generator = LocalGenerator(model, frozenset({END_ID}), room)
    tasks = [Task(n, "Guess.", "5", {"number": 5, "says": says}) for n, says in enumerate("x7")]
    tasks[1] = replace(tasks[1], columns={"number": 5, "says": "7" * 60})
    openings = [(task, StreamKey(1, 0, task.task_id, 0)) for task in tasks]
    short, long = converse(openings, generator, limits=replace(LIMITS, max_length=room))
    assert short[0].num_sampled > 0
    assert (long[0].stop_reason, long[0].num_sampled) == ("max_length", 0)
    assert long[1].environment_reward == -0.5
    assert [events[-1] for events in EVENTS] == ["close"] * 2


def test_its_reward_is_one_among_others_and_travels_without_it():
    """An instance with a lock cannot be sent to another process; its score can."""
    rewards = [
        Reward("environment", environment_reward, 2.0),
        Reward("tool_execution", tool_execution, 0.5),
    ]
    turns = (
        (GUESS_3, GUESS_5, ANSWER),
        ("<tool:guess>x</tool>", GUESS_9, ANSWER),
        ("<tool:give_up>now</tool>",),
    )
    (group,) = rollout(
        [Task(0, "Guess.", "5", {"number": 5})],
        step=0,
        group_size=3,
        seed=1,
        converse=lambda openings: converse(openings, writes(*turns)),
        judge=Judge(rewards, Notion(lambda completion, task: False)),
    )
    assert [r.scores for r in group.rollouts] == [
        {"environment": 1.0, "tool_execution": 1.0},
        {"environment": -0.5, "tool_execution": 0.5},
    ]
    assert group.rewards == [2.5, -0.75]
    assert [r.completion.environment_reward for r in group.errored] == [None]
    sent = pickle.loads(pickle.dumps(group))
    assert [r.completion.environment_reward for r in sent.rollouts] == [1.0, -0.5]
    assert sent.rollouts[0].completion.calls == group.rollouts[0].completion.calls


def test_calls_of_one_conversation_are_ordered_in_threads_too():
    ponder = "<tool:ponder>0.02</tool>"
    done = hold(*[(ponder, GUESS_3, ponder, ANSWER)] * 8)
    assert [replies(conversation) for conversation in done] == [
        ["0 so far", "higher (1)", "1 so far"]
    ] * 8


INSTANCE_ENDS = {
    "answered": ([GUESS_5, ANSWER], {}, ["reset", "guess 5", "get_reward", "close"]),
    "no_tool_call": (["Five."], {}, ["reset", "get_reward", "close"]),
    "max_turns": (
        [GUESS_3, GUESS_5],
        {"limits": replace(LIMITS, max_turns=2)},
        ["reset", "guess 3", "get_reward", "close"],
    ),
    "max_length": ([ANSWER], {"budget": 3}, ["reset", "get_reward", "close"]),
    "invalid_calls": (["<tool:guess>x</tool>"], {}, ["reset", "get_reward", "close"]),
    "error": ([GUESS_5, "<tool:give_up>x</tool>"], {}, ["reset", "guess 5", "close"]),
    "tool_timeout": (["<tool:ponder>0.6</tool>"], {"timeout": 0.2}, ["reset", "ponder", "close"]),
}


@pytest.mark.parametrize("name", ["Guessing", "Sulking"])
@pytest.mark.parametrize("reason", ["error", "tool_timeout"])
def test_one_that_is_broken_off_is_closed_whatever_it_says_and_touched_no_more(name, reason):
    turns, settings, events = INSTANCE_ENDS[reason]
    ((trajectory, transcript),) = hold(turns, chat=chat_of(name), **settings)
    assert trajectory.stop_reason == reason
    assert transcript.environment_reward is None
    assert [events] == EVENTS
    time.sleep(0.6 if reason == "tool_timeout" else 0)
    assert [events] == EVENTS


@pytest.mark.parametrize("reason", INSTANCE_ENDS)
def test_it_is_closed_once_at_every_end(reason):
    turns, settings, events = INSTANCE_ENDS[reason]
    ((trajectory, _),) = hold(turns, **settings)
    assert trajectory.stop_reason == reason
    assert [events] == EVENTS


@pytest.mark.parametrize("name", ["Guessing", "Sulking"])
def test_an_interruption_closes_all_that_are_open(name):
    with pytest.raises(Interrupted):
        hold((GUESS_3, "INTERRUPT"), (GUESS_9, GUESS_3), chat=chat_of(name))
    assert EVENTS == [["reset", "guess 3", "close"], ["reset", "guess 9", "close"]]


def test_one_that_cannot_be_opened_is_closed_like_those_before_it():
    openings = [
        (Task(n, "Guess.", "5", {"number": number}), StreamKey(1, 0, n, 0))
        for n, number in enumerate((5, -1, 6))
    ]
    with pytest.raises(UserError, match="raised ValueError: no such number") as refused:
        converse(openings, writes((ANSWER,)))
    assert "\n" not in str(refused.value)
    assert EVENTS == [["reset", "close"]] * 2


def test_one_that_cannot_judge_is_closed_like_those_beside_it():
    with pytest.raises(UserError, match="raised ValueError: lost count"):
        hold((GUESS_3, GUESS_3, GUESS_3, ANSWER), (GUESS_9,))
    assert [events.count("close") for events in EVENTS] == [1, 1]


def test_one_that_ended_in_order_must_close():
    with pytest.raises(UserError, match="raised ConnectionError: still at work"):
        hold((ANSWER,), (ANSWER,), chat=chat_of("Sulking"))
    assert [events.count("close") for events in EVENTS] == [1, 1]
