"""What a model wrote arrives, whatever its tokenizer and its template are like."""

from __future__ import annotations

import hashlib
import json
import re
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import transformers

from common.logger.metrics import Metrics
from common.models.load import load_tokenizer
from tests.helpers import numbers_of, read_rows, train_here
from tests.small_models import save_variant

FLAGS: dict[str, tuple[str, ...]] = {
    "experiment_base": ("--max-terms", "4", "--max-digits", "1", "--max-length", "160"),
    "experiment_multiturn_tool_calling": (
        *("--tool-format", "tags", "--max-tool-tokens", "48", "--max-length", "256"),
    ),
}


def train(model: str | Path, root: Path, experiment: str = "experiment_base", *more: str) -> str:
    """What a step with a few conversations prints, with a bundled model's flags for any model."""
    return train_here(
        *("--model-name", str(model), "--max-steps", "1", "--rollouts-per-step", "2"),
        *("--group-size", "4", "--max-completion-tokens", "64", "--lr", "4e-4", "--kl-weight", "0"),
        *("--eval-samples", "8", "--log-completions-interval", "1", "--run-name", "run"),
        *("--no-wandb", "--no-tensorboard", *FLAGS[experiment], *more),
        experiment=experiment,
        log_dir=root,
    )


def rows(root: Path, name: str) -> list[dict[str, Any]]:
    (file,) = root.glob(f"*/run/{name}")
    found = numbers_of(read_rows(file))
    for call in chain.from_iterable(row.get("calls", []) for row in found):
        del call["seconds"]
    return found


def merged(root: Path) -> Metrics:
    return {name: value for row in rows(root, "metrics.jsonl") for name, value in row.items()}


@pytest.mark.parametrize(
    ("bundled", "tags", "experiment"),
    [
        ("tiny", "answer", "experiment_base"),
        ("tiny-calculator", "tool", "experiment_multiturn_tool_calling"),
    ],
)
def test_tags_that_are_special_tokens_change_no_number(
    tmp_path, monkeypatch, bundled, tags, experiment
):
    """A bundled model is one by its place, and only then is told nothing of its tool."""
    train(bundled, tmp_path / "as_it_is", experiment)
    save_variant(bundled, tmp_path / "variants" / bundled, special=tags)
    monkeypatch.setattr("common.models.load.BUNDLED", tmp_path / "variants")
    train(bundled, tmp_path / "with_special_tags", experiment)
    for name in ("metrics.jsonl", "samples.jsonl"):
        as_it_is = rows(tmp_path / "as_it_is", name)
        assert rows(tmp_path / "with_special_tags", name) == as_it_is
    assert merged(tmp_path / "as_it_is")["eval/accuracy"] > 0


def test_a_thought_that_the_template_opens_counts(tmp_path):
    """The model that never forgets to think once it has begun is right, and in the right form."""
    opens = save_variant(
        "tiny",
        tmp_path / "opens",
        change_template=lambda template: template.replace(
            "assistant\n{% endif %}", "assistant\n<think>{% endif %}"
        ),
    )
    output = train(opens, tmp_path, "experiment_base", "--system-prompt", "")
    metrics = merged(tmp_path)
    assert metrics["rewards/format_exact_mean"] > 0.9
    assert metrics["eval/accuracy"] > 0.9
    samples = rows(tmp_path, "samples.jsonl")
    assert all(row["completion"].startswith("<think>") for row in samples)
    assert "after:  <think>" in output


def test_a_template_that_opens_no_reply_is_warned_of_once(tmp_path):
    ignores = save_variant(
        "tiny",
        tmp_path / "ignores",
        change_template=lambda template: template.partition("{% if add_generation")[0],
    )
    first, *others = train(ignores, tmp_path, "experiment_base", "--system-prompt", "").splitlines()
    assert first.startswith(f"warning: the chat template of {ignores} ignores")
    assert "warning" not in "".join(others)


def test_a_template_of_the_users_its_arguments_and_stop_strings(tmp_path):
    """They are used, they end completions, and the checkpoint's tokenizer has the template."""
    template = str(load_tokenizer("tiny").chat_template).replace(
        "assistant\n{% endif %}", "assistant\n{% if thinks %}<think>{% endif %}{% endif %}"
    )
    file = tmp_path / "template.jinja"
    file.write_text(template, encoding="utf-8")
    flags = (
        "--chat-template",
        str(file),
        "--chat-template-args",
        "thinks=true",
        "--stop",
        "</think>",
        "=",
    )
    train("tiny", tmp_path, "experiment_base", *flags)
    samples = rows(tmp_path, "samples.jsonl")
    assert {row["stop_reason"] for row in samples} == {"stop"}
    written = [row["completion"] for row in samples]
    assert all(re.fullmatch(r"<think> [-+\d]+=", text) for text in written)
    (checkpoint,) = tmp_path.glob("*/run/checkpoints/step_*")
    saved = transformers.AutoTokenizer.from_pretrained(checkpoint)
    assert saved.chat_template == template
    (config,) = tmp_path.glob("*/run/config.json")
    digest = json.loads(config.read_text())["inputs"]["--chat-template"]
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest()
