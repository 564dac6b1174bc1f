"""What a command line means where a run is resumed, and who says what is wrong with it."""

import json

import pytest

from common.flags.saved import as_json
from common.flags.train_config import resolve_defaults
from common.training.command_line import SECONDS_TO_BE_ENDED, parse_flags
from tests.helpers import complain, load_script


def test_what_a_run_was_given_is_found_again_from_another_directory(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    config_class = load_script("experiment_base").Config
    arguments = ["--log-dir", str(tmp_path / "runs")]
    given = ["--reward", "mine.py:short", "--rubric-file", "rubric.yaml", "--data-path", "t.jsonl"]
    monkeypatch.chdir(tmp_path / "here")
    config = parse_flags(config_class, [*arguments, *given, "--run-name", "one"])
    run = tmp_path / "runs" / "experiment_base" / "one"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(as_json(resolve_defaults(config, bundled=True))))

    monkeypatch.chdir(tmp_path / "there")
    resumed = parse_flags(config_class, [*arguments, "--resume"])
    assert resumed.reward == (f"{tmp_path}/here/mine.py:short",)
    assert resumed.rubric_file == tmp_path / "here" / "rubric.yaml"
    assert resumed.data_path == tmp_path / "here" / "t.jsonl"


@pytest.mark.parametrize(("rank", "waits"), [("0", []), ("1", [SECONDS_TO_BE_ENDED])])
def test_ranks_but_the_first_wait_to_be_ended_before_they_complain(monkeypatch, rank, waits):
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setenv("RANK", rank)
    code, said = complain(load_script("experiment_base"), ["--no-such-flag"])
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith(f"error: rank {rank}: --no-such-flag: ")
    assert waited == waits
