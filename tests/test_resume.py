"""A run that was stopped, in whatever way, and resumed is the run that was not stopped."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from common.run.checkpoint import find_damage
from tests.helpers import REPOSITORY, numbers_of, read_rows, run_training, train_here

pytestmark = pytest.mark.slow

STEPS = 6
# Two optimizer steps per batch; the reward gives every group a gradient and draws from every global
# generator, so that a resume that does not restore one of them cannot give the same numbers.
SMALL = (
    *("--rollouts-per-step", "4", "--group-size", "4", "--train-batch-size", "8"),
    *("--eval-samples", "4", "--eval-interval", "2", "--max-completion-tokens", "16"),
    *("--log-completions-interval", "1", "--lr", "1e-3", "--no-wandb"),
    *("--reward", "noisy_reward:noisy"),
)
NOISY_REWARD = """
import random
import numpy
import torch
from common.tools.toolbox import instant

@instant
def noisy(completion, task):
    return random.random() + float(numpy.random.random()) + torch.rand(1).item()
"""
FULL = (
    *("--checkpoint-interval", "1", "--keep-checkpoints", "3", "--epochs-per-step", "2"),
    *("--lr-schedule", "cosine", "--warmup-fraction", "0.5", "--top-p", "0.9"),
)
# Without a warm-up, which is a share of all steps, a longer run begins as a shorter one does.
LORA = (
    *("--checkpoint-interval", "2", "--lora-rank", "4", "--warmup-fraction", "0"),
    *("--old-log-probs", "sampler"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("resume")
    (root / "noisy_reward.py").write_text(NOISY_REWARD)
    return root


@pytest.fixture(scope="module")
def straight(root):
    """A run that nothing stopped."""
    return finished_run(root, "straight", *FULL)


@pytest.fixture(scope="module")
def straight_lora(root):
    return finished_run(root, "straight_lora", *LORA)


def finished_run(root, name, *flags):
    result = train(root, "--run-name", name, *SMALL, *flags, "--max-steps", str(STEPS))
    assert result.returncode == 0, result.stderr
    return root / "experiment_base" / name


def environment(root):
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": path, "COLUMNS": "400"}


def train(root, *flags, **options):
    return run_training(*flags, log_dir=root, environment=environment(root), **options)


def start(root, *flags, **options):
    """A run in the background; its output goes to a file, so that no pipe can fill up."""
    output = (root / "output.txt").open("w+")
    experiment = REPOSITORY / "experiment_base"
    options = {"cwd": experiment, "stdout": output, "stderr": subprocess.STDOUT, **options}
    return subprocess.Popen(
        [sys.executable, experiment / "train.py", "--log-dir", str(root), *flags],
        env={**os.environ, **environment(root)},
        **options,
    )


def wait_for(condition, process, timeout=60):
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, "the run ended before what was waited for"
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.005)


def rows_written(directory):
    file = directory / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def assert_same_run(resumed, straight, checkpoints=None):
    expected = numbers_of(read_rows(straight / "metrics.jsonl"))
    assert numbers_of(read_rows(resumed / "metrics.jsonl")) == expected
    assert any(row.get("training_step/grad_norm", 0) > 0 for row in expected)
    assert read_rows(resumed / "samples.jsonl") == read_rows(straight / "samples.jsonl")
    assert plotted(resumed) == plotted(straight)
    expected = straight / "checkpoints" / f"step_{STEPS:06d}"
    (weights,) = expected.glob("*model.safetensors")
    saved = (checkpoints or resumed / "checkpoints") / expected.name / weights.name
    assert saved.read_bytes() == weights.read_bytes()


def plotted(directory):
    """Steps and values of every curve in TensorBoard."""
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    names = events.Tags()["scalars"]
    assert "training_step/loss" in names
    curves = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in names}
    return numbers_of([curves])


def kill_and_resume(root, name, chance):
    """Resume, and kill after a random delay that counts from the first row of the process.

    So the kills hit training and saving. Returns whether there was still something to kill.
    """
    directory = root / "experiment_base" / name
    before = rows_written(directory)
    process = start(root, "--run-name", name, "--resume")
    wait_for(lambda: rows_written(directory) != before, process)
    time.sleep(chance.uniform(0, 0.4))
    process.kill()
    return process.wait() != 0


def test_killed_at_random_moments_until_done(root, straight):
    directory = root / "experiment_base" / "killed"
    process = start(
        *(root, "--run-name", "killed", *SMALL, *FULL, "--max-steps", str(STEPS)),
    )
    wait_for(lambda: rows_written(directory) > 8, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    chance = random.Random(5)
    kills = [kill_and_resume(root, "killed", chance) for _ in range(2)]
    assert any(kills)
    result = train(root, "--run-name", "killed", "--resume")
    assert result.returncode == 0, result.stderr
    assert_same_run(directory, straight)
    assert not list((directory / "checkpoints").glob(".*"))


def test_an_adapter_finished_then_taken_further_and_killed(root, straight_lora):
    """Its checkpoints lie elsewhere, by a relative path, and it goes on in another directory."""
    name = "lora"
    elsewhere = os.path.relpath(root / "elsewhere", REPOSITORY / "experiment_base")
    half = train(
        *(root, "--run-name", name, *SMALL, *LORA, "--max-steps", "3"),
        *("--checkpoint-path", elsewhere),
    )
    assert half.returncode == 0, half.stderr
    directory = root / "experiment_base" / name
    assert read_rows(directory / "metrics.jsonl")[-1]["checkpoint/final_saved"] == 1.0
    before = rows_written(directory)
    further = ("--run-name", name, "--resume", "--max-steps", str(STEPS))
    process = start(root, *further, cwd=root)
    wait_for(lambda: rows_written(directory) > before + 2, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    result = train(root, *further)
    assert result.returncode == 0, result.stderr
    checkpoints = root / "elsewhere" / "experiment_base" / name
    assert not (directory / "checkpoints").exists()
    assert_same_run(directory, straight_lora, checkpoints)


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_damaged_checkpoints_are_named_moved_aside_and_done_without(root, straight):
    directory = root / "experiment_base" / "damaged"
    shutil.copytree(straight, directory)
    checkpoints = directory / "checkpoints"
    newest, before = (checkpoints / f"step_{step:06d}" for step in (STEPS, STEPS - 1))
    os.truncate(newest / "training_state.pt", 1_000_000)
    flip_a_bit(before / "model.safetensors")
    result = train(root, "--run-name", "damaged", "--resume")
    assert result.returncode == 0, result.stderr
    assert f"checkpoint {newest} is damaged (training_state.pt, 1000000 bytes" in result.stdout
    assert f"checkpoint {before} is damaged (model.safetensors" in result.stdout
    assert f"after step {STEPS - 2}" in result.stdout
    for path in (newest, before):
        assert path.with_name(f"damaged_{path.name}").is_dir()
    assert_same_run(directory, straight)


def test_signals_save_and_the_resumed_run_is_exact(root, straight):
    directory = root / "experiment_base" / "signals"
    flags = ("--run-name", "signals", *SMALL, *FULL, "--max-steps", str(STEPS))
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        before = rows_written(directory)
        process = start(root, *flags)
        wait_for(lambda count=before: rows_written(directory) not in (0, count), process)
        time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(20) == code
        output = (root / "output.txt").read_text()
        assert "once more stops at once" in output
        assert "--resume continues" in output
        assert "Traceback" not in output
        assert "training/completed" not in (directory / "metrics.jsonl").read_text()
        flags = ("--run-name", "signals", "--resume")
    result = train(root, *flags)
    assert result.returncode == 0, result.stderr
    assert_same_run(directory, straight)


def long_decoding(root, name):
    """A run that is decoding its first evaluation, of completions that take minutes."""
    process = start(
        *(root, "--run-name", name, *SMALL, "--max-steps", "2", "--temperature", "50"),
        *("--max-completion-tokens", "900", "--max-length", "1000", "--eval-samples", "256"),
    )
    directory = root / "experiment_base" / name
    wait_for(lambda: list(directory.glob("events*")), process)
    time.sleep(1.5)
    assert rows_written(directory) == 0
    return process, directory


def test_a_signal_ends_a_long_decoding_and_a_second_one_need_not_wait_even_for_that(root):
    process, directory = long_decoding(root, "decoding")
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 143
    assert (directory / "checkpoints" / "latest").read_text() == "step_000000\n"


def test_a_second_signal_stops_at_once_in_the_middle_of_an_operation(root):
    """The main thread sleeps inside C, as it does in a long tensor operation."""
    script = root / "second_signal.py"
    script.write_text(
        "import ctypes, sys\n"
        "from common.training.interruption import Interruption\n"
        "with Interruption(lambda text: sys.stdout.write(text) and sys.stdout.flush()):\n"
        "    sys.stdout.write('ready ')\n"
        "    sys.stdout.flush()\n"
        "    for _ in range(30):\n"
        "        ctypes.CDLL(None).sleep(30)\n"
    )
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.read(6) == "ready "
        # A stopped C function goes back to sleep: only the watching thread can act.
        process.send_signal(number)
        assert "once more" in process.stdout.read(60)
        sent = time.monotonic()
        process.send_signal(number)
        assert process.wait(10) == code
        assert time.monotonic() - sent < 0.5


def test_a_full_disk_leaves_the_checkpoint_before_whole_and_says_so(root, straight):
    """The largest file that may be written lies between the weights and the optimizer's state."""
    directory = root / "experiment_base" / "full_disk"
    shutil.copytree(straight, directory)
    shutil.rmtree(directory / "checkpoints" / f"step_{STEPS:06d}")
    limit = (directory / "checkpoints" / f"step_{STEPS - 1:06d}" / "model.safetensors").stat()
    size = limit.st_size + 1_000_000
    process = start(
        *(root, "--run-name", "full_disk", "--resume"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
        stderr=subprocess.PIPE,
        text=True,
    )
    _, errors = process.communicate()
    assert process.returncode == 2
    (line,) = errors.splitlines()
    assert f"step_{STEPS:06d}: cannot write the checkpoint (File too large)" in line
    assert f"step_{STEPS - 1:06d} is whole" in line
    checkpoints = directory / "checkpoints"
    assert not list(checkpoints.glob(".*"))
    assert find_damage(checkpoints / f"step_{STEPS - 1:06d}") is None


def test_a_checkpoint_is_a_model_that_transformers_loads(straight):
    checkpoint = straight / "checkpoints" / f"step_{STEPS:06d}"
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    assert torch.equal(model.model.embed_tokens.weight, weights["model.embed_tokens.weight"])
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert tokenizer.chat_template
    generate = pipeline("text-generation", model=str(checkpoint), tokenizer=str(checkpoint))
    (reply,) = generate([{"role": "user", "content": "What is 1+2?"}], max_new_tokens=8)
    assert reply["generated_text"][-1]["role"] == "assistant"


def test_an_adapter_is_a_model_that_transformers_loads(straight_lora):
    checkpoint = straight_lora / "checkpoints" / f"step_{STEPS:06d}"
    adapter = load_file(checkpoint / "adapter_model.safetensors")
    assert any(weight.abs().max() > 0 for name, weight in adapter.items() if "lora_B" in name)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert any("lora" in name for name, _ in model.named_parameters())


def test_what_is_kept_and_what_is_logged_of_checkpoints(straight):
    directory = straight
    names = sorted(path.name for path in (directory / "checkpoints").iterdir())
    assert names == ["latest", *(f"step_{step:06d}" for step in range(STEPS - 2, STEPS + 1))]
    assert (directory / "checkpoints" / "latest").read_text() == f"step_{STEPS:06d}\n"
    rows = read_rows(directory / "metrics.jsonl")
    saved = [row for row in rows if "checkpoint/saved" in row]
    assert [row["checkpoint/step"] for row in saved] == list(range(1, STEPS + 1))
    assert [row["checkpoint/saved"] for row in saved] == [1.0] * STEPS
    assert rows[-1]["checkpoint/final_saved"] == 1.0


def test_time_that_is_up_saves_and_is_no_failure(root):
    name = "hurried"
    flags = ("--max-steps", "500", "--max-minutes", "0.02", "--checkpoint-interval", "0")
    # Without the reward, which this process does not find.
    printed = train_here("--run-name", name, *SMALL[:-2], *flags, log_dir=root)
    assert "--resume continues" in printed
    directory = root / "experiment_base" / name
    (checkpoint,) = (directory / "checkpoints").glob("step_*")
    assert "training/completed" not in read_rows(directory / "metrics.jsonl")[-1]
    assert json.loads((checkpoint / "manifest.json").read_text())
