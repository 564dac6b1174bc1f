"""`--log-artifacts`: data, checkpoints and the final model in W&B, and none of them without it."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import wandb

from common.logger import wandb_artifacts
from common.logger.wandb_artifacts import Artifacts, ArtifactSources, artifact_name
from common.logger.wandb_media import GrowingTable
from tests.fake_wandb_server import FakeWandbServer
from tests.helpers import complain, load_script
from tests.logger.log_rows import CONTENTS, STEPS
from tests.logger.test_wandb import LoggingRun, account, start_logging
from tests.logger.test_wandb import no_account as no_account
from tests.logger.wandb_records import artifacts_of, records, rows_of

STATE = "training_state.pt"


def contents(name: str, step: int) -> bytes:
    return CONTENTS.format(name=name, step=step).encode()


class Collecting(wandb.Run):
    """A run that only remembers the artifacts that it is given."""

    def __init__(self) -> None:
        self.logged: list[tuple[wandb.Artifact, list[str]]] = []

    def __del__(self) -> None:
        """There is nothing to finish."""

    @property
    def offline(self) -> bool:
        return True

    def log_artifact(self, artifact_or_path, name=None, type=None, aliases=None, tags=None):
        assert isinstance(artifact_or_path, wandb.Artifact)
        assert aliases
        self.logged.append((artifact_or_path, aliases))
        return artifact_or_path

    @property
    def models(self) -> list[tuple[str, list[str]]]:
        return [(one.name, aliases) for one, aliases in self.logged if one.type == "model"]


class Scene:
    """A run's directory, whose checkpoints come and go, and the artifacts that are made of it."""

    def __init__(self, root: Path) -> None:
        self.checkpoints = root / "checkpoints"
        self.data_file = root / "a (small) file.jsonl"
        self.held = root / "held"
        self.run = Collecting()
        self.said: list[str] = []
        root.mkdir(exist_ok=True)
        self.data_file.write_text("{}\n")

    def open(self) -> None:
        sources = ArtifactSources(str(self.data_file), str(self.checkpoints), [STATE])
        self.artifacts = Artifacts(
            self.run, "a+b=ü", sources, self.held, self.said.append, lambda: None
        )

    def save(self, step: int) -> None:
        directory = self.checkpoints / f"step_{step:06d}"
        (directory / "parts").mkdir(parents=True)
        for name in ("model.safetensors", "parts/adapter.json", STATE):
            (directory / name).write_bytes(contents(name, step))

    def prune(self, step: int) -> None:
        shutil.rmtree(self.checkpoints / f"step_{step:06d}")

    def announce(self, step: int) -> None:
        self.row(step, {"checkpoint/saved": 1.0, "checkpoint/step": step})

    def evaluate(self, step: int, returns: float) -> None:
        self.row(step, {"eval/returns_mean": returns, "eval/accuracy": 0.5})

    def train(self, step: int) -> None:
        self.artifacts.follow({"training_step/global_step": 9 * step, "training_step/loss": 1.0})
        self.row(step, {"rollouts/returns_mean": 0.5})

    def row(self, step: int, row: dict[str, float]) -> None:
        self.artifacts.follow({"rollouts/batch_step": step, **row})


@pytest.fixture
def scene(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    scene = Scene(tmp_path / "run")
    scene.open()
    return scene


def test_the_data_file_is_logged_at_once_under_a_name_that_wandb_accepts(scene):
    ((artifact, aliases),) = scene.run.logged
    assert (artifact.type, artifact.name, aliases) == (
        "dataset",
        "a--small--file.jsonl",
        ["latest"],
    )
    assert list(artifact.manifest.entries) == ["a (small) file.jsonl"]
    assert len(artifact_name("é" * 300) + "-checkpoint") <= 128


def test_a_checkpoint_is_logged_with_its_evaluation_and_without_its_training_state(scene):
    scene.announce(1)
    assert scene.run.models == []
    scene.save(1)
    scene.evaluate(1, 0.25)
    assert scene.run.models == [("a-b---checkpoint", ["latest", "step-1", "best"])]
    artifact = scene.run.logged[-1][0]
    assert artifact.metadata == {"step": 1, "eval": {"returns_mean": 0.25, "accuracy": 0.5}}
    files = {name: Path(entry.local_path) for name, entry in artifact.manifest.entries.items()}
    assert set(files) == {"model.safetensors", "parts/adapter.json"}
    for name, path in files.items():
        assert path.read_bytes() == contents(name, 1)


def test_best_is_the_best_of_those_that_were_evaluated(scene):
    for step, returns in [(1, 0.2), (2, 0.5), (3, None), (4, 0.5), (5, float("nan")), (6, 0.6)]:
        scene.train(step)
        scene.announce(step)
        scene.save(step)
        if returns is not None:
            scene.evaluate(step, returns)
    scene.artifacts.close()
    aliases = [aliases for _, aliases in scene.run.models]
    assert [names[1] for names in aliases] == [f"step-{step}" for step in (1, 2, 3, 4, 5, 6)]
    assert ["best" in names for names in aliases] == [True, True, False, False, False, True]


def test_a_checkpoint_that_is_pruned_while_it_waits_is_logged_all_the_same(scene):
    scene.announce(1)
    scene.save(1)
    scene.artifacts.follow({"training_step/global_step": 1, "training_step/loss": 1.0})
    assert scene.run.models == []
    scene.prune(1)
    scene.train(2)
    ((artifact, aliases),) = scene.run.logged[1:]
    assert aliases == ["latest", "step-1"]
    entry = artifact.manifest.entries["model.safetensors"]
    assert Path(entry.local_path).read_bytes() == contents("model.safetensors", 1)
    assert scene.said == []


def test_links_take_no_room_and_where_there_are_none_it_is_copied(scene, monkeypatch):
    scene.save(1)
    scene.train(1)
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links")))
    scene.save(2)
    scene.train(2)
    linked, copied = (scene.held / f"step_00000{step}/model.safetensors" for step in (1, 2))
    assert linked.samefile(scene.checkpoints / "step_000001/model.safetensors")
    assert not copied.samefile(scene.checkpoints / "step_000002/model.safetensors")
    assert copied.read_bytes() == contents("model.safetensors", 2)


def test_of_the_checkpoints_that_are_gone_one_is_told(tmp_path, scene):
    """As when a run is resumed, whose rows are all logged anew."""
    again = Scene(tmp_path / "again")
    for step in (3, 4):
        again.save(step)
    again.open()
    for step in (1, 2, 3, 4):
        again.train(step)
        again.announce(step)
        again.evaluate(step, 1 / step)
    assert again.run.models == [
        ("a-b---checkpoint", ["latest", "step-3", "best"]),
        ("a-b---checkpoint", ["latest", "step-4"]),
    ]
    assert again.said == ["no W&B artifact of the checkpoint of step 1 (see --keep-checkpoints)"]


def test_one_that_is_pruned_under_its_hands_is_gone_too(scene, monkeypatch):
    def vanish(file: Path, target: Path) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(wandb_artifacts, "_link_or_copy", vanish)
    scene.save(1)
    scene.train(1)
    scene.artifacts.close()
    assert scene.run.models == []
    assert scene.said == ["no W&B artifact of the checkpoint of step 1 (No such file or directory)"]


def test_the_checkpoint_of_a_run_that_is_stopped_is_logged_at_the_end(scene):
    scene.train(1)
    scene.save(1)
    scene.artifacts.close()
    assert scene.run.models == [("a-b---checkpoint", ["latest", "step-1"])]


def test_the_final_model_has_its_metrics(scene):
    scene.evaluate(0, 0.1)
    scene.train(1)
    scene.evaluate(1, 0.75)
    scene.save(1)
    final = {"final/a_mean": 0.5, "final/b_mean": float("nan"), "final_reward": 0.75}
    scene.row(1, {**final, "checkpoint/final_saved": 1.0})
    assert scene.run.models == [
        ("a-b---checkpoint", ["latest", "step-1", "best"]),
        ("a-b---final", ["latest", "step-1"]),
    ]
    evaluation = {"returns_mean": 0.75, "accuracy": 0.5}
    expected = {"step": 1, "final": {"a_mean": 0.5}, "eval": evaluation}
    assert scene.run.logged[-1][0].metadata == expected


def test_it_needs_wandb():
    script = load_script("experiment_base")
    code, line = complain(script, ["--log-artifacts", "--no-wandb"])
    assert code == 2
    assert line.count("\n") == 1
    assert "--log-artifacts" in line
    assert "--no-wandb" in line


def test_a_growing_table_has_fewer_parts_than_wandb_shows_and_every_row():
    """Two rows from each of 10,000 logs."""
    table, parts = GrowingTable(["step", "text"]), []
    for step in range(10_000):
        table.add([[step, "text"]] * 2, step)
        if table.is_due:
            parts.append(table.waiting)
            table.take()
    assert parts[:10] == [2] * 10
    assert 50 < len(parts) < 100
    assert sum(parts) + table.waiting == 20_000
    assert table.waiting < 0.1 * sum(parts)


# Through a run's mirror


def expected_models() -> list[tuple[str, list[str], int]]:
    """Name, aliases and step of what `log_rows --saves` saves: its first two get better."""
    checkpoints = [
        ("run-checkpoint", ["latest", f"step-{step}", *["best"][: step < 3]], step)
        for step in range(1, STEPS + 1)
    ]
    return [*checkpoints, ("run-final", ["latest", f"step-{STEPS}"], STEPS)]


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    path.write_text('{"question": "1+1", "answer": "2"}\n')
    return path


# In place of the longer time that a run waits for its mirror; the uploads of the second half of the
# rows take longer, as each checkpoint waits for the one before it.
PATIENCE = 4.0
UPLOAD_SECONDS = 1.5


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data_file):
    """Offline, online with slow uploads, and online without the flag, all at the same time."""
    root = tmp_path_factory.mktemp("runs")
    data = ("--saves", "--data-path", str(data_file))
    with FakeWandbServer() as slow, FakeWandbServer() as other:
        slow.upload_seconds = UPLOAD_SECONDS
        patience = ("--finish-seconds", str(PATIENCE), "--pause")
        started = {
            "offline": start_logging(root / "offline", *data, "--log-artifacts"),
            "online": start_logging(
                root / "online", *data, *patience, "--log-artifacts", **account(slow)
            ),
            "without": start_logging(root / "without", *data, **account(other)),
        }
        # However long W&B takes to start on a busy machine, the patience is for what comes after.
        started["online"].reach_half_way()
        with ThreadPoolExecutor() as pool:
            list(pool.map(LoggingRun.finish, started.values()))
    return started, {"online": slow, "without": other}


@pytest.fixture(scope="module")
def offline(runs):
    return runs[0]["offline"]


@pytest.mark.slow
def test_an_offline_run_has_the_artifacts_and_the_table(offline):
    found = records(offline.directory)
    dataset, *models = artifacts_of(found)
    assert (dataset["name"], dataset["type"], dataset["aliases"]) == (
        "sums.jsonl",
        "dataset",
        ["latest"],
    )
    expected = [(name, aliases) for name, aliases, _ in expected_models()]
    assert [(model["name"], model["aliases"]) for model in models] == expected
    for model in models:
        files = {entry["path"] for entry in model["manifest"]["contents"]}
        assert files == {"model.safetensors", "tokenizer.json"}
    assert json.loads(models[-1]["metadata"])["final"] == {"a_mean": 0.5}
    assert rows_of(found) == offline.rows
    tables = [record["artifact"] for record in found if record["type"] == "artifact"]
    parts = [table for table in tables if table["type"] == "wandb-run-incremental-table"]
    assert len(parts) == STEPS


def check_arrived(server: FakeWandbServer, data_file: Path) -> None:
    (dataset,) = server.artifacts_of("dataset")
    assert dataset["files"] == {"sums.jsonl": data_file.read_bytes()}
    models = server.artifacts_of("model")
    # Those of one name are in order; two names are uploaded at the same time.
    for name in ("run-checkpoint", "run-final"):
        found = [one for one in models if one["name"] == name]
        expected = [one for one in expected_models() if one[0] == name]
        assert [one["aliases"] for one in found] == [aliases for _, aliases, _ in expected]
        for one, (_, _, step) in zip(found, expected, strict=True):
            files = {file: contents(file, step) for file in ("model.safetensors", "tokenizer.json")}
            assert one["files"] == files
            assert one["metadata"]["step"] == step
            digests = {file: entry["digest"] for file, entry in one["manifest"].items()}
            assert digests == {file: md5(body) for file, body in files.items()}
    assert len(server.artifacts_of("wandb-run-incremental-table")) == STEPS
    assert not any(STATE.encode() in body for path, body in server.bodies if "storage" in path)


def md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body).digest()).decode()


@pytest.mark.slow
def test_a_sync_delivers_them_byte_for_byte_after_the_checkpoints_are_pruned(offline, data_file):
    shutil.rmtree(offline.directory / "checkpoints")
    (folder,) = (offline.directory / "wandb").glob("offline-run-*")
    with FakeWandbServer() as server:
        subprocess.run(
            [sys.executable, "-m", "wandb", "sync", str(folder)],
            cwd=folder,
            env={**os.environ, **account(server)},
            capture_output=True,
            check=True,
            timeout=60,
        )
        check_arrived(server, data_file)


@pytest.mark.slow
def test_an_online_run_delivers_them_and_waits_until_they_are_there(runs, data_file):
    run, server = runs[0]["online"], runs[1]["online"]
    check_arrived(server, data_file)
    assert "W&B: uploading artifacts\n" in run.output
    assert "may lack rows" not in run.output
    assert run.seconds_to_finish > PATIENCE
    assert not (run.directory / "wandb" / "artifacts").exists()


@pytest.mark.slow
def test_without_the_flag_no_weights_and_no_data_leave_the_machine(runs, data_file):
    server = runs[1]["without"]
    sent = b"".join(body for _, body in server.bodies)
    assert server.artifacts_of("model") == server.artifacts_of("dataset") == []
    assert b"generations" in sent
    assert b"the bytes of" not in sent
    assert data_file.read_bytes().strip() not in sent
    assert b"the bytes of" in b"".join(body for _, body in runs[1]["online"].bodies)
