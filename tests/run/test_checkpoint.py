"""Checkpoints are whole or not there, whatever happens while they are written."""

import json
import random
import shutil

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.run import checkpoint as module
from common.run.checkpoint import (
    Checkpoints,
    find_damage,
    newest_first,
    random_state,
    restore_random_state,
)
from tests.helpers import random_model


@pytest.fixture(scope="module")
def model():
    return random_model(torch.float32, vocab_size=32)


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", keep=0)


def names(tmp_path):
    return sorted(path.name for path in (tmp_path / "checkpoints").iterdir())


def silent(text):
    raise AssertionError(f"said {text}")


def test_the_newest_is_the_one_with_the_largest_number(tmp_path, model, tokenizer, checkpoints):
    """Seven digits sort before six as text."""
    for step in (999_999, 1_000_000):
        checkpoints.save(step, model, tokenizer, {"note": f"at {step}"})
    (tmp_path / "checkpoints" / "step_by_step").mkdir()
    assert [path.name for path in newest_first(tmp_path / "checkpoints")] == [
        "step_1000000",
        "step_999999",
    ]
    newest = checkpoints.newest_whole(silent)
    assert newest is not None
    assert newest.step == 1_000_000
    assert newest.state["note"] == "at 1000000"


def test_all_but_the_newest_are_removed(tmp_path, model, tokenizer):
    keeping = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in range(4):
        keeping.save(step, model, tokenizer, {})
    assert names(tmp_path) == ["latest", "step_000002", "step_000003"]


class Killed(BaseException):
    """Stands for a kill: nothing of this project catches it."""


@pytest.mark.parametrize(
    ("where", "newest"),
    [
        ("common.run.checkpoint._save_state", 1),
        ("common.run.checkpoint._write_manifest", 1),
        ("common.run.checkpoint.sync", 1),
        ("pathlib.Path.rename", 1),
        ("common.run.checkpoint.replace_text", 2),
        ("common.run.checkpoint.shutil.rmtree", 2),
    ],
)
def test_a_kill_at_any_point_of_saving(tmp_path, model, tokenizer, monkeypatch, where, newest):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(1, model, tokenizer, {})

    def kill(*arguments, **options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(where, kill)
        with pytest.raises(Killed):
            checkpoints.save(2, model, tokenizer, {})
    found = Checkpoints(tmp_path / "checkpoints", keep=1).newest_whole(silent)
    assert found is not None
    assert found.step == newest
    assert (tmp_path / "checkpoints" / "latest").read_text() == f"step_00000{newest}\n"
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_saving_that_fails_leaves_the_one_before_and_says_why(
    tmp_path, model, tokenizer, checkpoints, monkeypatch
):
    checkpoints.save(1, model, tokenizer, {})

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_write_manifest", full)
    with pytest.raises(UserError) as error:
        checkpoints.save(2, model, tokenizer, {})
    complaint = str(error.value)
    assert "step_000002: cannot write the checkpoint (No space left on device)" in complaint
    assert "step_000001 is whole" in complaint
    assert names(tmp_path) == ["latest", "step_000001"]


def test_what_is_no_fault_of_the_disk_is_not_blamed_on_it(model, tokenizer, checkpoints):
    with pytest.raises(Exception, match="pickle"):
        checkpoints.save(1, model, tokenizer, {"note": lambda: None})


def every_file(path):
    return sorted(file for file in path.rglob("*") if file.is_file())


def test_every_byte_counts(tmp_path, model, tokenizer, checkpoints):
    checkpoints.save(1, model, tokenizer, {})
    whole = tmp_path / "checkpoints" / "step_000001"
    assert find_damage(whole) is None
    assert len(every_file(whole)) >= 6
    for file in every_file(whole):
        damaged = tmp_path / "damaged"
        for change in (flip_first, flip_last, drop_last, remove):
            shutil.copytree(whole, damaged)
            change(damaged / file.relative_to(whole))
            damage = find_damage(damaged)
            assert damage is not None, f"{change.__name__} {file.name}"
            assert file.name in damage or file.name == "manifest.json"
            shutil.rmtree(damaged)


def flip_first(file):
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)


def flip_last(file):
    """The last byte but one: the manifest ends in white space."""
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)


def drop_last(file):
    file.write_bytes(file.read_bytes()[:-2])


def remove(file):
    file.unlink()


def test_a_manifest_with_a_changed_name_is_damage(tmp_path, model, tokenizer, checkpoints):
    checkpoints.save(1, model, tokenizer, {})
    manifest = tmp_path / "checkpoints" / "step_000001" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"size"', '"rize"', 1))
    said: list[str] = []
    assert checkpoints.newest_whole(said.append) is None
    assert len(said) == 1
    assert names(tmp_path) == ["damaged_step_000001", "latest"]


def test_files_in_folders_are_part_of_it(tmp_path, model, tokenizer, checkpoints):
    """A tokenizer with several chat templates keeps them in a folder."""
    tokenizer = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    tokenizer.chat_template = {"default": "a", "tool_use": "b"}
    checkpoints.save(1, model, tokenizer, {})
    (inner,) = (tmp_path / "checkpoints").glob("step_000001/*/*")
    assert find_damage(inner.parents[1]) is None
    inner.write_text("c")
    assert inner.name in str(find_damage(inner.parents[1]))


def draw():
    return random.random(), np.random.random(), torch.rand(3).tolist(), torch.randn(3).tolist()


def test_global_random_numbers_go_on_where_they_were(tmp_path, model, tokenizer, checkpoints):
    checkpoints.save(1, model, tokenizer, {"random": random_state()})
    expected = draw()
    assert draw() != expected
    found = checkpoints.newest_whole(silent)
    assert found is not None
    restore_random_state(found.state["random"])
    assert draw() == expected


def test_the_manifest_lists_what_is_there(tmp_path, model, tokenizer, checkpoints):
    checkpoints.save(1, model, tokenizer, {})
    path = tmp_path / "checkpoints" / "step_000001"
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest) == {file.name for file in every_file(path)} - {"manifest.json"}
