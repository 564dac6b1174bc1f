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
from common.run import files as files_module
from common.run import record as record_module
from common.run.directory import choose_run, create_run, find_run
from common.run.files import sampled_sha256, sha256_of_all
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
        ({"micro_batch_tokens": 9}, "--micro-batch-tokens 9 instead of 8192: from here on"),
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


@pytest.mark.parametrize(("steps", "rate"), [(20, "higher"), (5, "lower")])
def test_a_schedule_that_now_leads_elsewhere_is_said(configure, begun, steps, rate):
    begun(run_name="one", lr_schedule="cosine", max_steps=10)
    flags = {"run_name": "one", "resume": True, "lr_schedule": "cosine"}
    said: list[str] = []
    choose_run(configure(**flags, max_steps=10), said.append)
    assert len(said) == 1
    choose_run(configure(**flags, max_steps=steps), said.append)
    assert said[2:] == [
        f"--max-steps {steps} instead of 10: the cosine decay now ends there, so that from here on "
        f"the learning rate is {rate} than it was to be"
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


# What a run is made of: names below a directory, and what they hold.
OWN_FILES = {
    "by_module.py": "import helper\ndef mine(completion, task):\n    return 1.0\n",
    "by_file.py": "def other(completion, task):\n    return 1.0\n",
    "objectives.py": "def mine(flags): ...\n",
    "criteria.py": "def mine(completion, task):\n    return 1.0\n",
    "helper.py": "",
    "template.jinja": "{{ messages }}",
    "tasks.jsonl": '{"question": "1+1", "answer": "2"}\n',
    "rubric.yaml": "criteria: [{name: a, function: 'criteria.py:mine'}]\n",
    "library/a.md": "text",
    "library/.index/a.md": "text",
    "model/config.json": "{}",
    "model/model.safetensors": "weights",
    "model/README.md": "text",
}


def write_own(directory):
    """The flags of the files, which are written there."""
    for name, text in OWN_FILES.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    return {
        "library": directory / "library",
        "model_name": f"{directory}/model",
        "data_path": directory / "tasks.jsonl",
        "chat_template": directory / "template.jinja",
        "reward": ("by_module:mine", f"{directory}/by_file.py:other"),
        "rubric_file": directory / "rubric.yaml",
        "objective": f"{directory}/objectives.py:mine",
    }


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Flags that name files: what is imported from them is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return write_own(tmp_path)


def test_the_record_holds_what_the_run_is_made_of(tmp_path, configure, model, own):
    config = configure(run_name="one", **own)
    run = choose_run(config, silent)
    record = create_run(run, config, model)
    assert record == json.loads(run.directory.config_file.read_text())
    of_directories = ("--library", "--model-name")
    assert {k: v for k, v in record["inputs"].items() if k not in of_directories} == {
        "--data-path": digest_of(tmp_path / "tasks.jsonl"),
        "--chat-template": digest_of(tmp_path / "template.jinja"),
        "--reward mine": digest_of(tmp_path / "by_module.py"),
        "--reward mine imports helper.py": digest_of(tmp_path / "helper.py"),
        "--reward other": digest_of(tmp_path / "by_file.py"),
        "--objective mine": digest_of(tmp_path / "objectives.py"),
        "--rubric-file": digest_of(tmp_path / "rubric.yaml"),
        "--rubric-file criteria.py:mine": digest_of(tmp_path / "criteria.py"),
    }
    assert {len(record["inputs"][name]) for name in of_directories} == {64}


def test_what_is_built_in_is_no_own_code(configure, model):
    config = configure(run_name="one")
    record = create_run(choose_run(config, silent), config, model)
    assert record["objective"] == "grpo"
    assert list(record["inputs"]) == ["--data-path", "--model-name"]
    assert record["inputs"]["--data-path"] == digest_of(config.data_file)


def test_a_model_of_the_hub_is_known_by_its_name_alone(configure, begun):
    begun(run_name="one", model_name="some/model")
    choose_run(configure(run_name="one", resume=True, model_name="some/model"), print)
    with pytest.raises(UserError, match=r"^--model-name other/model: the run to resume has some/"):
        choose_run(configure(run_name="one", resume=True, model_name="other/model"), silent)
    with pytest.raises(UserError, match=r"^--model-name tiny: the run to resume has some/model; "):
        choose_run(configure(run_name="one", resume=True), silent)


def test_a_digest_of_several_files_is_of_names_and_content(tmp_path):
    def digest(files):
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        return sha256_of_all(tmp_path, [tmp_path / name for name in files])

    first = digest({"a": "1", "b": "2"})
    assert first == digest({"b": "2", "a": "1"})
    assert len({first, digest({"a": "2", "b": "1"}), digest({"a": "1", "c": "2"})}) == 3


@pytest.mark.parametrize(("position", "seen"), [(0, True), (63, True), (64, False), (-1, True)])
def test_a_large_file_is_known_by_its_size_and_samples_of_it(tmp_path, monkeypatch, position, seen):
    for name, value in {"WHOLE_UP_TO": 999, "SAMPLED_EVERY": 100, "SAMPLE": 64}.items():
        monkeypatch.setattr(files_module, name, value)
    content = bytearray(bytes(range(250)) * 4 + b"xyz")
    (tmp_path / "weights").write_bytes(content)
    digest = sampled_sha256(tmp_path / "weights")
    content[position] ^= 1
    (tmp_path / "weights").write_bytes(content)
    assert (sampled_sha256(tmp_path / "weights") != digest) is seen
    (tmp_path / "weights").write_bytes(content[:-1] + b"zz")
    assert sampled_sha256(tmp_path / "weights") != digest
    (tmp_path / "small").write_bytes(content[:999])
    assert sampled_sha256(tmp_path / "small") == digest_of(tmp_path / "small")


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


CHANGES = [
    ("tasks.jsonl", "--data-path {there}/tasks.jsonl"),
    ("template.jinja", "--chat-template {there}/template.jinja"),
    ("by_file.py", "--reward {there}/by_file.py:other"),
    ("objectives.py", "--objective {there}/objectives.py:mine"),
    ("rubric.yaml", "--rubric-file {there}/rubric.yaml"),
    ("library/a.md", "--library {there}/library"),
    ("criteria.py", "--rubric-file {there}/criteria.py:mine"),
    ("model/model.safetensors", "--model-name {there}/model"),
    ("model/config.json", "--model-name {there}/model"),
]
CHANGES_OF_MODULES = [
    ("by_module.py", "--reward by_module:mine"),
    ("helper.py", "--reward by_module:mine, helper.py"),
]


def refusal(config):
    with pytest.raises(UserError) as caught:
        choose_run(config, silent)
    return str(caught.value)


@pytest.mark.parametrize(("changed", "named"), CHANGES + CHANGES_OF_MODULES)
def test_what_has_changed_is_refused_by_name(tmp_path, configure, begun, own, changed, named):
    begun(run_name="one", **own)
    config = configure(run_name="one", resume=True, **own)
    for name in ("library/.index/a.md", "model/README.md", "model/.lock"):
        (tmp_path / name).write_text("of no meaning")
    choose_run(config, lambda text: None)
    (tmp_path / changed).write_text("# other\n" + (tmp_path / changed).read_text())
    assert refusal(config) == (
        f"{named.format(there=tmp_path)}: does not hold what the run to resume began with; "
        "put that back, or start a new run without --resume"
    )


def moved(tmp_path):
    """The flags of what is somewhere else now, but for modules, which have no path."""
    for name in OWN_FILES:
        if name not in ("by_module.py", "helper.py"):
            (tmp_path / name).unlink()
    return write_own(tmp_path / "moved")


def test_what_has_moved_is_the_same_run_and_stays_where_it_is(
    tmp_path, configure, begun, own, model
):
    begun(run_name="one", **own)
    elsewhere = configure(run_name="one", resume=True, **moved(tmp_path))
    said: list[str] = []
    run = choose_run(elsewhere, said.append)
    assert (run.step, len(said)) == (2, 1)
    record = create_run(run, elsewhere, model)
    assert record["data_path"] == f"{tmp_path}/moved/tasks.jsonl"
    choose_run(elsewhere, said.append)


@pytest.mark.parametrize(("changed", "named"), CHANGES)
def test_what_has_moved_and_changed_is_refused(tmp_path, configure, begun, own, changed, named):
    begun(run_name="one", **own)
    config = configure(run_name="one", resume=True, **moved(tmp_path))
    (tmp_path / "moved" / changed).write_text("# other\n" + OWN_FILES[changed])
    assert refusal(config).startswith(
        f"{named.format(there=tmp_path / 'moved')}: does not hold what the run to resume began"
    )


def test_the_tasks_of_the_experiment_may_be_named(tmp_path, configure, begun):
    begun(run_name="one")
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(configure().data_file.read_bytes())
    limits = {"max_terms": 4, "max_digits": 1}
    choose_run(configure(run_name="one", resume=True, data_path=copy, **limits), print)


@pytest.mark.parametrize(
    "rewards", [("by_module:mine",), ("{here}/by_file.py:other", "by_module:mine"), ()]
)
def test_fewer_functions_and_another_order_are_another_run(
    tmp_path, configure, begun, own, rewards
):
    begun(run_name="one", **own)
    own["reward"] = tuple(path.format(here=tmp_path) for path in rewards)
    said = " ".join(["--reward", *own["reward"]])
    assert refusal(configure(run_name="one", resume=True, **own)) == (
        f"{said}: the run to resume has by_module:mine {tmp_path}/by_file.py:other; "
        "leave the flag out, or start a new run without --resume"
    )


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("tasks.jsonl", "--data-path {there}/tasks.jsonl: cannot be read (No such file or direct"),
        ("rubric.yaml", "--rubric-file {there}/rubric.yaml: cannot be read (No such file or dire"),
        ("model", "--model-name {there}/model: cannot be read (No such file or directory); give"),
        ("library", "--library {there}/library: cannot be read (No such file or directory); giv"),
        ("by_file.py", "--reward {there}/by_file.py:other: no such file; give its path from"),
    ],
)
def test_what_is_lost_is_named(tmp_path, configure, begun, own, lost, named):
    begun(run_name="one", **own)
    (tmp_path / lost).rename(tmp_path / "elsewhere")
    forget = [name for name in sys.modules if name.startswith(str(tmp_path))]
    for name in forget:
        del sys.modules[name]
    config = configure(run_name="one", resume=True, **own)
    assert refusal(config).startswith(named.format(there=tmp_path))


def test_a_run_of_before_that_recorded_less_is_resumed(tmp_path, configure, begun, own):
    run = begun(run_name="one", **own)
    record = json.loads(run.directory.config_file.read_text())
    for name in ("inputs", "objective"):
        del record[name]
    run.directory.config_file.write_text(json.dumps(record))
    own["data_path"].write_text("other\n")
    said: list[str] = []
    resumed = choose_run(configure(run_name="one", resume=True, **own), said.append)
    assert (resumed.step, len(said)) == (2, 1)
    other = configure(run_name="one", resume=True, **{**own, "data_path": tmp_path / "moved"})
    assert refusal(other).startswith(f"--data-path {tmp_path}/moved: the run to resume has ")


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
