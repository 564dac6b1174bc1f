"""How a run's directory is found, refused, begun and cut."""

import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import pytest
import torch

from common.errors import UserError
from common.flags.markers import CONTENT
from common.flags.train_config import TrainConfig, resolve_defaults
from common.run import directory as directory_module
from common.run import record as record_module
from common.run.directory import choose_run, create_run, find_run
from common.run.files import sha256_of_all
from tests.helpers import random_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    experiment: ClassVar[str] = "test"
    default_wandb_project: ClassVar[str] = "test"

    library: Annotated[Path | None, CONTENT] = None
    """Directory of what is read."""


@pytest.fixture(scope="module")
def model():
    return random_model(torch.float32, vocab_size=32)


@pytest.fixture
def configure(tmp_path):
    def make(**flags):
        return resolve_defaults(Config(log_dir=tmp_path / "runs", **flags), bundled=True)

    return make


def silent(text):
    raise AssertionError(f"said {text}")


ROW = b'{"a": 1}\n'


@pytest.fixture
def begun(configure, model, tokenizer):
    """Begin a run that has a checkpoint after its second row, and a third row."""

    def begin(**flags):
        config = configure(**flags)
        run = choose_run(config, silent)
        create_run(run, config, model)
        run.directory.metrics_file.write_bytes(2 * ROW)
        run.directory.samples_file.write_bytes(ROW)
        run.directory.snapshots_file.write_bytes(ROW)
        threads = torch.get_num_threads()
        state = {"lengths": run.directory.lengths(), "num_threads": threads, "random": [{}]}
        run.checkpoints.save(2, model, tokenizer, state)
        run.directory.metrics_file.write_bytes(3 * ROW)
        return run

    return begin


def test_nothing_is_there_before_the_run_starts(tmp_path, configure, model):
    config = configure(run_name="one", checkpoint_path=tmp_path / "elsewhere")
    run = choose_run(config, silent)
    assert list(tmp_path.iterdir()) == []
    create_run(run, config, model)
    assert run.directory.config_file.is_file()
    assert (tmp_path / "elsewhere" / "test" / "one").is_dir()


def test_a_name_is_taken_by_a_run_or_by_its_checkpoints_elsewhere(tmp_path, configure, model):
    config = configure(run_name="one", checkpoint_path=tmp_path / "elsewhere")
    create_run(choose_run(config, silent), config, model)
    with pytest.raises(UserError, match=r"--run-name one: .* exists; .*--resume"):
        choose_run(config, silent)
    with pytest.raises(UserError, match=r"--run-name one: .*elsewhere"):
        choose_run(dataclasses.replace(config, log_dir=tmp_path / "other"), silent)


def test_two_runs_in_one_second_have_two_names(configure, model, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda _: "now")
    runs = []
    for _ in range(3):
        config = configure(seed=3)
        runs.append(choose_run(config, silent))
        create_run(runs[-1], config, model)
    assert [run.directory.path.name for run in runs] == ["now-seed3", "now-seed3-2", "now-seed3-3"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\\b", "a b", "x" * 101])
def test_a_name_is_one_directory(name):
    with pytest.raises(UserError, match="--run-name"):
        Config(run_name=name)


def test_checkpoints_that_could_not_be_written_are_refused_first(tmp_path, configure):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--checkpoint-path .*file/x: cannot write"):
        choose_run(configure(checkpoint_path=tmp_path / "file" / "x"), silent)
    assert not (tmp_path / "runs").exists()


def test_resuming_cuts_the_rows_after_the_checkpoint_once_it_starts(configure, begun, model):
    run = begun(run_name="one")
    config = configure(run_name="one", resume=True)
    said: list[str] = []
    resumed = choose_run(config, said.append)
    assert resumed.step == 2
    assert said == [f"resuming {run.directory.path} after step 2"]
    assert run.directory.metrics_file.read_bytes() == 3 * ROW
    create_run(resumed, config, model)
    assert run.directory.metrics_file.read_bytes() == 2 * ROW
    assert run.directory.samples_file.read_bytes() == ROW


def test_without_a_checkpoint_it_begins_anew(configure, model):
    config = configure(run_name="one")
    run = choose_run(config, silent)
    create_run(run, config, model)
    run.directory.metrics_file.write_bytes(ROW)
    said: list[str] = []
    config = dataclasses.replace(config, resume=True)
    resumed = choose_run(config, said.append)
    assert (resumed.step, resumed.weights) == (0, None)
    assert said == [f"{run.directory.path} has no checkpoint yet: starting it anew"]
    create_run(resumed, config, model)
    assert run.directory.metrics_file.read_bytes() == b""


def test_lost_rows_are_not_made_up(configure, begun, model):
    run = begun(run_name="one")
    run.directory.metrics_file.write_bytes(ROW)
    config = configure(run_name="one", resume=True)
    with pytest.raises(UserError, match=r"metrics\.jsonl has lost rows \(9 bytes, 18"):
        create_run(choose_run(config, lambda text: None), config, model)
    assert run.directory.metrics_file.read_bytes() == ROW


def test_snapshots_may_be_lost_and_later_ones_are_cut(configure, begun, model):
    run = begun(run_name="one")
    run.directory.snapshots_file.unlink()
    config = configure(run_name="one", resume=True)
    create_run(choose_run(config, lambda text: None), config, model)
    assert not run.directory.snapshots_file.exists()

    run = begun(run_name="two")
    run.directory.snapshots_file.write_bytes(2 * ROW)
    config = configure(run_name="two", resume=True)
    create_run(choose_run(config, lambda text: None), config, model)
    assert run.directory.snapshots_file.read_bytes() == ROW


def test_without_a_name_the_run_begun_last_is_resumed(configure, begun):
    for name in ("late", "early"):
        run = begun(run_name=name)
        os.utime(run.directory.config_file, (1e9, 1e9 + (name == "late")))
    assert find_run(configure(resume=True)).path.name == "late"


def test_a_run_cannot_be_resumed_to_an_earlier_step(configure, begun):
    begun(run_name="one")
    with pytest.raises(UserError, match="--max-steps 1: the run to resume has done 2"):
        choose_run(configure(run_name="one", resume=True, max_steps=1), silent)


def test_checkpoints_that_are_elsewhere_are_not_taken_for_none(tmp_path, configure, begun):
    begun(run_name="one")
    config = configure(run_name="one", resume=True, checkpoint_path=tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"--checkpoint-path .*leave the flag out"):
        choose_run(config, silent)


@pytest.mark.parametrize(
    "flags",
    [{"lr": 0.5}, {"seed": 2}, {"model_name": "other"}, {"reward_weights": "answer_check=2"}],
)
def test_flags_that_change_numbers_are_refused(configure, begun, flags):
    begun(run_name="one")
    ((name, value),) = flags.items()
    flag = f"--{name.replace('_', '-')} {value}: the run to resume has"
    with pytest.raises(UserError, match=flag):
        choose_run(configure(run_name="one", resume=True, **flags), silent)


def test_flags_that_change_no_number_are_taken_in_silence(configure, begun):
    begun(run_name="one")
    flags = {"eval_interval": 3, "checkpoint_interval": 7, "wandb": False, "max_steps": 99}
    said: list[str] = []
    choose_run(configure(run_name="one", resume=True, **flags), said.append)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("flags", "notice"),
    [
        ({"micro_batch_size": 2}, "--micro-batch-size 2 instead of 64: from here on the numbers"),
        ({"device": "cpu"}, "--device cpu instead of auto"),
        ({"attn": "eager"}, "--attn eager instead of None"),
        (
            {"gradient_checkpointing": True},
            "--gradient-checkpointing instead of --no-gradient-checkpointing: ",
        ),
    ],
)
def test_flags_that_change_rounding_are_said(configure, begun, flags, notice):
    begun(run_name="one")
    said: list[str] = []
    choose_run(configure(run_name="one", resume=True, **flags), said.append)
    assert len(said) == 2
    assert said[1].startswith(notice)


def test_another_number_of_threads_is_said(configure, begun):
    begun(run_name="one")
    threads = torch.get_num_threads()
    said: list[str] = []
    torch.set_num_threads(threads + 1)
    try:
        choose_run(configure(run_name="one", resume=True), said.append)
    finally:
        torch.set_num_threads(threads)
    assert said[1].startswith(f"{threads + 1} threads instead of {threads}: ")


def test_a_schedule_that_now_leads_elsewhere_is_said(configure, begun):
    begun(run_name="one", lr_schedule="cosine", max_steps=10)
    said: list[str] = []
    choose_run(
        configure(run_name="one", resume=True, lr_schedule="cosine", max_steps=20), said.append
    )
    assert said[1:] == [
        "--max-steps 20 instead of 10: from here on the cosine schedule leads there"
    ]


def test_the_record_holds_every_flag_and_no_key(configure, model, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    config = configure(run_name="one")
    run = choose_run(config, silent)
    create_run(run, config, model)
    text = run.directory.config_file.read_text()
    record = json.loads(text)
    assert {field.name for field in dataclasses.fields(config)} <= set(record)
    assert record["lr"] == 4e-4
    assert record["num_threads"] == torch.get_num_threads()
    assert "k" * 40 not in text


def digest_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A data file, own rewards, an own objective, and a rubric that names a function: their flags.

    Python finds a module by its name for as long as it runs, so each test has another one.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    for name in ("by_module", "by_file", "objectives", "criteria"):
        (tmp_path / f"{name}.py").write_text("def mine(completion, task):\n    return 1.0\n")
    (tmp_path / "tasks.jsonl").write_text('{"question": "1+1", "answer": "2"}\n')
    rubric = "criteria: [{name: a, function: 'criteria.py:mine'}]\n"
    (tmp_path / "rubric.yaml").write_text(rubric)
    for name in ("a.md", ".index/a.md"):
        (tmp_path / "library" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "library" / name).write_text("text")
    return {
        "library": tmp_path / "library",
        "data_path": tmp_path / "tasks.jsonl",
        "reward": ("by_module:mine", f"{tmp_path}/by_file.py:mine"),
        "rubric_file": tmp_path / "rubric.yaml",
        "objective": f"{tmp_path}/objectives.py:mine",
    }


def test_the_record_holds_what_the_run_is_made_of(tmp_path, configure, model, own):
    config = configure(run_name="one", **own)
    run = choose_run(config, silent)
    record = create_run(run, config, model)
    assert record == json.loads(run.directory.config_file.read_text())
    assert record["data_digest"] == digest_of(tmp_path / "tasks.jsonl")
    assert record["own_code"] == {
        "--reward by_module:mine": digest_of(tmp_path / "by_module.py"),
        f"--reward {tmp_path}/by_file.py:mine": digest_of(tmp_path / "by_file.py"),
        f"--objective {tmp_path}/objectives.py:mine": digest_of(tmp_path / "objectives.py"),
        f"--rubric-file {tmp_path}/rubric.yaml": digest_of(tmp_path / "rubric.yaml"),
        f"--rubric-file {tmp_path}/criteria.py:mine": digest_of(tmp_path / "criteria.py"),
    }


def test_what_is_built_in_is_not_own_code(configure, model):
    config = configure(run_name="one")
    record = create_run(choose_run(config, silent), config, model)
    assert (record["objective"], record["own_code"]) == ("grpo", {})
    assert record["data_digest"] == digest_of(config.data_file)
    assert record["content"] == {}


def test_a_digest_of_several_files_is_of_names_and_content(tmp_path):
    def digest(files):
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        return sha256_of_all(tmp_path, [tmp_path / name for name in files])

    first = digest({"a": "1", "b": "2"})
    assert first == digest({"b": "2", "a": "1"})
    assert len({first, digest({"a": "2", "b": "1"}), digest({"a": "1", "c": "2"})}) == 3


def test_code_that_is_not_committed_has_another_digest(configure, model, monkeypatch, tmp_path):
    """So that two runs with a hand on the code between them are no seeds of one configuration."""
    monkeypatch.setattr(record_module, "REPOSITORY", tmp_path)
    (tmp_path / "common").mkdir()
    (tmp_path / "test").mkdir()
    digests = []
    for number, file in enumerate(("common/a.py", "test/train.py", "test/README.md")):
        (tmp_path / file).write_text(str(number))
        config = configure(run_name=str(number))
        digests.append(create_run(choose_run(config, silent), config, model)["source_digest"])
    assert digests[0] != digests[1] == digests[2]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ("tasks.jsonl", "--data-path {tmp_path}/tasks.jsonl"),
        ("by_module.py", "--reward by_module:mine"),
        ("by_file.py", "--reward {tmp_path}/by_file.py:mine"),
        ("objectives.py", "--objective {tmp_path}/objectives.py:mine"),
        ("rubric.yaml", "--rubric-file {tmp_path}/rubric.yaml"),
        ("library/a.md", "--library {tmp_path}/library"),
        ("criteria.py", "--rubric-file {tmp_path}/criteria.py:mine"),
    ],
)
def test_what_has_changed_under_its_name_is_refused(
    tmp_path, configure, begun, own, changed, named
):
    begun(run_name="one", **own)
    config = configure(run_name="one", resume=True, **own)
    (tmp_path / "library/.index/a.md").write_text("hidden, and of no meaning")
    choose_run(config, lambda text: None)
    (tmp_path / changed).write_text("# other\n" + (tmp_path / changed).read_text())
    with pytest.raises(UserError) as caught:
        choose_run(config, silent)
    assert str(caught.value) == (
        f"{named.format(tmp_path=tmp_path)}: has changed since the run to resume began; "
        "put it back, or start a new run without --resume"
    )


@pytest.mark.parametrize(
    ("lost", "complaint"),
    [
        ("tasks.jsonl", r"^--data-path .*/tasks\.jsonl: cannot be read \(No such file"),
        ("rubric.yaml", r"^--rubric-file .*/rubric\.yaml: cannot be read \(No such file"),
    ],
)
def test_what_is_lost_is_named(tmp_path, configure, begun, own, lost, complaint):
    begun(run_name="one", **own)
    (tmp_path / lost).unlink()
    with pytest.raises(UserError, match=complaint):
        choose_run(configure(run_name="one", resume=True, **own), silent)


def test_a_run_of_before_that_recorded_less_is_resumed(configure, begun, own):
    run = begun(run_name="one", **own)
    record = json.loads(run.directory.config_file.read_text())
    for name in ("data_digest", "own_code", "objective"):
        del record[name]
    run.directory.config_file.write_text(json.dumps(record))
    own["data_path"].write_text("other\n")
    said: list[str] = []
    resumed = choose_run(configure(run_name="one", resume=True, **own), said.append)
    assert (resumed.step, len(said)) == (2, 1)


def test_the_patch_is_in_the_directory_and_a_later_one_beside_it(
    tmp_path, configure, begun, model, monkeypatch
):
    """The run's own files are no sources, wherever they are."""
    asked: list[Sequence[Path]] = []

    def state(repository, passed_over):
        asked.append(passed_over)
        return "c" * 40, f"patch {len(asked)}".encode()

    monkeypatch.setattr(directory_module, "source_state", state)
    elsewhere = {"run_name": "one", "checkpoint_path": tmp_path / "elsewhere"}
    run = begun(**elsewhere)
    config = configure(resume=True, **elsewhere)
    record = create_run(choose_run(config, lambda text: None), config, model)
    assert record["git_commit"] == "c" * 40
    assert (run.directory.path / "source.diff").read_bytes() == b"patch 1"
    assert (run.directory.path / "source_from_step_2.diff").read_bytes() == b"patch 2"
    assert asked == 2 * [(tmp_path / "runs", tmp_path / "elsewhere")]
