"""Every flag of every experiment is what it was when a run is resumed.

A new flag needs a line in `OTHERS`, with a value that is not its default.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from functools import cache
from pathlib import Path

import pytest

from common.errors import UserError
from common.flags.parsing import parse_config
from common.flags.saved import as_json, from_json
from common.flags.spelling import flag_name
from common.flags.train_config import TrainConfig, resolve_defaults
from common.models.load import locate
from common.run.resume import refuse_other_numbers
from common.training.command_line import OF_ONE_CALL, parse_flags
from tests.helpers import EXPERIMENTS, load_script, read_rows, train_here

OTHERS = """
--adam-beta1 0.8
--adam-beta2 0.9
--attn eager
--chat-template /elsewhere/template.jinja
--chat-template-args 'enable_thinking=false,name=[1, 2]'
--checkpoint-interval 3
--checkpoint-path /elsewhere/checkpoints
--clip-eps 0.1
--clip-eps-high 0.3
--correct rewards:right
--correct-threshold 0.5
--correction corrections:mine
--correction-cap 3
--correction-range 0.5,2
--data-path /elsewhere/tasks.jsonl
--device cpu
--decode-rows 16
--documents-path /elsewhere/documents
--dtype bfloat16
--dynamic-sampling 3
--dynamic-sampling-by reward
--entropy-weight 0.01
--engine-directory /elsewhere/weights
--engine-timeout 30
--environment games:Guessing
--epochs-per-step 2
--eval-group-size 4
--eval-interval 7
--eval-samples 9
--eval-temperature 0.5
--figures-head 1
--figures-interval 5
--figures-layer -2
--figures-rows 10
--figures-snapshots 11
--gradient-checkpointing
--group-size 4
--head-dtype float32
--histogram-interval 6
--keep-checkpoints 1
--kl-estimator k1
--kl-in reward
--kl-weight 0.5
--load-in-4bit
--log-artifacts
--log-completions-interval 8
--lora-alpha 12
--lora-rank 4
--lr 1e-5
--lr-schedule cosine
--max-completion-tokens 33
--max-digits 2
--max-grad-norm 0
--max-invalid-calls 2
--max-length 222
--max-minutes 1.5
--max-prompts 17
--max-steps 13
--max-terms 3
--max-tool-tokens 44
--max-turns 2
--micro-batch-size 16
--micro-batch-tokens 3000
--min-p 0.1
--model-name some/model
--monitor-kl
--objective objectives:mine
--offload optimizer
--old-log-probs sampler
--overlong penalty
--overlong-buffer 0.5
--overlong-prompts drop
--passage-tokens 99
--passages-per-search 5
--policy-lag 2
--reasoning-tag reasoning
--retriever retrievers:mine
--reward rewards:one /elsewhere/rewards.py:two
--reward-weights one=2,two=-1
--reward-timeout 3.5
--rollouts-per-step 6
--rubric-file /elsewhere/rubric.yaml
--rubric-weight 0.25
--sampler vllm
--sampler-device cpu
--seed 9223372036854775807
--shard
--shard-within 2
--stop Question: 'A: '
--system-prompt 'Say {what} you know: null'
--temperature 0.7
--no-tensorboard
--tool tools:one tools:two
--top-entropy 0.2
--tool-format hermes
--tool-timeout 2.5
--top-k 5
--top-p 0.9
--train-batch-size 12
--trust-remote-code
--vllm-admission eager
--vllm-devices 1
--vllm-gpu-memory 0.5
--vllm-sleep
--vllm-tensor-parallel 2
--no-wandb
--wandb-entity team
--wandb-group null
--wandb-notes 'a note: "null"'
--wandb-project project
--wandb-tags 1 true null
--warmup-fraction 0
--weight-decay 0.1
"""


def name_of(line: str) -> str:
    return line.split()[0].removeprefix("--").removeprefix("no-").replace("-", "_")


LINES = {name_of(line): shlex.split(line) for line in OTHERS.strip().splitlines()}
# What a flag is refused without, and those that are refused beside another line.
NEEDED = {
    "load_in_4bit": {"lora_rank": 8},
    "correct_threshold": {"correct": "rewards:right"},
    "sampler_device": {"policy_lag": 1},
    "shard_within": {"shard": True},
    "kl_in": {"kl_estimator": "k1", "kl_weight": 0.5},
    "kl_estimator": {"kl_in": "reward", "kl_weight": 0.5},
}
REFUSED_BESIDE_OTHERS = {"log_artifacts": True, "sampler": "vllm", "shard": True, "shard_within": 2}


def config_class(experiment: str) -> type[TrainConfig]:
    return load_script(experiment).Config


def names(experiment: str) -> list[str]:
    """The flags that a resumed run takes from the run."""
    fields = dataclasses.fields(config_class(experiment))
    return [field.name for field in fields if field.name not in OF_ONE_CALL]


def command_line(experiment: str) -> list[str]:
    chosen = [name for name in names(experiment) if name not in REFUSED_BESIDE_OTHERS]
    return [argument for name in chosen for argument in LINES.get(name, [])]


@cache
def defaults(experiment: str) -> TrainConfig:
    return resolve_defaults(config_class(experiment)(), bundled=True)


@cache
def given(experiment: str) -> TrainConfig:
    """The config of a run with all flags but one."""
    return parse_config(config_class(experiment), command_line(experiment))


EVERY_FLAG = {name: experiment for experiment in EXPERIMENTS for name in names(experiment)}
"""Each with an experiment that has it."""


@pytest.mark.parametrize("name", EVERY_FLAG)
def test_a_flag_that_was_given_is_restored(name):
    assert name in LINES, f"{flag_name(name)} needs a line in OTHERS, with another value"
    experiment = EVERY_FLAG[name]
    value = REFUSED_BESIDE_OTHERS.get(name) or getattr(given(experiment), name)
    before = dataclasses.replace(defaults(experiment), **{name: value, **NEEDED.get(name, {})})
    assert value != getattr(defaults(experiment), name), f"{LINES[name]}: that is its default"
    saved = json.loads(json.dumps(as_json(before)))
    resumed = config_class(experiment)(**from_json(config_class(experiment), saved))
    assert getattr(resumed, name) == value
    assert type(getattr(resumed, name)) is type(value)
    assert resumed == before
    refuse_other_numbers(resumed, saved)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_all_flags_at_once_are_restored_on_a_command_line(tmp_path, experiment):
    log_dir = ["--log-dir", str(tmp_path)]
    run = tmp_path / experiment / "one"
    run.mkdir(parents=True)
    before = given(experiment)
    (run / "config.json").write_text(json.dumps(as_json(before)))
    resumed = parse_flags(config_class(experiment), [*log_dir, "--resume"])
    differ = [n for n in names(experiment) if getattr(resumed, n) != getattr(before, n)]
    assert not differ
    resumed = parse_flags(config_class(experiment), [*log_dir, "--resume", "--seed", "7"])
    assert resumed == dataclasses.replace(before, seed=7, resume=True, log_dir=tmp_path)


def test_no_line_is_left_of_a_flag_that_is_gone():
    assert LINES.keys() - EVERY_FLAG.keys() == set()


def test_a_flag_without_a_value_is_restored_as_that():
    restored = from_json(config_class(EXPERIMENTS[0]), {"rubric_file": None, "wandb_tags": []})
    assert restored == {"rubric_file": None, "wandb_tags": ()}


@pytest.mark.parametrize(
    ("saved", "complaint"),
    [
        ({"lr": "fast"}, "--lr fast: so says config.json of the run to resume, but Input should"),
        ({"lr_schedule": "step"}, "--lr-schedule step: so says .* should be 'constant', 'linear'"),
        ({"reward": "a:f"}, "--reward a:f: so says .* should be a valid tuple; put it back, or"),
        ({"wandb": 7}, "--wandb 7: so says config.json of the run to resume"),
    ],
)
def test_what_was_written_into_a_run_by_hand_is_named(saved, complaint):
    with pytest.raises(UserError, match=f"^{complaint}") as caught:
        from_json(config_class(EXPERIMENTS[0]), saved)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_run_goes_on_where_its_inputs_are_now(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    (here / "mine.py").write_text("def short(completion, task):\n    return -len(completion)\n")
    (here / "rubric.yaml").write_text("criteria: [{name: a, function: 'mine.py:short'}]\n")
    shutil.copyfile(defaults("experiment_base").tasks_file, here / "tasks.jsonl")
    shutil.copytree(locate("tiny"), here / "model")

    def inputs(place: Path) -> list[str]:
        return [
            *("--data-path", f"{place}/tasks.jsonl", "--rubric-file", f"{place}/rubric.yaml"),
            *("--model-name", f"{place}/model", "--reward", f"{place}/mine.py:short"),
        ]

    flags = [
        *("--rollouts-per-step", "2", "--group-size", "2", "--max-completion-tokens", "8"),
        *("--eval-samples", "0", "--lora-alpha", "8", "--wandb-tags", "a", "b", "--no-wandb"),
    ]
    name = ("--run-name", "one")
    train_here(*name, *inputs(here), *flags, "--max-steps", "1", log_dir=tmp_path)
    here.rename(there)
    train_here(*name, "--resume", *inputs(there), "--max-steps", "2", log_dir=tmp_path)
    train_here(*name, "--resume", "--max-steps", "3", log_dir=tmp_path)
    rows = read_rows(tmp_path / "experiment_base" / "one" / "metrics.jsonl")
    assert sum("training_step/loss" in row for row in rows) == 3
