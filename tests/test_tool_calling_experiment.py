"""The calculator experiment as a user runs it: it learns, repeats, resumes, refuses nonsense."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from common.models.load import BUNDLED
from tests.chat_templates import QWEN25_KIND
from tests.helpers import (
    REPOSITORY,
    SMALL_TALK,
    complain,
    load_script,
    read_rows,
    run_training,
)
from tests.small_models import save_model, train_tokenizer

EXPERIMENT = "experiment_multiturn_tool_calling"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script(EXPERIMENT)


def train(root: Path, *flags: str, name: str, timeout: float = 300) -> str:
    result = run_training(
        *flags, "--run-name", name, experiment=EXPERIMENT, log_dir=root, timeout=timeout
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_model_is_small_enough():
    files = (BUNDLED / "tiny-calculator").iterdir()
    assert sum(file.stat().st_size for file in files) < 4_000_000


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> tuple[Path, str]:
    """A shortened default run, and what it printed."""
    root = tmp_path_factory.mktemp("tool_calling")
    flags = ("--max-steps", "6", "--rollouts-per-step", "16", "--train-batch-size", "64")
    flags += ("--eval-interval", "0", "--eval-samples", "128", "--no-wandb", "--no-tensorboard")
    output = train(root, *flags, "--log-completions-interval", "6", name="learned")
    return root / EXPERIMENT / "learned", output


def column(directory: Path, name: str) -> list[float]:
    return [row[name] for row in read_rows(directory / "metrics.jsonl") if name in row]


@pytest.mark.slow
class TestLearning:
    def test_it_learns_to_call_and_to_answer_from_the_reply(self, learned):
        directory, output = learned
        before, after = column(directory, "eval/accuracy")
        assert 0.2 < before < 0.5
        assert after > 0.75
        used_before, used_after = column(directory, "eval/tool_use_rate")
        assert used_before < 0.75
        assert used_after > 0.85
        assert "→" in output
        rows = read_rows(directory / "metrics.jsonl")
        assert not [name for row in rows for name in row if name.startswith("health/")]

    def test_the_sampler_and_the_learner_agree_on_every_token(self, learned):
        assert max(column(learned[0], "rollouts/logprob_mismatch_max")) < 1e-3

    def test_the_shares_and_returns_of_a_batch_add_up(self, learned):
        directory, _ = learned
        for row in read_rows(directory / "metrics.jsonl"):
            if "stop/answered" in row:
                shares = [value for name, value in row.items() if name.startswith("stop/")]
                assert sum(shares) == pytest.approx(1)
                returns = row["rollouts/returns_mean"]
                assert row["batch_returns/mean"] == pytest.approx(returns)
                assert row["batch_returns/per_task"] == pytest.approx(8 * returns)

    def test_samples_are_whole_conversations_and_can_be_read(self, learned):
        directory, _ = learned
        rows = read_rows(directory / "samples.jsonl")
        called = [row for row in rows if "conversation" in row]
        assert called
        for row in called:
            roles = [message["role"] for message in row["conversation"]]
            assert set(roles[::2]) == {"assistant"}
            assert set(roles[1::2]) <= {"tool"}
            call = row["calls"][0]
            assert {"status", "outcome", "reply", "tool"} <= set(call)
            assert list(call["arguments"]) == (["expression"] if call["status"] == "ok" else [])
        last = max(row["step"] for row in called)
        flags = ("--step", str(last), "--min-reward", "1", "--stop-reason", "answered")
        shown = self.samples(directory, *flags, "--count", "2").stdout
        assert shown.count(f"step {last}, ") == 2
        assert shown.count("<tool:calc>") >= 2
        assert "     tool  " in shown
        assert "stop_reason answered" in shown

    def test_samples_that_are_not_there_are_a_mistake_in_one_line(self, learned):
        for arguments, complaint in (
            ((learned[0], "--step", "99"), "none of its"),
            ((learned[0].parent,), "holds no samples.jsonl"),
        ):
            result = self.samples(*arguments)
            assert result.returncode == 2
            assert result.stderr.startswith("error: RUN=")
            assert complaint in result.stderr
            assert result.stderr.count("\n") == 1

    @staticmethod
    def samples(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "common.views.samples", *map(str, arguments)],
            cwd=REPOSITORY,
            env={"COLUMNS": "200", "HOME": "/nonexistent"},
            capture_output=True,
            text=True,
            check=False,
        )


OWN_TOOLS = '''
import time

def half(number: float) -> str:
    """Half of a number.

    Args:
        number: Any.
    """
    return str(number / 2)

def calc(expression: str) -> str:
    """Another calculator.

    Args:
        expression: A sum.
    """
    return "4"

def untyped(number):
    """Half of a number."""
    return str(number / 2)

def undocumented(number: float) -> str:
    return str(number / 2)

def broken(text: str) -> str:
    """Break.

    Args:
        text: Anything.
    """
    raise ConnectionError("no route")

def add(first: int, second: int) -> str:
    """Add.

    Args:
        first: A number.
        second: Another.
    """
    return str(first + second)

class Game:
    def reset(self, **row) -> None:
        pass

    def guess(self, number: int) -> str:
        return "higher"

tool = 7
'''


@pytest.mark.slow
@pytest.mark.parametrize("tool_format", ["hermes", "tags"])
def test_a_hub_model_with_a_bpe_tokenizer_and_its_template(
    script, tmp_path, monkeypatch, tool_format
):
    """As `--model-name Qwen/Qwen2.5-3B-Instruct` is used, and with a tool of the user's own."""
    directory = save_model("qwen2", tmp_path / "model")
    train_tokenizer(QWEN25_KIND).save_pretrained(directory)
    (tmp_path / "own_tools.py").write_text(OWN_TOOLS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_tools", raising=False)
    flags = ("--model-name", str(directory), "--tool-format", tool_format, "--max-steps", "1")
    flags += ("--max-completion-tokens", "24", "--max-length", "900", "--tool", "own_tools:half")
    run = ("--run-name", "hub", "--log-dir", str(tmp_path))
    assert complain(script, [*SMALL_TALK, *flags, *run]) == (0, "")
    rows = read_rows(tmp_path / EXPERIMENT / "hub" / "metrics.jsonl")
    losses = [row["training_step/loss"] for row in rows if "training_step/loss" in row]
    assert len(losses) == 2
    assert None not in losses
    config = json.loads((tmp_path / EXPERIMENT / "hub" / "config.json").read_text())
    assert config["tool_format"] == tool_format
    assert "<answer>" in config["system_prompt"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--tool", "own_tools:calc"], "tool calc: there are two of that name"),
        (["--tool", "own_tools:untyped"], "tool untyped: "),
        (["--tool", "own_tools:undocumented"], "tool undocumented: "),
        (["--tool", "own_tools:add"], "tool add: needs more than the text between tags"),
        (["--tool", "own_tools:nothing"], "own_tools has no function 'nothing'"),
        (["--tool", "own_tools:tool"], "own_tools has no function 'tool'"),
        (["--tool", "no_such_tools:f"], "--tool no_such_tools:f: no module"),
        (["--environment", "own_tools:half"], "--environment own_tools:half: is not a class"),
        (["--environment", "own_tools:Game"], "--environment own_tools:Game: tool guess: "),
        (["--max-turns", "0"], "--max-turns 0: must be at least 1"),
        (["--tool-timeout", "0"], "--tool-timeout 0"),
        (["--max-tool-tokens", "2"], "--max-tool-tokens 2: must be at least 8"),
        (["--tool-format", "json"], "--tool-format json: must be one of"),
        (["--tool-format", "hermes"], "does not show tools and how to call them"),
        (["--reward-weights", "answer_check=1"], "unknown reward; known: tool_call_format"),
    ],
)
def test_mistakes(script, tmp_path, monkeypatch, arguments, expected):
    (tmp_path / "own_tools.py").write_text(OWN_TOOLS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_tools", raising=False)
    code, complaint = complain(
        script, [*SMALL_TALK, "--log-dir", str(tmp_path / "runs"), *arguments]
    )
    assert (code, complaint.count("\n")) == (2, 1), complaint
    assert expected in complaint
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ messages[-1]['content'] }}", "has no place for the reply of a tool"),
        (
            "{% for message in messages %}{% if message['role'] == 'tool' %}"
            "{{ raise_exception('roles must alternate') }}{% endif %}{{ message['content'] }}"
            "{% endfor %}",
            "cannot render system, user, assistant, tool messages (roles must alternate)",
        ),
    ],
)
def test_a_tokenizer_without_the_tool_role(script, tmp_path, template, expected):
    directory = save_model("qwen2", tmp_path / "model")
    tokenizer = train_tokenizer(QWEN25_KIND)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    flags = ("--model-name", str(directory), "--system-prompt", "", "--tool-format", "tags")
    code, complaint = complain(script, [*SMALL_TALK, *flags, "--log-dir", str(tmp_path / "runs")])
    assert (code, complaint.count("\n")) == (2, 1), complaint
    assert expected in complaint
    assert str(directory) in complaint


@pytest.mark.slow
class TestAToolThatBreaks:
    """`calc` is replaced by one that raises where it is asked for a sum."""

    def test_in_some_conversations_is_counted_said_and_left_out(self, script, tmp_path, capsys):
        rows, samples = self.run(script, tmp_path, lambda expression: "+" in expression)
        batches = [row for row in rows if "rollouts/errors" in row]
        assert sum(row["rollouts/errors"] for row in batches) > 0
        for row in batches:
            total = row["rollouts/errors"] + row["rollouts/total_rollouts"]
            assert total <= 16
            assert row["stop/error"] == pytest.approx(row["rollouts/errors"] / 16)
        broken = [row for row in samples if row.get("split") == "errored"]
        assert len(broken) >= sum(row["rollouts/errors"] for row in batches)
        assert all(row["calls"][-1]["outcome"] == "error" for row in broken)

    def test_in_all_conversations_stops_the_run_in_one_line(self, script, tmp_path):
        complaint = r"^error: tool calc: broke off the conversations of step 1, [^\n]*--resume\n\W"
        with pytest.raises(AssertionError, match=complaint):
            self.run(script, tmp_path, lambda expression: True, "--temperature", "0.01")

    @staticmethod
    def run(script, tmp_path, breaks, *flags):
        def calc(expression: str) -> str:
            """Calculate, perhaps.

            Args:
                expression: A sum or a product.
            """
            if breaks(expression):
                raise ConnectionError("no route")
            return "7"

        tasks = tmp_path / "tasks.jsonl"
        source = (REPOSITORY / "data" / "calculator_tasks.jsonl").read_text().splitlines()
        tasks.write_text("\n".join(source[:60]) + "\n")
        before = script.TOOLS
        script.TOOLS = {"calc": calc}
        try:
            code, complaint = complain(
                script,
                [*SMALL_TALK, "--max-steps", "2", "--eval-samples", "0", "--run-name", "broken",
                 "--data-path", str(tasks), "--log-dir", str(tmp_path), *flags],
            )  # fmt: skip
        finally:
            script.TOOLS = before
        assert code == 0, complaint
        directory = tmp_path / EXPERIMENT / "broken"
        return read_rows(directory / "metrics.jsonl"), read_rows(directory / "samples.jsonl")
