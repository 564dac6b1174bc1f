"""How time and memory of a step grow while one thing grows, and whether faster than the work does.

python -m benchmarks.scaling                (about half an hour on two cores)
python -m benchmarks.scaling --only group   (one of its seven parts)

Every size runs in a process of its own. Writes `scaling.json` and `scaling.png` beside this file,
prints the tables of `scaling.md`, and fails where something grows faster than its work.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import transformers
import tyro
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks.machine import Machine, describe_machine, measure_machine
from benchmarks.scaling_worker import Measured, Size
from common.repository import REPOSITORY

HERE = Path(__file__).parent
RESULTS = HERE / "scaling.json"

# Width, and layers of about 1 M, 4 M, 13 M, 38 M and 135 M parameters.
SHAPES = ((128, 4), (192, 9), (320, 10), (512, 12), (768, 19))
GROWN: Mapping[str, Sequence[Size]] = {
    "group": [Size(group=n) for n in (2, 4, 8, 16, 32, 64)],
    "completion": [
        Size(tasks=1, completion=n, micro_batch=8) for n in (64, 128, 256, 512, 1024, 2048)
    ],
    "long": [
        Size(tasks=1, group=2, completion=n, micro_batch=1) for n in (2048, 4096, 8192, 16_384)
    ],
    "prompt": [
        Size(tasks=1, prompt=n, completion=32, micro_batch=8)
        for n in (16, 64, 128, 256, 512, 1024, 2048)
    ],
    "vocabulary": [
        Size(tasks=2, completion=32, vocabulary=n) for n in (128, 512, 2048, 8192, 32_768, 151_936)
    ],
    "model": [Size(tasks=1, completion=16, width=w, layers=n) for w, n in SHAPES],
    "turns": [Size(completion=32, turns=n) for n in (1, 2, 3, 4, 6, 8)],
}
# What grows, where a part is not called by it.
OTHERWISE = {"long": "completion"}
HEAD_FEATURES = 32

# A turn of the model is opened by the word go.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ 'go ' if message['role'] == 'assistant' }}"
    "{{ message['content'] }} {% endfor %}{{ 'go' if add_generation_prompt }}"
)

# By how much an exponent may exceed that of the work: sizes are few, and other work disturbs.
TOLERANCE = 0.1


@dataclass(frozen=True)
class ScalingConfig:
    """Steps of experiment_base with random weights, larger and larger in one way at a time."""

    only: tuple[str, ...] = ()
    """Parts to measure anew (group, completion, long, prompt, vocabulary, model, turns), or all."""
    threads: int = 2
    """Threads of torch."""


@dataclass(frozen=True)
class Part:
    """What was measured while one thing grew."""

    machine: str
    sizes: Sequence[float]
    measured: Sequence[Measured]

    def exponent(self, name: str) -> float:
        """Of a column of `Measured`, over the upper half of the sizes."""
        return upper_exponent(self.sizes, [getattr(one, name) for one in self.measured])


def main(config: ScalingConfig) -> None:
    torch.set_num_threads(config.threads)
    transformers.utils.logging.disable_progress_bar()
    console = Console(soft_wrap=True, highlight=False)
    machine = measure_machine()
    parts = read_parts()
    for name in config.only or tuple(GROWN):
        measured = [measure(size, machine, config.threads) for size in GROWN[name]]
        sizes = [
            one.parameters if name == "model" else getattr(size, OTHERWISE.get(name, name))
            for size, one in zip(GROWN[name], measured, strict=True)
        ]
        parts[name] = Part(describe_machine(), sizes, measured)
        RESULTS.write_text(json.dumps({n: asdict(p) for n, p in parts.items()}, indent=1) + "\n")
        console.print(f"{table(name, parts[name])}\n")
    draw(parts, HERE / "scaling.png")
    console.print(exponent_table(parts))
    if found := faults(parts):
        sys.exit("\n".join(found))


def read_parts() -> dict[str, Part]:
    """Of earlier calls; a part is measured anew as a whole."""
    saved = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    return {
        name: Part(part["machine"], part["sizes"], [Measured(**one) for one in part["measured"]])
        for name, part in saved.items()
    }


def measure(size: Size, machine: Machine, threads: int) -> Measured:
    with tempfile.TemporaryDirectory() as directory:
        save_model(size, Path(directory))
        given = {"size": asdict(size), "model": directory, "machine": asdict(machine)}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.scaling_worker", json.dumps(given)],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def save_model(size: Size, directory: Path) -> None:
    """Random weights and a tokenizer of as many words, none of which ends a completion."""
    words = {"[unk]": 0, "go": 1, **{f"w{number}": number for number in range(2, size.vocabulary)}}
    whole = Tokenizer(models.WordLevel(words, unk_token="[unk]"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=whole,
        unk_token="[unk]",
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(directory)
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=11 * size.width // 4,
        num_hidden_layers=size.layers,
        num_attention_heads=size.width // HEAD_FEATURES,
        num_key_value_heads=size.width // HEAD_FEATURES,
        head_dim=HEAD_FEATURES,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    transformers.Qwen3ForCausalLM(config).save_pretrained(directory)


def upper_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of a line through the upper half of the points, both in logarithms."""
    start = len(sizes) // 2
    slope, _ = np.polyfit(np.log(sizes[start:]), np.log(values[start:]), 1)
    return float(slope)


def faults(parts: Mapping[str, Part]) -> list[str]:
    """What grows faster than it may, in sentences.

    In proportion to its size anything may: a fixed share of the work lowers its exponent below 1.
    """
    found = []
    for name, part in parts.items():
        time, work = part.exponent("seconds"), part.exponent("least_seconds")
        if time > max(work, 1.0) + TOLERANCE:
            found.append(f"{name}: time grows with exponent {time:.2f}, its work with {work:.2f}")
        if (held := part.exponent("peak_bytes")) > 1 + TOLERANCE:
            found.append(f"{name}: memory grows with exponent {held:.2f}")
    if "group" in parts:
        of_group = dict(zip(parts["group"].sizes, parts["group"].measured, strict=True))
        small, large = (of_group[n].seconds / of_group[n].sampled_tokens for n in (8, 64))
        if large > small:
            found.append(
                f"group: {1e3 * large:.3f} ms for a sampled token at 64, {1e3 * small:.3f} at 8"
            )
    return found


def table(name: str, part: Part) -> str:
    lines = [
        f"{part.machine}\n",
        f"| {name} | sampled | step | sampling | scoring | learning | ms per sampled token "
        "| GFLOP/s | of the limit | memory |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for size, one in zip(part.sizes, part.measured, strict=True):
        seconds = (
            *(one.seconds, one.sampling_seconds),
            *(one.scoring_seconds, one.learning_seconds),
        )
        lines.append(
            f"| {size:,} | {one.sampled_tokens:,} | "
            + " | ".join(f"{value:.3f} s" for value in seconds)
            + f" | {1e3 * one.seconds / one.sampled_tokens:.3f} | "
            f"{one.flops / one.seconds / 1e9:.1f} | {one.least_seconds / one.seconds:.0%} | "
            f"{one.peak_bytes / 1e6:,.0f} MB |"
        )
    return "\n".join(lines)


def exponent_table(parts: Mapping[str, Part]) -> str:
    columns = {
        "seconds": "time",
        "least_seconds": "work",
        "flops": "operations",
        "sampling_seconds": "sampling",
        "scoring_seconds": "scoring",
        "learning_seconds": "learning",
        "peak_bytes": "memory",
    }
    lines = [f"| exponent of | {' | '.join(columns.values())} |", "|---" * (1 + len(columns)) + "|"]
    for name, part in parts.items():
        cells = " | ".join(f"{part.exponent(column):.2f}" for column in columns)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def draw(parts: Mapping[str, Part], path: Path) -> None:
    figure, panels = plt.subplots(2, 4, figsize=(13, 5.6), layout="constrained")
    for panel, (name, part) in zip(panels.flat, parts.items(), strict=False):
        draw_part(panel, name, part)
    for panel in panels.flat[len(parts) :]:
        panel.set_axis_off()
    panels.flat[0].legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_part(panel: Any, name: str, part: Part) -> None:
    for column, label, style in (
        ("seconds", "step, s", "o-"),
        ("sampling_seconds", "sampling, s", ".-"),
        ("scoring_seconds", "scoring, s", ".-"),
        ("learning_seconds", "learning, s", ".-"),
        ("least_seconds", "the work at the machine's rates, s", "k--"),
    ):
        values = [getattr(one, column) for one in part.measured]
        panel.loglog(part.sizes, values, style, label=label, linewidth=1, markersize=4)
    gigabytes = [one.peak_bytes / 1e9 for one in part.measured]
    panel.loglog(part.sizes, gigabytes, "s:", color="grey", label="memory, GB", markersize=3)
    panel.set_title(
        f"{name}: time ~ n^{part.exponent('seconds'):.2f}, work ~ n^"
        f"{part.exponent('least_seconds'):.2f}, memory ~ n^{part.exponent('peak_bytes'):.2f}",
        fontsize=8,
    )
    panel.tick_params(labelsize=7)
    panel.grid(alpha=0.3)


if __name__ == "__main__":
    main(tyro.cli(ScalingConfig))
