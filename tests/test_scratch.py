"""Weights pass through directories that are there as long as their process."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from common import scratch
from common.errors import UserError
from common.scratch import passing_weights, scratch_directory

HOLDER = """
import sys
from pathlib import Path

from common.scratch import scratch_directory

with scratch_directory(Path(sys.argv[1]), 0) as own:
    print(own, flush=True)
    sys.stdin.read()
"""


def test_those_of_dead_processes_are_removed_and_those_of_others_stay(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    other = Path(holder.stdout.readline().strip())
    with scratch_directory(tmp_path, 0) as own:
        assert other.is_dir()
        assert own.is_dir()
        holder.kill()
        holder.wait()
        assert other.is_dir()
        with scratch_directory(tmp_path, 0):
            assert not other.exists()
            assert own.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_one_that_is_being_made_stays_and_one_that_never_was_is_removed(tmp_path):
    new, old = tmp_path / "re-grpo-new", tmp_path / "re-grpo-old"
    for directory in (new, old):
        directory.mkdir()
    long_ago = time.time() - 1000
    os.utime(old, (long_ago, long_ago))
    with scratch_directory(tmp_path, 0):
        assert new.exists()
        assert not old.exists()


def test_what_has_no_room_in_memory_goes_to_the_disk(monkeypatch, tmp_path):
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr(scratch, "_MEMORY", memory)
    with scratch_directory(None, 0) as own:
        assert own.parent == memory
    with scratch_directory(None, 10**15) as own:
        assert own.parent == Path(tempfile.gettempdir())


def test_a_place_that_cannot_hold_weights_is_named(tmp_path):
    missing = tmp_path / "missing"
    with (
        pytest.raises(UserError, match=r"missing: cannot hold weights .*--engine-directory"),
        scratch_directory(missing, 0),
    ):
        pass
    with (
        pytest.raises(UserError, match=r"No space left on device.*--engine-directory"),
        passing_weights(tmp_path),
    ):
        raise OSError(28, os.strerror(28))
