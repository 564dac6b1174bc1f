"""The sweep.yaml of every experiment: W&B and we read the same, and the experiment takes it."""

import pytest
import yaml

from common.sweep.__main__ import wrong_flags
from common.sweep.sweep_file import read_sweep
from common.yaml_file import read_yaml
from tests.helpers import EXPERIMENTS, REPOSITORY, load_script


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_sweep_that_its_experiment_takes(experiment):
    file = REPOSITORY / experiment / "sweep.yaml"
    sweep = read_sweep("--file", file)
    config_class = load_script(experiment).Config
    assert wrong_flags(sweep, config_class) == []
    assert {"lr", "group_size"} <= set(sweep.varied)
    assert (sweep.metric, sweep.maximize) == ("final_reward", True)
    assert sweep.ignored == ()
    # Short, with an evaluation at the end, and with nothing in the way of its own flags.
    assert {"--max-steps=10", "--eval-interval=0"} <= set(sweep.flags({}))
    assert sweep.command[:3] == ("${env}", "${interpreter}", "${program}")

    # PyYAML alone, with which wandb reads it, takes 5e-7 for a text.
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert content == read_yaml("--file", file)
    assert content["project"] == config_class.default_wandb_project
    assert f"make sweep EXPERIMENT={experiment}\n" in file.read_text(encoding="utf-8")
