"""The patch of a run, with a real git repository."""

import subprocess

import pytest

from common.run import source
from common.run.source import source_state

CONFIGURATION = ("-c", "user.name=n", "-c", "user.email=e@example.org")


@pytest.fixture
def git(tmp_path):
    def run(*arguments, at=tmp_path / "origin", **options):
        command = ["git", "-C", str(at), *CONFIGURATION, *arguments]
        return subprocess.run(command, check=True, capture_output=True, **options).stdout

    return run


@pytest.fixture
def origin(tmp_path, git):
    """A repository with a commit, and changes of every kind since."""
    path = tmp_path / "origin"
    path.mkdir()
    git("init", "-q")
    (path / ".gitignore").write_text("*.ignored\n")
    (path / "changed.py").write_text("one = 1\n")
    (path / "gone.py").write_text("gone = 1\n")
    (path / "moved.py").write_text("moved = 1\n" * 9)
    (path / "weights.bin").write_bytes(b"\0\1\2")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    (path / "changed.py").write_bytes("one = 'Grüße'\n".encode("latin-1"))
    (path / "gone.py").unlink()
    (path / "moved.py").rename(path / "arrived.py")
    (path / "staged.py").write_text("staged = 1\n")
    git("add", "staged.py")
    (path / "weights.bin").write_bytes(b"\0\3")
    (path / "secret.ignored").write_text("ignored\n")
    (path / "new dir").mkdir()
    (path / "new dir" / "[x]*:ü.py").write_text("no_newline = 1")
    (path / "x.py").write_text("x = 1\n")
    (path / "empty.py").touch()
    (path / "tool.sh").write_text("#!/bin/sh\n")
    (path / "tool.sh").chmod(0o755)
    (path / "picture.png").write_bytes(b"\x89PNG\0")
    return path


def contents(path):
    return {
        file.relative_to(path).as_posix(): (file.read_bytes(), file.stat().st_mode)
        for file in path.rglob("*")
        if file.is_file() and ".git" not in file.parts
    }


def test_applied_to_the_commit_it_gives_the_sources_that_ran(tmp_path, git, origin):
    index = (origin / ".git" / "index").read_bytes()
    objects = set((origin / ".git" / "objects").rglob("*"))
    commit, patch = source_state(origin, [])
    assert commit == git("rev-parse", "HEAD").decode().strip()

    git("clone", "-q", str(origin), str(tmp_path / "clone"))
    git("checkout", "-q", commit, at=tmp_path / "clone")
    git("apply", at=tmp_path / "clone", input=patch)
    expected = contents(origin)
    for left_out in ("secret.ignored", "picture.png", "weights.bin"):
        del expected[left_out]
    found = contents(tmp_path / "clone")
    assert found.pop("weights.bin")[0] == b"\0\1\2"
    assert found == expected

    assert patch.splitlines()[:3] == [
        b"left out, binary or too large: 'picture.png'",
        b"left out, binary or too large: 'weights.bin'",
        b"diff --git a/arrived.py b/arrived.py",
    ]
    # The user's repository is as it was.
    assert (origin / ".git" / "index").read_bytes() == index
    assert set((origin / ".git" / "objects").rglob("*")) == objects


def test_the_users_configuration_changes_nothing(origin, git):
    plain = source_state(origin, [])
    for name, value in (
        *(("color.ui", "always"), ("diff.noprefix", "true"), ("diff.renames", "copies")),
        *(("diff.external", "false"), ("core.quotePath", "true")),
    ):
        git("config", name, value)
    assert source_state(origin, []) == plain


def test_untracked_text_is_bounded_and_small_files_come_first(origin, monkeypatch):
    for name, size in (("a.jsonl", 900), ("b.py", 200), ("c.py", 300)):
        (origin / name).write_text("x" * (size - 1) + "\n")
    monkeypatch.setattr(source, "MOST_UNTRACKED", 700)
    _, patch = source_state(origin, [])
    assert b"left out, binary or too large: 'a.jsonl'\n" in patch
    assert b"+++ b/b.py\n" in patch
    assert b"+++ b/c.py\n" in patch
    assert b"a/a.jsonl" not in patch


def test_runs_below_the_repository_are_no_sources(origin):
    (origin / "my runs" / "experiment").mkdir(parents=True)
    (origin / "my runs" / "experiment" / "metrics.jsonl").write_text("{}\n")
    assert b"metrics.jsonl" in source_state(origin, [])[1]
    assert b"metrics.jsonl" not in source_state(origin, [origin / "my runs"])[1]


def test_without_changes_there_is_no_patch(origin, git):
    git("add", ".")
    git("commit", "-q", "-m", "second")
    commit, patch = source_state(origin, [])
    assert (len(commit), patch) == (40, b"")


def test_without_a_repository_there_is_nothing(tmp_path, monkeypatch):
    assert source_state(tmp_path, []) == ("", b"")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert source_state(tmp_path, []) == ("", b"")
