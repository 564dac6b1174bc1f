"""A model that cannot be used ends a run before it begins: one line, exit code 2, nothing left."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import transformers

from common.models.load import load_tokenizer
from common.run.checkpoint import find_damage
from tests.helpers import complain, load_script, run_training
from tests.small_models import (
    CHATML,
    SMALL_SHAPE,
    build_model,
    save_model_with_code,
    write_gsm8k_rows,
)

pytestmark = pytest.mark.slow


def complaint(tmp_path: Path, *flags: str) -> str:
    """What a run says that must fail as a user's mistake does."""
    log_dir = tmp_path / "runs"
    script = load_script("experiment_base")
    arguments = [*flags, "--no-wandb", "--max-steps", "1", "--log-dir", str(log_dir)]
    return checked(log_dir, *complain(script, arguments))


def checked(log_dir: Path, exit_code: int, said: str) -> str:
    assert exit_code == 2, said
    assert said.startswith("error: ")
    assert said.count("\n") == 1, said
    assert not list(log_dir.rglob("*"))
    return said


@pytest.fixture
def model(saved_model, tmp_path: Path) -> Path:
    """A model that a test may damage."""
    directory = tmp_path / "model"
    shutil.copytree(saved_model("qwen2"), directory)
    return directory


class TestADirectory:
    def test_that_is_not_there(self, tmp_path):
        message = complaint(tmp_path, "--model-name", "./no/such/model")
        assert "--model-name ./no/such/model: cannot be loaded" in message

    def test_without_weights(self, model, tmp_path):
        (model / "model.safetensors").unlink()
        message = complaint(tmp_path, "--model-name", str(model))
        assert f"--model-name {model}: cannot be loaded" in message
        assert "model.safetensors" in message

    def test_with_weights_cut_short(self, model, tmp_path):
        weights = model / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        assert f"--model-name {model}: cannot be loaded" in complaint(
            tmp_path, "--model-name", str(model)
        )

    def test_without_a_tokenizer(self, model, tmp_path):
        for file in model.glob("tokenizer*"):
            file.unlink()
        message = complaint(tmp_path, "--model-name", str(model))
        assert f"--model-name {model}: it has no tokenizer" in message

    def test_with_the_config_of_something_else(self, model, tmp_path):
        (model / "config.json").write_text('{"model_type": "no_such_model"}', encoding="utf-8")
        message = complaint(tmp_path, "--model-name", str(model))
        assert f"--model-name {model}: cannot be loaded" in message

    def test_with_a_template_that_drops_the_question(self, model, tmp_path):
        (model / "chat_template.jinja").write_text("Hello!", encoding="utf-8")
        message = complaint(tmp_path, "--model-name", str(model))
        assert f"the chat template of {model} writes the user's message 0 times" in message

    def test_with_fewer_positions_than_the_longest_sequence(self, saved_model, tmp_path):
        flags = ("--model-name", str(saved_model("gpt2")), "--max-length", "1025")
        message = complaint(tmp_path, *flags)
        assert "--max-length 1025: the model has 1024 positions" in message

    def test_of_a_model_that_sees_what_comes_later(self, tmp_path, model):
        shape = {**SMALL_SHAPE, "vocab_size": 400, "intermediate_size": 48}
        build_model(transformers.BertConfig, **shape).save_pretrained(model)
        message = complaint(tmp_path, "--model-name", str(model))
        assert "BertLMHeadModel is no causal language model" in message

    def test_of_a_model_with_code_of_its_own(self, tmp_path):
        directory = save_model_with_code(tmp_path / "own")
        message = complaint(tmp_path, "--model-name", str(directory))
        assert message.endswith(
            "it comes with code of its own; read that, then let it run with --trust-remote-code\n"
        )

    def test_whose_tokenizer_is_of_another_model(self, tmp_path, saved_model):
        directory = tmp_path / "model"
        shutil.copytree(saved_model("gpt2"), directory)
        tokenizer = load_tokenizer(str(directory))
        tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
        tokenizer.chat_template = CHATML
        tokenizer.save_pretrained(directory)
        message = complaint(tmp_path, "--model-name", str(directory))
        assert "the prompt of line 1 holds '<|im_start|>', which is token 400" in message


def test_weights_that_overflow_in_training_end_the_run_and_leave_its_checkpoint(
    saved_model, tmp_path
):
    """The one before is whole, and the step that could not be sampled has none."""
    reward = tmp_path / "by_length.py"
    reward.write_text("def length(completion, task):\n    return len(completion) % 7\n")
    code, said = complain(
        load_script("experiment_base"),
        [
            *("--model-name", str(saved_model("gpt2")), "--reward", f"{reward}:length"),
            *("--data-path", str(write_gsm8k_rows(tmp_path / "rows.jsonl", 40)), "--no-wandb"),
            *("--lr", "1e30", "--warmup-fraction", "0", "--max-steps", "4", "--no-tensorboard"),
            *("--rollouts-per-step", "2", "--group-size", "4", "--max-completion-tokens", "8"),
            *("--eval-samples", "2", "--eval-interval", "0", "--checkpoint-interval", "1"),
            *("--log-dir", str(tmp_path / "runs"), "--run-name", "run"),
        ],
    )
    assert code == 2
    assert said.count("\n") == 1
    assert "logits are not numbers (NaN)" in said
    checkpoints = tmp_path / "runs" / "experiment_base" / "run" / "checkpoints"
    assert find_damage(checkpoints / "step_000001") is None


class TestAHubIdWithoutANetwork:
    """Nothing may take longer than 20 seconds, the start of Python included."""

    FLAGS = ("--model-name", "someone/no-such-model")

    def check(self, tmp_path: Path, endpoint: str) -> None:
        environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache")}
        start = time.monotonic()
        log_dir = tmp_path / "runs"
        flags = (*self.FLAGS, "--no-wandb")
        result = run_training(*flags, log_dir=log_dir, environment=environment)
        assert result.stdout == ""
        message = checked(log_dir, result.returncode, result.stderr)
        assert time.monotonic() - start < 20
        assert "--model-name someone/no-such-model: cannot be loaded" in message
        assert "couldn't connect" in message

    def test_that_refuses(self, tmp_path):
        with silent_server() as endpoint:
            pass
        self.check(tmp_path, endpoint)

    def test_that_is_silent(self, tmp_path):
        with silent_server() as endpoint:
            self.check(tmp_path, endpoint)


@contextmanager
def silent_server() -> Iterator[str]:
    """Accepts every connection and never says a word; the port is closed afterwards."""
    listener = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []

    def accept() -> None:
        try:
            while True:
                connections.append(listener.accept()[0])
        except OSError:
            return

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for connection in connections:
            connection.close()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--device", "cuda:99"], "--device cuda:99: this machine has no such device"),
        (["--device", "toaster"], "--device toaster: unknown; use auto, cpu, cuda"),
        (["--dtype", "float16"], "--dtype float16: overflows in training; use bfloat16"),
        (["--load-in-4bit"], "--load-in-4bit: 4-bit weights cannot be trained; add --lora-rank"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_flag_that_cannot_be_had_here(tmp_path, flags, expected):
    assert expected in complaint(tmp_path, *flags)
