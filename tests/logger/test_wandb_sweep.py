"""`wandb sweep` and `wandb agent`, as a user runs them, against a server on the loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fake_wandb_server import FakeWandbServer
from tests.fake_wandb_sweeps import SWEEP, FakeSweepServer
from tests.helpers import REPOSITORY, read_rows
from tests.logger.wandb_records import records, rows_of, the

pytestmark = pytest.mark.slow

TRIALS = [{"lr": 1e-05, "monitor_kl": True}, {"lr": 0.0004, "monitor_kl": False}]
# The agent looks after its trials every five seconds, which is most of what this would take.
AGENT = """
from wandb.cli.cli import cli
from wandb.wandb_agent import Agent

Agent.POLL_INTERVAL = 0.5
cli()
"""


def sweep_file(root: Path) -> Path:
    """The experiment's own, with trials of one small batch."""
    sweep = yaml.safe_load((REPOSITORY / "experiment_base" / "sweep.yaml").read_text())
    small = ["--max-steps=1", "--rollouts-per-step=4", "--group-size=2", "--eval-samples=4"]
    *command, arguments = sweep["command"]
    sweep["command"] = [*command, *small, f"--log-dir={root / 'runs'}", arguments]
    values = {name: {"values": [trial[name] for trial in TRIALS]} for name in TRIALS[0]}
    path = root / "sweep.yaml"
    path.write_text(yaml.safe_dump({**sweep, "parameters": values}))
    return path


def environment(root: Path, server: FakeWandbServer) -> dict[str, str]:
    """That of a person with an account; the agent's `python` is the one of these tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return {
        **kept,
        "HOME": str(root),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "WANDB_API_KEY": "0123456789abcdef" * 3,
        "WANDB_BASE_URL": server.url,
        "WANDB_DIR": str(root),
    }


def run(*command: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=REPOSITORY / "experiment_base",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **settings,
    )


def test_two_trials_of_an_agent_report_to_their_sweep(tmp_path):
    with FakeSweepServer(TRIALS) as server:
        settings = {"env": environment(tmp_path, server)}
        made = run("wandb", "sweep", str(sweep_file(tmp_path)), **settings)
        assert made.returncode == 0, made.stderr
        # The project is the experiment's own, as the file says it.
        path = f"someone/tiny_grpo/{SWEEP}"
        assert f"wandb agent {path}\n" in made.stderr
        agent = run(sys.executable, "-c", AGENT, "agent", "--count", "2", path, **settings)
        assert agent.returncode == 0, agent.stderr

    assert set(server.runs) == {"trial0", "trial1"}
    assert server.exit_codes == {"trial0": 0, "trial1": 0}
    directories = sorted((tmp_path / "runs" / "experiment_base").iterdir())
    for number, directory in enumerate(directories):
        name, trial = f"trial{number}", TRIALS[number]
        assert server.runs[name]["sweep"] == SWEEP
        assert server.runs[name]["project"] == "tiny_grpo"
        assert server.runs[name]["displayName"] == directory.name
        # What the agent passed on as flags, and what W&B shows.
        for config in (json.loads((directory / "config.json").read_text()), server.config_of(name)):
            assert {key: config[key] for key in trial} == trial
            assert config["max_steps"] == 1
        (final,) = (row for row in read_rows(directory / "metrics.jsonl") if "final_reward" in row)
        history = [row["final_reward"] for row in server.rows[name] if "final_reward" in row]
        assert history == [server.summaries[name]["final_reward"]] == [final["final_reward"]]


def test_a_trial_whose_run_the_server_refuses_is_logged_offline(tmp_path):
    """Under the same id, so that it can be synced into its sweep."""
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text("wandb_version: 1\nlr:\n  value: 0.0001\n")
    with FakeSweepServer([], refuses_runs=True) as server:
        result = run(
            *(sys.executable, "-m", "tests.logger.log_rows", str(tmp_path)),
            env={
                **environment(tmp_path, server),
                "PYTHONPATH": str(REPOSITORY),
                "WANDB_SWEEP_ID": SWEEP,
                "WANDB_RUN_ID": "trial0",
                "WANDB_SWEEP_PARAM_PATH": str(parameters),
            },
        )
    assert result.returncode == 0, result.stderr
    assert "logging offline" in result.stdout
    directory = tmp_path / "log_rows" / "run"
    found = records(directory)
    assert the("run", found)["run_id"] == "trial0"
    assert the("run", found)["sweep_id"] == SWEEP
    assert [row["final_reward"] for row in rows_of(found) if "final_reward" in row] == [1.5]
    assert not list((directory / "wandb").glob("run-*"))
