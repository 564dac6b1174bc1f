"""Mathematical equality by hand, and processes that neither hang nor outlive the run."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import psutil
import pytest

from common.errors import UserError
from common.rewards import math_verify
from common.rewards.math_verify import MathVerify
from common.rewards.transcript import Transcript
from common.tasks.task import Task

HANGS = "9^{9^{9^{9}}}"


@pytest.fixture(scope="module")
def reward():
    return MathVerify(seconds=20)


def ask(reward: MathVerify, answer: str, *oracles: str) -> float:
    task = Task(0, "?", oracles[0], alternatives=oracles[1:])
    return reward(Transcript(f"<think>x</think><answer> {answer}</answer>"), task)


def workers() -> list[int]:
    """Those that run now."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if "math_worker.py" in " ".join(child.cmdline()):
                found.append(child.pid)
    return found


def wait_for(what) -> bool:
    """Whether it comes true within some seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if what():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("answer", "oracle"),
    [
        ("0.5", "1/2"),
        ("1/2", r"\frac{1}{2}"),
        (r"\boxed{\frac12}", "0.50"),
        (r"\frac{6}{3}", "2"),
        ("3/2", r"1\frac{1}{2}"),
        (r"2\sqrt{2}", r"\sqrt{8}"),
        (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
        (r"\{2, 1\}", r"\{1, 2\}"),
        ("[1, 2)", r"\left[1, 2\right)"),
        (r"$[3, \infty) \cup (-\infty, 2]$", r"(-\infty, 2] \cup [3, \infty)"),
        ("1 + 2x", "2x + 1"),
        ("(x-1)(x+1)", "x^2 - 1"),
        ("x = 5", "5"),
        ("1024", "2^{10}"),
        (r"3 \times 10^6", "3000000"),
        ("$70,000", "70000"),
        ("paris", "Paris"),
    ],
)
def test_equal_however_it_is_written(reward, answer, oracle):
    assert ask(reward, answer, oracle) == 1


@pytest.mark.parametrize(
    ("answer", "oracle"),
    [
        ("7", r"\frac{7}{8}"),
        ("-1/2", "1/2"),
        (r"\{1, 2, 3\}", r"\{1, 2\}"),
        ("(1, 2)", "[1, 2]"),
        ("x > 5", "5"),
        ("5, 6", "6"),
        ("5 or 6", "6"),
        ("$5$ or $6$", "6"),
        (r"5 \boxed{6}", "6"),
        ("12 + 5", "17"),
        (r"2 \cdot 3", "6"),
        ("1.234", "1,234"),
        ("50", "50%"),
        ("1", "1 1/2"),
        ("act", "cat"),
        ("", "1/2"),
        (r"\frac{" * 60 + "1" + "}{2}" * 60, "1/3"),
        ("(" * 10_000 + "1/2" + ")" * 10_000, "1/2"),
    ],
)
def test_what_is_not_equal(reward, answer, oracle):
    assert ask(reward, answer, oracle) == 0


def test_each_right_answer_counts_in_tags_or_else_in_the_last_box(reward):
    assert ask(reward, "1/2", r"\frac{1}{3}", r"\frac{1}{2}") == 1
    task = Task(0, "?", r"\frac{1}{2}")
    assert reward(Transcript(r"so \boxed{1/3}, no, \boxed{0.5}"), task) == 1
    assert reward(Transcript(r"<think>\boxed{0.5}</think> done"), task) == 0
    assert reward(Transcript(r"<answer>1/3</answer> \boxed{1/2}"), task) == 0


def test_a_batch_is_scored_in_order_by_several_workers(reward):
    completions = [Transcript(rf"\boxed{{\frac{{{2 * n}}}{{14}}}}") for n in range(12)]
    tasks = [Task(n, "?", f"{n if n % 3 else n + 1}/7") for n in range(12)]
    assert reward.of_batch(completions, tasks) == [float(n % 3 > 0) for n in range(12)]
    assert 1 < len(workers()) <= math_verify.MOST_WORKERS


@pytest.mark.slow
def test_whoever_waits_for_a_batch_may_break_off():
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    reward = MathVerify(seconds=1)
    completions = [Transcript(rf"\boxed{{{HANGS}}}")] * 40
    started = time.monotonic()
    with pytest.raises(Stop):
        reward.of_batch(completions, [Task(0, "?", "1/2")] * 40, stop)
    assert time.monotonic() - started < 20


@pytest.mark.slow
def test_a_comparison_that_hangs_scores_nothing_and_the_next_one_is_right():
    reward = MathVerify(seconds=1)
    before = set(workers())
    assert ask(reward, "0.5", "1/2") == 1
    (worker,) = set(workers()) - before
    started = time.monotonic()
    assert ask(reward, HANGS, "1/2") == 0
    assert time.monotonic() - started < 5
    assert not psutil.pid_exists(worker)
    assert ask(reward, "0.5", "1/2") == 1


def _ask_into(scores: list[float], reward: MathVerify) -> None:
    scores.append(ask(reward, "0.25", "1/4"))


def test_a_worker_is_used_again_also_from_other_threads_and_after_an_interrupt():
    reward = MathVerify()
    before = set(workers())
    assert ask(reward, "0.5", "1/2") == 1
    (worker,) = set(workers()) - before
    os.kill(worker, signal.SIGINT)
    scores: list[float] = []
    thread = threading.Thread(target=_ask_into, args=(scores, reward))
    thread.start()
    thread.join()
    del thread
    assert scores == [1]
    assert set(workers()) - before == {worker}
    del reward
    assert wait_for(lambda: not psutil.pid_exists(worker))


def test_a_worker_that_was_killed_while_idle_is_replaced():
    reward = MathVerify()
    before = set(workers())
    assert ask(reward, "0.5", "1/2") == 1
    (worker,) = set(workers()) - before
    os.kill(worker, signal.SIGKILL)
    assert ask(reward, "0.25", "1/4") == 1


def test_plain_answers_start_no_worker():
    reward, before = MathVerify(), set(workers())
    assert ask(reward, "70,000", "70000") == 1
    assert ask(reward, "7", "70000") == 0
    assert ask(reward, "Rome", "Paris") == 0
    assert set(workers()) <= before


RUN = f"""
import os, sys
from common.rewards.math_verify import MathVerify
from common.rewards.transcript import Transcript
from common.tasks.task import Task

reward = MathVerify(seconds=60)
def ask(answer):
    return reward(Transcript(f"<answer>{{answer}}</answer>"), Task(0, "", "1/2"))
assert ask("0.5") == 1
if sys.argv[1] == "fork":
    first = reward._workers
    if os.fork() == 0:
        assert ask("0.5") == 1
        assert reward._workers is not first
        os._exit(0)
    assert os.wait()[1] == 0
    assert ask("0.50") == 1
    assert reward._workers is first
print("ready", flush=True)
if sys.argv[1] == "hangs":
    ask("{HANGS}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ends", "fork", "hangs"])
def test_no_worker_outlives_the_run(how):
    """Whether it ends by itself, after a fork of it, or is killed during a comparison."""
    run = subprocess.Popen([sys.executable, "-c", RUN, how], stdout=subprocess.PIPE)
    assert run.stdout is not None
    assert run.stdout.readline() == b"ready\n"
    children = psutil.Process(run.pid).children() if how == "hangs" else []
    if how == "hangs":
        assert len(children) == 1
        time.sleep(0.5)
        run.kill()
    assert run.wait(20) == (-signal.SIGKILL if how == "hangs" else 0)
    assert wait_for(lambda: not any(child.is_running() for child in children))


def test_without_the_library_one_line_names_the_extra(monkeypatch):
    monkeypatch.setattr(math_verify.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"math_verify: needs math-verify; run pip install .*math"):
        ask(MathVerify(), "", "1")
