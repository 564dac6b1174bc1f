"""Tools beside the loop: instant ones in order, slow ones together, lost ones given up."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import pytest

from common.tools.calls import Call, CallRecord
from common.tools.runner import ToolRunner
from common.tools.toolbox import instant, make_tool, make_toolbox
from tests.helpers import REPOSITORY


@instant
def shout(text: str) -> str:
    """Say it louder.

    Args:
        text: What to say.
    """
    return text.upper()


def sleep(seconds: float) -> str:
    """Take a while.

    Args:
        seconds: How long.
    """
    time.sleep(seconds)
    return f"slept {seconds}"


async def sleep_async(seconds: float) -> str:
    """Take a while without a thread.

    Args:
        seconds: How long.
    """
    await asyncio.sleep(seconds)
    return f"slept {seconds}"


def fail(text: str) -> str:
    """Raise.

    Args:
        text: What to say.
    """
    raise ConnectionError(f"no route\nto {text}")


def count(text: str) -> str:
    """Return what is no text.

    Args:
        text: What to count.
    """
    return len(text)  # pyright: ignore[reportReturnType]


async def cancel(text: str) -> str:
    """Raise what would end a task.

    Args:
        text: Ignored.
    """
    raise asyncio.CancelledError


TOOLBOX = make_toolbox(map(make_tool, (shout, sleep, sleep_async, fail, count, cancel)))


def call(tool: str, **arguments: object) -> Call:
    return Call("ok", tool, arguments)


def all_of(runner: ToolRunner) -> list[tuple[int, CallRecord]]:
    records: list[tuple[int, CallRecord]] = []
    while runner.busy:
        records += runner.finished(wait=0.05)
    return records


def test_instant_tools_answer_in_the_order_in_which_they_were_called():
    runner = ToolRunner(TOOLBOX, timeout=1.0)
    for number in (3, 1, 2):
        runner.start(number, call("shout", text=f"n{number}"))
    records = runner.finished()
    assert [(number, record.reply) for number, record in records] == [
        (3, "N3"),
        (1, "N1"),
        (2, "N2"),
    ]
    assert not runner.busy


def test_a_call_that_cannot_be_run_is_answered_with_what_is_wrong():
    runner = ToolRunner(TOOLBOX, timeout=1.0)
    runner.start(7, Call("bad_arguments", "shout", complaint="shout needs the argument 'text'"))
    ((number, record),) = runner.finished()
    assert (number, record.status, record.outcome) == (7, "bad_arguments", "answered")
    assert record.reply == "error: shout needs the argument 'text'"
    assert not record.succeeded


def test_slow_tools_run_side_by_side_async_or_not():
    runner = ToolRunner(TOOLBOX, timeout=5.0)
    started = time.monotonic()
    for number in range(40):
        runner.start(number, call("sleep_async" if number % 2 else "sleep", seconds=0.2))
    records = all_of(runner)
    assert time.monotonic() - started < 2
    assert sorted(number for number, _ in records) == list(range(40))
    assert all(record.succeeded and record.seconds >= 0.2 for _, record in records)


def test_a_tool_that_raises_or_returns_no_text_is_an_error_that_says_why():
    runner = ToolRunner(TOOLBOX, timeout=5.0)
    runner.start(0, call("fail", text="host"))
    runner.start(1, call("count", text="abc"))
    runner.start(2, call("cancel", text=""))
    records = dict(all_of(runner))
    assert {record.outcome for record in records.values()} == {"error"}
    assert records[0].reply == "ConnectionError: no route to host"
    assert records[1].reply == "TypeError: it returned int; a tool returns text"
    assert records[2].reply == "CancelledError:"


def test_an_error_of_ours_is_raised_where_it_is_waited_for(monkeypatch):
    def broken(tool, call):
        raise ZeroDivisionError

    monkeypatch.setattr("common.tools.runner._run", broken)
    runner = ToolRunner(TOOLBOX, timeout=5.0)
    runner.start(0, call("fail", text="host"))
    with pytest.raises(ZeroDivisionError):
        all_of(runner)


def test_a_late_reply_is_never_taken_for_that_of_a_later_call_of_the_same_number():
    runner = ToolRunner(TOOLBOX, timeout=0.2)
    runner.start(0, call("sleep", seconds=0.4))
    ((number, record),) = all_of(runner)
    assert (number, record.outcome) == (0, "timeout")
    assert record.reply == "no reply within 0.2 s"
    time.sleep(0.3)
    runner.start(0, call("sleep", seconds=0.1))
    ((_, record),) = all_of(runner)
    assert record.reply == "slept 0.1"


def test_a_record_has_the_arguments_as_the_model_wrote_them_whatever_came_of_the_call():
    def take_all(names: list[str]) -> str:
        """Empty the list.

        Args:
            names: What to empty.
        """
        taken = len(names)
        names.clear()
        return str(taken)

    runner = ToolRunner({**TOOLBOX, **make_toolbox([make_tool(take_all)])}, timeout=0.2)
    runner.start(0, call("take_all", names=["a", "b"]))
    runner.start(1, call("fail", text="host"))
    runner.start(2, call("sleep", seconds=0.6))
    runner.start(3, Call("bad_arguments", "shout", {"text": 1}, "no"))
    records = dict(all_of(runner))
    assert records[0].reply == "2"
    assert [records[number].arguments for number in range(4)] == [
        {"names": ["a", "b"]},
        {"text": "host"},
        {"seconds": 0.6},
        {"text": 1},
    ]


async def block(seconds: float) -> str:
    """Do what an async tool must not: block its event loop.

    Args:
        seconds: How long.
    """
    time.sleep(seconds)
    return f"blocked {seconds}"


async def leave(text: str) -> str:
    """Want to end the process.

    Args:
        text: Ignored.
    """
    sys.exit(text)


def test_an_async_tool_that_blocks_or_wants_to_exit_ends_its_own_conversation_alone():
    runner = ToolRunner(make_toolbox(map(make_tool, (block, leave, sleep_async))), timeout=0.5)
    runner.start(0, call("block", seconds=2.0))
    runner.start(1, call("sleep_async", seconds=0.1))
    runner.start(2, call("leave", text="now"))
    outcomes = {number: record.outcome for number, record in all_of(runner)}
    assert outcomes == {0: "timeout", 1: "answered", 2: "error"}
    runner.start(3, call("sleep_async", seconds=0.1))
    assert all_of(runner)[0][1].outcome == "answered"


def test_more_calls_than_threads_wait_for_their_turn(monkeypatch):
    monkeypatch.setattr("common.background.MOST_THREADS", 4)
    runner = ToolRunner(TOOLBOX, timeout=0.5)
    for number in range(12):
        runner.start(number, call("sleep", seconds=0.3))
    records = all_of(runner)
    assert sorted(number for number, _ in records) == list(range(12))
    assert {record.outcome for _, record in records} == {"answered"}


def test_half_a_surrogate_pair_is_made_text_that_can_be_encoded():
    runner = ToolRunner(TOOLBOX, timeout=0.5)
    runner.start(0, call("shout", text="a\ud83d"))
    assert runner.finished()[0][1].reply == "A\N{REPLACEMENT CHARACTER}"


@pytest.mark.slow
def test_a_tool_that_never_returns_does_not_keep_the_process_from_exiting():
    script = """
import asyncio, time
from common.tools.calls import Call
from common.tools.runner import ToolRunner
from common.tools.toolbox import make_tool, make_toolbox

def never(text: str) -> str:
    \"\"\"Never return.

    Args:
        text: Anything.
    \"\"\"
    while True:
        time.sleep(60)

async def never_either(text: str) -> str:
    \"\"\"Never return.

    Args:
        text: Anything.
    \"\"\"
    await asyncio.sleep(10**6)
    return ""

async def nor_a_thread(text: str) -> str:
    \"\"\"Never return.

    Args:
        text: Anything.
    \"\"\"
    return await asyncio.to_thread(never, text)

tools = (never, never_either, nor_a_thread)
runner = ToolRunner(make_toolbox(map(make_tool, tools)), timeout=0.1)
for number, name in enumerate(("never", "never_either", "nor_a_thread")):
    runner.start(number, Call("ok", name, {"text": ""}))
while runner.busy:
    print(sorted(record.outcome for _, record in runner.finished(0.05)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("timeout") == 3
