"""W&B online, offline, off and failing, read back from its files and from a loopback server."""

import base64
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.run.checkpoint import MANIFEST, STATE
from tests.fake_wandb_server import FakeWandbServer
from tests.helpers import REPOSITORY, read_rows, run_training
from tests.logger.log_rows import HALF_WAY, STARTED, STEPS
from tests.logger.wandb_records import (
    artifacts_of,
    records,
    rows_of,
    rows_on,
    summary_on,
    the,
)

pytestmark = pytest.mark.slow

KEY = "0123456789abcdef" * 3
SMALL = (
    *("--rollouts-per-step", "4", "--group-size", "2", "--eval-samples", "4"),
    *("--max-steps", "2", "--log-completions-interval", "1", "--run-name", "run"),
)
# What a server that is dead, slow or unfriendly may cost a run from start to end. One of them waits
# in full; for the others a second stands for ten, as waiting is what would take most of the time.
MOST_SECONDS = 25


@pytest.fixture(autouse=True, scope="module")
def no_account(tmp_path_factory):
    """No key, no settings and no netrc of the person who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        patch.delenv("NETRC", raising=False)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


@dataclass
class LoggingRun:
    """A run that only logs, in a process of its own."""

    directory: Path
    process: subprocess.Popen[str]
    output: str = ""
    errors: str = ""
    seconds: float = 0.0
    seconds_to_finish: float = 0.0

    def reach_half_way(self) -> None:
        """Half of the rows are logged, and W&B is there to take them."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if HALF_WAY in self.output and "W&B initialized" in self.output:
                return

    def finish(self) -> None:
        """`seconds` are those from before its logger is opened until its process has ended,
        `seconds_to_finish` those from now on.
        """
        called = time.time()
        output, self.errors = self.process.communicate("\n", timeout=120)
        ended = time.time()
        self.output += output
        assert self.process.returncode == 0, self.errors
        started = re.search(rf"^{STARTED} (.*)$", self.output, re.M)
        assert started
        self.seconds = ended - float(started[1])
        self.seconds_to_finish = ended - called

    @property
    def rows(self) -> list[dict[str, Any]]:
        return read_rows(self.directory / "metrics.jsonl")


def start_logging(log_dir: Path, *flags: str, **environment: str) -> LoggingRun:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.logger.log_rows", str(log_dir), *flags],
        cwd=REPOSITORY,
        # For the mirror, which looks nowhere else.
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return LoggingRun(log_dir / "log_rows" / "run", process)


def log(log_dir: Path, *flags: str, **environment: str) -> LoggingRun:
    run = start_logging(log_dir, *flags, **environment)
    run.finish()
    return run


def account(server: FakeWandbServer, key: str = KEY) -> dict[str, str]:
    return {"WANDB_API_KEY": key, "WANDB_BASE_URL": server.url}


def files_with(text: str, directory: Path) -> list[Path]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if text.encode() in path.read_bytes()]


# Offline


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """A training run without a key, and then its continuation."""
    root = tmp_path_factory.mktemp("a long name of a directory that no console would print in one")
    directory = root / "experiment_base" / "run"
    flags = ("--checkpoint-interval", "1", "--log-artifacts")
    first = run_training(*SMALL, *flags, log_dir=root)
    assert first.returncode == 0, first.stderr
    found = {"output": first.stdout, "rows": read_rows(directory / "metrics.jsonl")}
    found["records"] = records(directory)
    (log,) = directory.glob("wandb/offline-run-*/logs/debug-core.log")
    found["log of wandb's process"] = log.read_text()
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"rollouts/batch_step": 3, "rollouts/returns_mean": 99.0}\n')
    # With all checkpoints kept: so quick a run has pruned its first before W&B has started.
    flags = ("--max-steps", "4", "--keep-checkpoints", "0")
    second = run_training("--run-name", "run", "--resume", *flags, log_dir=root)
    assert second.returncode == 0, second.stderr
    return directory, found


def test_without_a_key_every_row_is_in_a_file_to_sync_later(offline):
    _, found = offline
    assert rows_of(found["records"]) == found["rows"]
    assert the("exit", found["records"])["exit_code"] == 0
    assert the("run", found["records"])["project"] == "tiny_grpo"


def test_wandbs_process_is_waited_for_until_it_has_written_all(offline):
    _, found = offline
    assert "server shutdown complete" in found["log of wandb's process"]
    assert "forced shutdown" not in found["log of wandb's process"]


def test_it_says_where_the_run_is_in_lines_that_are_whole(offline):
    directory, found = offline
    said = re.search(r"^W&B initialized: tiny_grpo/run \(offline\)$", found["output"], re.M)
    assert said
    command = re.search(r"^to upload it later: wandb sync (.*)$", found["output"], re.M)
    assert command
    folder = Path(command[1])
    assert folder.parent == directory / "wandb"
    assert folder.name.startswith("offline-run-")


def test_nothing_is_twice_after_a_resume(offline):
    directory, found = offline
    rows = read_rows(directory / "metrics.jsonl")
    assert [row["rollouts/batch_step"] for row in rows if "rollouts/returns_mean" in row] == [
        *(1, 2, 3, 4)
    ]
    assert not any(row.get("rollouts/returns_mean") == 99.0 for row in rows)
    saved = [number for number, row in enumerate(found["rows"]) if "checkpoint/saved" in row]
    assert rows[: saved[-1] + 1] == found["rows"][: saved[-1] + 1]

    new = records(directory, "offline-run-*")
    assert rows_of(new) == rows
    assert the("run", new)["run_group"] == the("run", found["records"])["run_group"] == "run"
    assert the("run", new)["run_id"] != the("run", found["records"])["run_id"]
    assert rows_of(records(directory, "superseded-*")) == found["rows"]

    events = EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    names = {name for row in rows for name, value in row.items() if isinstance(value, int | float)}
    assert set(events.Tags()["scalars"]) == names - {
        "rollouts/batch_step",
        "training_step/global_step",
    }
    for name in events.Tags()["scalars"]:
        axis = "training_step/global_step" if "training_step/" in name else "rollouts/batch_step"
        expected = [(row[axis], pytest.approx(row[name])) for row in rows if name in row]
        assert [(event.step, event.value) for event in events.Scalars(name)] == expected


def test_texts_survive_a_resume(offline):
    directory, _ = offline
    rows = read_rows(directory / "metrics.jsonl")
    texts = {
        row["rollouts/batch_step"]: row["examples/completion"]
        for row in rows
        if "examples/completion" in row
    }
    assert set(texts) == {1, 2, 3, 4}
    events = EventAccumulator(str(directory), size_guidance={"tensors": 0}).Reload()
    shown = events.Tensors("examples/completion/text_summary")
    assert {event.step: event.tensor_proto.string_val[0].decode() for event in shown} == texts
    assert len(shown) == len(texts)


def test_checkpoints_and_the_final_model_are_artifacts(offline):
    _, found = offline
    dataset, *models = artifacts_of(found["records"])
    assert (dataset["name"], dataset["type"]) == ("math_tasks.jsonl", "dataset")
    assert [model["name"] for model in models] == ["run-checkpoint", "run-checkpoint", "run-final"]
    assert [model["aliases"][:2] for model in models] == [
        *(["latest", "step-1"], ["latest", "step-2"], ["latest", "step-2"])
    ]
    # Only after the second step is there an evaluation.
    assert [model["aliases"][2:] for model in models] == [[], ["best"], []]
    metadata = json.loads(models[2]["metadata"])
    last = {name: value for row in found["rows"] for name, value in row.items()}
    assert metadata["eval"]["accuracy"] == last["eval/accuracy"]
    assert metadata["final"]["total_batches"] == last["final/total_batches"] == 2


def test_a_resumed_run_logs_the_artifacts_of_the_run_before_once_more(offline):
    directory, _ = offline
    _, *models = artifacts_of(records(directory, "offline-run-*"))
    assert [model["aliases"][1] for model in models] == [
        *("step-1", "step-2", "step-3", "step-4", "step-4")
    ]
    checkpoint, final = (
        {
            entry["path"]: base64.b64decode(entry["digest"])
            for entry in model["manifest"]["contents"]
        }
        for model in models[-2:]
    )
    assert checkpoint == final
    saved = directory / "checkpoints" / "step_000004"
    assert final.keys() == {path.name for path in saved.iterdir()} - {MANIFEST, STATE}
    for name, digest in final.items():
        assert digest == hashlib.md5((saved / name).read_bytes()).digest()


# Online


@pytest.fixture(scope="module")
def online(tmp_path_factory):
    """A training run with a key from `.env` in the working directory, watched while it runs."""
    root = tmp_path_factory.mktemp("online")
    with FakeWandbServer() as server:
        lines = [f"{name}={value}" for name, value in account(server).items()]
        (root / ".env").write_text("\n".join([*lines, "WANDB_PROJECT=a", "WANDB_ENTITY=team"]))
        process = subprocess.Popen(
            [
                *(sys.executable, str(REPOSITORY / "experiment_base" / "train.py"), *SMALL),
                *("--log-dir", str(root), "--wandb-group", "pairs", "--wandb-tags", "red", "blue"),
                *("--wandb-notes", "first try"),
            ],
            cwd=root,
            env={
                **os.environ,
                "WANDB_PROJECT": "from-the-shell",
                "WANDB_X_STATS_SAMPLING_INTERVAL": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        command_lines: set[bytes] = set()
        while process.poll() is None:
            command_lines |= all_command_lines()
            time.sleep(0.2)
        output, errors = process.communicate()
        assert process.returncode == 0, errors
    return root / "experiment_base" / "run", server, output + errors, command_lines


def all_command_lines() -> set[bytes]:
    found: set[bytes] = set()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.add(file.read_bytes())
        except OSError:
            # The process has ended since it was listed.
            continue
    return found


def test_with_a_key_every_row_arrives(online):
    directory, server, output, _ = online
    ((run, _),) = server.runs.items()
    rows = read_rows(directory / "metrics.jsonl")
    assert rows_on(server, run) == rows
    assert server.exit_codes == {run: 0}
    assert "W&B initialized: from-the-shell/run (online)\n" in output
    assert "offline" not in output


def test_the_summary_has_the_last_values(online):
    directory, server, _, _ = online
    (run,) = server.summaries
    last: dict[str, Any] = {}
    for row in read_rows(directory / "metrics.jsonl"):
        last |= row
    assert summary_on(server, run) == last
    assert {"final_reward", "generations"} <= set(last)


def test_both_axes_are_defined(online):
    _, server, _, _ = online
    (run,) = server.runs
    defined = server.config_of(run)["_wandb"]["m"]
    # "1" is a name, "2" a pattern, "5" the position of its axis in this list, from 1 on.
    axes = {
        metric.get("1") or metric["2"]: defined[metric["5"] - 1]["1"]
        for metric in defined
        if "5" in metric
    }
    assert axes.pop("training_step/*") == "training_step/global_step"
    assert set(axes.values()) == {"rollouts/batch_step"}
    assert {"rollouts/*", "eval/*", "rewards/*", "training_epoch/*", "final_reward"} <= set(axes)


def test_the_names_arrive_and_the_shell_beats_the_file(online):
    _, server, _, _ = online
    ((_, run),) = server.runs.items()
    assert run["project"] == "from-the-shell"
    assert run["entity"] == "team"
    assert run["groupName"] == "pairs"
    assert run["displayName"] == "run"
    assert run["tags"] == ["red", "blue"]
    assert run["notes"] == "first try"


def test_only_what_the_readme_says_leaves_the_machine(online):
    directory, server, _, _ = online
    ((name, run),) = server.runs.items()
    files = {path for path in server.files if not path.endswith((".table.json", "/manifest"))}
    assert files == {f"{name}/config.yaml", f"{name}/wandb-summary.json"}
    assert server.artifacts_of("model") == server.artifacts_of("dataset") == []
    tables = {table["name"] for table in server.artifacts_of("wandb-run-incremental-table")}
    assert tables == {f"run-{name}-incr-generations"}
    assert server.streams == {*("wandb-history.jsonl", "wandb-summary.json", "wandb-events.jsonl")}
    assert set(run) == {
        *("name", "project", "entity", "groupName", "displayName", "tags", "notes", "config")
    }
    config = server.config_of(name)
    own = config.pop("_wandb")
    recorded = json.loads((directory / "config.json").read_text())
    # W&B has no empty mapping.
    assert config == {key: value for key, value in recorded.items() if value != {}}
    assert set(own) == {"cli_version", "python_version", "t", "m"}
    assert {path.split("/")[1] for path, _ in server.bodies} == {"graphql", "files", "storage"}
    events = b"".join(body for _, body in server.bodies if b"wandb-events.jsonl" in body)
    assert b"system.memory_percent" in events
    everything = b"".join(body for _, body in server.bodies)
    everything = everything.replace(recorded["script"].encode(), b"")
    for secret in (os.uname().nodename + '"', "train.py", "held-out accuracy"):
        assert secret.encode() not in everything


def test_the_key_is_nowhere(online):
    directory, _, output, command_lines = online
    assert files_with(KEY, directory) == []
    assert KEY not in output
    assert any(b"wandb-core" in line for line in command_lines)
    assert any(b"train.py" in line for line in command_lines)
    assert not any(KEY.encode() in line for line in command_lines)


# Off


def test_no_wandb_imports_no_wandb(tmp_path):
    code = (
        "import runpy, sys\n"
        "sys.argv = ['train.py', *sys.argv[1:]]\n"
        "runpy.run_path('train.py', run_name='__main__')\n"
        "print('imported:', sorted(n for n in sys.modules if n.split('.')[0] == 'wandb'))"
    )
    flags = [*SMALL, "--no-wandb", "--no-tensorboard", "--log-dir", str(tmp_path)]
    result = subprocess.run(
        [sys.executable, "-c", code, *flags],
        cwd=REPOSITORY / "experiment_base",
        env={**os.environ, "WANDB_API_KEY": KEY},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines()[-1] == "imported: []"
    assert "W&B" not in result.stdout + result.stderr
    directory = tmp_path / "experiment_base" / "run"
    names = {path.name for path in directory.iterdir()} - {"source.diff"}
    assert names == {".lock", "config.json", "metrics.jsonl", "samples.jsonl", "checkpoints"}


# Failing


@pytest.fixture(scope="module")
def misfortunes(tmp_path_factory):
    """Runs with a server that fails them, all at the same time, as each waits for its own."""
    root = tmp_path_factory.mktemp("misfortunes")
    with ExitStack() as servers:
        closed = FakeWandbServer()
        closed.die()
        refusing = servers.enter_context(FakeWandbServer(status=401))
        silent = servers.enter_context(FakeWandbServer())
        silent.keep_waiting()
        dying, killed = FakeWandbServer(), servers.enter_context(FakeWandbServer())
        soon = "--impatient"
        runs = {
            "closed port": start_logging(root / "closed", soon, **account(closed)),
            "refused key": start_logging(root / "refused", soon, **account(refusing)),
            "short key": start_logging(root / "short", soon, **account(closed, key="short")),
            "no answer": start_logging(root / "silent", soon, **account(silent)),
            "dies half way": start_logging(root / "dies", "--pause", **account(dying)),
            "dies with artifacts": start_logging(
                *(root / "artifacts", soon, "--pause", "--saves", "--log-artifacts"),
                **account(dying),
            ),
            "process killed": start_logging(root / "killed", soon, "--pause", **account(killed)),
        }
        runs["dies with artifacts"].reach_half_way()
        runs["dies half way"].reach_half_way()
        dying.die()
        runs["process killed"].reach_half_way()
        kill_service_of(mirror_of(runs["process killed"].process.pid))
        with ThreadPoolExecutor() as pool:
            list(pool.map(LoggingRun.finish, runs.values()))
        silent.answer_again()
    return runs


def mirror_of(pid: int) -> int:
    """The process that shows a run's rows in TensorBoard and W&B."""
    (mirror,) = (
        child.pid
        for child in psutil.Process(pid).children()
        if "common.training.mirror_process" in child.cmdline()
    )
    return mirror


def kill_service_of(pid: int) -> None:
    """What the system does to wandb's own process when memory runs out."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        words = file.read_bytes().split(b"\0")
        if words[0].endswith(b"wandb-core") and str(pid).encode() in words:
            os.kill(int(file.parent.name), signal.SIGKILL)
            return
    raise AssertionError("wandb's own process is not there")


@pytest.mark.parametrize("kind", ["closed port", "refused key", "short key", "no answer"])
def test_a_server_that_cannot_be_used_costs_little_and_no_row(misfortunes, kind):
    run = misfortunes[kind]
    assert run.seconds < MOST_SECONDS
    assert len(run.rows) == 7 * STEPS + 2
    assert rows_of(records(run.directory, "offline-run-*")) == run.rows
    (line,) = [line for line in run.output.splitlines() if "cannot be used" in line]
    assert line.endswith("logging offline")
    assert "W&B initialized: default_project/run (offline)\n" in run.output
    assert run.errors == ""


@pytest.mark.parametrize("kind", ["closed port", "refused key", "short key", "no answer"])
def test_a_failed_attempt_leaves_no_empty_run(misfortunes, kind):
    folders = list((misfortunes[kind].directory / "wandb").glob("*run-*"))
    names = {path.name[:12] for path in folders if path.is_dir() and not path.is_symlink()}
    assert names == {"offline-run-"}


def test_a_server_that_dies_half_way_costs_little_and_no_row(misfortunes):
    run = misfortunes["dies half way"]
    assert "W&B initialized: default_project/run (online)\n" in run.output
    assert run.seconds < MOST_SECONDS
    assert len(run.rows) == 7 * STEPS + 2
    assert rows_of(records(run.directory, "run-*")) == run.rows
    (line,) = [line for line in run.output.splitlines() if "wandb sync" in line]
    (folder,) = (run.directory / "wandb").glob("run-*")
    assert line.endswith(f"wandb sync --no-skip-online {folder}")
    assert run.errors == ""


def test_artifacts_on_the_way_to_a_server_that_dies_cost_little_and_are_kept(misfortunes):
    run = misfortunes["dies with artifacts"]
    assert run.seconds < MOST_SECONDS
    found = records(run.directory, "run-*")
    assert rows_of(found) == run.rows
    assert len(artifacts_of(found)) == 1 + STEPS + 1
    assert run.output.count("wandb sync --no-skip-online") == 1


def test_a_run_survives_the_end_of_wandbs_own_process(misfortunes):
    run = misfortunes["process killed"]
    assert run.seconds < MOST_SECONDS
    assert len(run.rows) == 7 * STEPS + 2
    assert run.output.count("W&B's own process has ended") == 1
    assert run.errors == ""


def test_what_a_dead_server_did_not_take_can_be_synced_later(misfortunes):
    run = misfortunes["dies half way"]
    (folder,) = (run.directory / "wandb").glob("run-*")
    with FakeWandbServer() as server:
        subprocess.run(
            [sys.executable, "-m", "wandb", "sync", "--no-skip-online", str(folder)],
            cwd=folder,
            env={**os.environ, **account(server)},
            capture_output=True,
            check=True,
            timeout=60,
        )
        (name,) = server.rows
    assert rows_on(server, name) == run.rows


def test_a_killed_run_keeps_every_row_older_than_two_seconds(tmp_path):
    run = start_logging(tmp_path, "--endless")
    run.reach_half_way()
    half_way = len(run.rows)
    time.sleep(2)
    # All at once, as each would otherwise notice and write what it still holds.
    mirror = mirror_of(run.process.pid)
    run.process.kill()
    os.kill(mirror, signal.SIGKILL)
    kill_service_of(mirror)
    run.process.communicate()
    assert half_way >= 2 * STEPS
    rows = run.rows
    assert len(rows) > half_way
    assert rows_of(records(run.directory))[:half_way] == rows[:half_way]
    events = EventAccumulator(str(run.directory), size_guidance={"scalars": 0}).Reload()
    for name in ("rollouts/returns_mean", "training_step/loss"):
        kept = [event.value for event in events.Scalars(name)]
        expected = [row[name] for row in rows[:half_way] if name in row]
        known = [value for value in expected if value is not None]
        assert len(kept) >= len(expected)
        assert [value for value in kept if value == value][: len(known)] == pytest.approx(known)


# Environment


def test_wandb_mode_offline_sends_nothing_although_there_is_a_key(tmp_path):
    with FakeWandbServer() as server:
        run = log(tmp_path, WANDB_MODE="offline", **account(server))
        assert server.bodies == []
    assert "(offline)" in run.output
    assert rows_of(records(run.directory)) == run.rows
    assert files_with(KEY, run.directory) == []


def test_wandb_mode_disabled_writes_nothing(tmp_path):
    with FakeWandbServer() as server:
        run = log(tmp_path, WANDB_MODE="disabled", **account(server))
        assert server.bodies == []
    assert "W&B is off: WANDB_MODE=disabled\n" in run.output
    assert len(run.rows) == 7 * STEPS + 2
    assert list(run.directory.rglob("*.wandb")) == []


def test_a_key_in_netrc_is_found(tmp_path):
    with FakeWandbServer() as server:
        netrc = tmp_path / "netrc"
        netrc.write_text(f"machine {server.url.removeprefix('http://')} login user password {KEY}")
        run = log(tmp_path, WANDB_BASE_URL=server.url, NETRC=str(netrc))
        (name,) = server.rows
    assert "(online)" in run.output
    assert rows_on(server, name) == run.rows
    assert files_with(KEY, run.directory) == []
