"""What GRPO makes of a pretrained model on a CPU, as docs/real_model.md has it.

python -m benchmarks.real_model          (half an hour, after make pretrained and make setup-vllm)

Files and flags are those of the page. Runs go one after another; one that is finished is read, not
run again. Draws `docs/real_model.png`, and writes the table of the page.
"""

from __future__ import annotations

import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import tyro
from rich.console import Console

from benchmarks.pages import put_into
from benchmarks.rows import column
from common.repository import REPOSITORY
from common.run.files import read_rows

EXPERIMENT = "experiment_base"
PAGE = REPOSITORY / "docs" / "real_model.md"
PICTURE = PAGE.with_suffix(".png")
RUNS = REPOSITORY / "runs" / EXPERIMENT
# Flags beside those of the page's command.
ADAPTERS = "--lora-rank 16 --lr 2e-4"
VLLM = "--sampler vllm"
KINDS = ("", ADAPTERS, VLLM, f"{VLLM} {ADAPTERS}")
# Batches at the beginning and at the end that are averaged.
ENDS = 3


@dataclass(frozen=True)
class RealModelConfig:
    """GRPO on a pretrained model."""

    seeds: tuple[int, ...] = (1, 2, 3)
    """A run of each kind; with vLLM of the first seed alone."""


def main(config: RealModelConfig) -> None:
    with TemporaryDirectory() as root:
        flags = lay_out(Path(root))
        found = {
            kind: [
                rows_of(Path(root), [*flags, *shlex.split(kind)], seed)
                for seed in config.seeds[: 1 if VLLM in kind else None]
            ]
            for kind in KINDS
        }
    table = table_of(found)
    Console(soft_wrap=True, highlight=False).print(table)
    put_into(PAGE, "runs", table)
    draw(found)


def lay_out(root: Path) -> list[str]:
    """Make an `experiment_base` with the page's files under a directory, beside the models that
    were made here; returns the flags of the page's command."""
    page = PAGE.read_text(encoding="utf-8")
    (root / EXPERIMENT).mkdir()
    (root / "build").symlink_to(REPOSITORY / "build")
    for path, text in re.findall(r"^```python (\S+)\n(.*?)^```$", page, re.M | re.S):
        (root / path).write_text(text, encoding="utf-8")
    (commands,) = re.findall(rf"^```sh\n(cd {EXPERIMENT}\n.*?)^```$", page, re.M | re.S)
    _, make_tasks, train = commands.replace("\\\n", " ").strip().split("\n")
    make_tasks = make_tasks.replace("python", shlex.quote(sys.executable), 1)
    subprocess.run(make_tasks, shell=True, cwd=root / EXPERIMENT, check=True)
    return shlex.split(train)[2:]


def train(root: Path, flags: Sequence[str]) -> None:
    """`cd experiment_base && python train.py flags`, where the page's files are."""
    script = REPOSITORY / EXPERIMENT / "train.py"
    subprocess.run([sys.executable, str(script), *flags], cwd=root / EXPERIMENT, check=True)


def rows_of(root: Path, flags: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """What a run with these flags has logged."""
    kind = "_".join(re.findall("vllm|lora", " ".join(flags))) or "all"
    name = f"real_model-{kind}-{seed}"
    rows = RUNS / name / "metrics.jsonl"
    if not rows.is_file() or "checkpoint/final_saved" not in rows.read_text(encoding="utf-8"):
        train(root, [*flags, "--seed", str(seed), "--run-name", name, "--no-wandb"])
    return list(read_rows(rows))


def table_of(found: dict[str, list[list[dict[str, Any]]]]) -> str:
    lines = [
        "| flags beside those above | right, held out, before | after | reward of the first "
        f"{ENDS} batches | of the last | tokens per completion, first | last | seconds per batch | "
        "memory, GB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kind, runs in found.items():
        right = [column(rows, "eval/accuracy")[1] for rows in runs]
        reward = [column(rows, "rollouts/returns_mean")[1] for rows in runs]
        tokens = [column(rows, "rollouts/completion_tokens_mean")[1] for rows in runs]
        seconds = [statistics.median(column(rows, "time/step_s")[1]) for rows in runs]
        memory = [max(column(rows, "system/process_memory_gb")[1]) for rows in runs]
        cells = [
            f"`{kind}`" if kind else "none",
            span([values[0] for values in right], "{:.1%}"),
            span([values[-1] for values in right], "{:.1%}"),
            span([statistics.mean(values[:ENDS]) for values in reward], "{:.2f}"),
            span([statistics.mean(values[-ENDS:]) for values in reward], "{:.2f}"),
            span([statistics.mean(values[:ENDS]) for values in tokens], "{:.1f}"),
            span([statistics.mean(values[-ENDS:]) for values in tokens], "{:.1f}"),
            span(seconds, "{:.1f}"),
            f"{max(memory):.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def span(values: Sequence[float], form: str) -> str:
    mean, least, most = (
        form.format(value) for value in (statistics.mean(values), min(values), max(values))
    )
    return f"{mean} ({least} to {most})" if len(values) > 1 else mean


def draw(found: dict[str, list[list[dict[str, Any]]]]) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for kind, runs in found.items():
        curves = np.array([column(rows, "rollouts/returns_mean")[1] for rows in runs])
        steps = np.arange(1, curves.shape[1] + 1)
        (line,) = axes.plot(steps, curves.mean(axis=0), label=kind or "no flag")
        axes.fill_between(
            steps, curves.min(axis=0), curves.max(axis=0), alpha=0.12, color=line.get_color()
        )
    axes.set(xlabel="batch", ylabel="mean reward, least and most of the seeds shaded")
    axes.legend()
    figure.savefig(PICTURE, dpi=120)


if __name__ == "__main__":
    main(tyro.cli(RealModelConfig, description=__doc__))
