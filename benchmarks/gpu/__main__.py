"""All that a first GPU can tell, in one command.

python -m benchmarks.gpu --minutes 8

What says most comes first. Two files, a JSON and a page of it, are written anew after every
measurement, so that a run that is cut off keeps what it has. `--device cpu --tiny` tries all of it
where there is no GPU, in two minutes.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console

from benchmarks.gpu.first_light import (
    LAUNCH,
    LONG,
    PYTHON,
    FirstLightConfig,
    Results,
    limits,
    model_flags,
    rows_of,
    train,
)
from benchmarks.gpu.processes import CardMemory, Script, difference, run
from common.repository import REPOSITORY
from common.run.files import replace_text

# Seconds at the end in which nothing new is begun.
TO_FINISH = 45
# Which makes a group of one process, of NCCL on a GPU; `accelerate launch` makes none of one.
TORCHRUN = (*PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1")
SCRIPTS = {
    "experiment_base": PYTHON,
    "experiment_drgrpo": PYTHON,
    "experiment_accelerate": LAUNCH,
    "experiment_accelerate_ddp": TORCHRUN,
    "experiment_multiturn_tool_calling": PYTHON,
    "experiment_multiturn_qa": PYTHON,
}
# Rows of the README's table: model, training, flags, gigabytes that it says.
ROWS = (
    ("0.5B", "full", ("--micro-batch-size", "8"), 18),
    ("1.5B", "LoRA", ("--lora-rank", "16", "--micro-batch-size", "8"), 18),
    ("1.5B", "full", ("--micro-batch-size", "8"), 50),
    ("1.5B", "full", ("--micro-batch-size", "8", "--gradient-checkpointing"), 36),
    ("3B", "LoRA", ("--lora-rank", "16", "--micro-batch-size", "8"), 29),
    ("3B", "full", ("--micro-batch-size", "4", "--gradient-checkpointing"), 68),
)
OF_ROWS = (
    *("--rollouts-per-step", "8", "--group-size", "8", "--eval-samples", "0", "--max-steps", "2"),
    *("--checkpoint-interval", "0", "--reward", "benchmarks.gpu.first_light:coin_flip"),
)
# Packages without which a flag is of no use, and the flags.
OPTIONAL = {
    "bitsandbytes": ("--lora-rank", "16", "--load-in-4bit"),
    "flash_attn": ("--attn", "flash_attention_2"),
}


@dataclass(frozen=True)
class DayConfig:
    """What a GPU does with this project."""

    minutes: float = 8.0
    """After which nothing is begun, and all that runs is stopped."""
    output: Path = Path("benchmarks/gpu/day")
    """Files of the results, without .json and .md."""
    device: str = "cuda"
    """Of all runs."""
    tiny: bool = False
    """A model of nothing in place of those of real shapes, and fewer steps."""


@dataclass(frozen=True)
class Day:
    """What is measured, and where it goes."""

    config: DayConfig
    results: Results
    models: Path

    @property
    def device(self) -> tuple[str, str]:
        return ("--device", self.config.device)

    def model(self, name: str) -> Path:
        return self.models / ("small" if self.config.tiny else name)


def make_models(day: Day) -> None:
    names = ("small",) if day.config.tiny else ("0.5B", "1.5B", "3B")
    command = [sys.executable, "-m", "benchmarks.gpu.random_models", str(day.models), *names]
    day.results.add("models", lambda: run(Script(command, REPOSITORY, day.results.seconds_left)))


def scripts(day: Day) -> None:
    """Every train script learns, all side by side; one of them in float32 as well."""
    steps = ("--max-steps", "2" if day.config.tiny else "12")
    small = ("--rollouts-per-step", "4", "--eval-samples", "8") if day.config.tiny else ()
    flags = (*day.device, *steps, *small, "--checkpoint-interval", "0")
    runs: dict[str, tuple[str, Sequence[str], Sequence[str]]] = {
        name: (name, python, flags) for name, python in SCRIPTS.items()
    }
    runs["float32"] = ("experiment_base", PYTHON, (*flags, "--dtype", "float32"))
    with ThreadPoolExecutor(1 if day.config.tiny else len(runs)) as pool:
        futures = [
            pool.submit(train, day.results, name, experiment, given, python=python)
            for name, (experiment, python, given) in runs.items()
        ]
        for future in futures:
            future.result()


def parts(day: Day) -> None:
    """Decoding, learning and handing weights over, with a model of a real shape."""
    for name in ("0.5B",) if day.config.tiny else ("1.5B", "0.5B"):
        output = day.results.root / f"parts-{name}.json"
        command = [sys.executable, "-m", "benchmarks.gpu.parts", str(day.model(name))]
        command += ["--output", str(output), *(("--tokens", "4") if day.config.tiny else ())]

        def measure(command: Sequence[str] = command, output: Path = output) -> dict[str, Any]:
            found = run(Script(command, REPOSITORY, day.results.seconds_left))
            text = output.read_text(encoding="utf-8") if output.is_file() else "{}"
            return {**found, "parts": json.loads(text)}

        day.results.add(f"parts of {name}", measure)


def rows(day: Day) -> None:
    """Two steps of each row of the README's table of memory."""
    with (memory := CardMemory()).watched():
        for name, kind, flags, estimate in ROWS[:2] if day.config.tiny else ROWS:
            given = (*model_flags(day.results, day.model(name)), *OF_ROWS, *flags)
            lengths = ("--max-completion-tokens", "8", "--max-length", "256")
            given += lengths if day.config.tiny else LONG
            title = (
                f"{name}, {kind}{', checkpointing' if '--gradient-checkpointing' in flags else ''}"
            )
            noted = {"estimated_gb": estimate}
            train(day.results, title, "experiment_base", given, memory=memory, noted=noted)


def exact(day: Day) -> None:
    """Whether the same run at a real size is the same again, to the last digit."""
    given = (*model_flags(day.results, day.model("0.5B")), *OF_ROWS)
    given += ("--max-completion-tokens", "16", "--max-length", "256", "--micro-batch-size", "8")
    for name in ("real size, once", "real size, again"):
        train(day.results, name, "experiment_base", given)
    files = [rows_of(day.results, "experiment_base", f"real size, {n}") for n in ("once", "again")]
    day.results.add("again = once", lambda: difference(*files))


def optional(day: Day) -> None:
    """What packages allow that need not be there."""
    for package, flags in OPTIONAL.items():
        if find_spec(package):
            given = (*model_flags(day.results, day.model("1.5B")), *OF_ROWS, *LONG, *flags)
            train(day.results, package, "experiment_base", (*given, "--micro-batch-size", "4"))
        else:
            day.results.add(package, lambda: {"ended": "not installed"})


def out_of_memory(day: Day) -> None:
    """What is said when memory runs out, and what a checkpoint costs."""
    limits(day.results)


STAGES: tuple[Callable[[Day], None], ...] = (
    *(make_models, scripts, parts, out_of_memory, optional, rows, exact),
)


def page_of(record: Mapping[str, Any]) -> str:
    """The record as tables."""
    versions = ", ".join(
        f"{name} {number}" for name, number in record["machine"]["versions"].items()
    )
    lines = [
        "# A day on a GPU",
        "",
        f"`python -m benchmarks.gpu`: {record['machine']['device']}, {versions}; "
        f"{record.get('seconds', 0):.0f} s.",
        "",
        "| run | ended | step, s | rollout, s | train, s | torch holds, GB | of the card, GB | "
        "estimated, GB | held out | mismatch, mean and largest, nats |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, result in record["runs"].items():
        if "metrics" in result:
            lines.append(f"| {name} | {' | '.join(_cells(result))} |")
    for name, result in record["runs"].items():
        if "metrics" not in result:
            lines += ["", f"**{name}**: {result.get('ended', '')}"]
            lines += [f"- {part}: {found}" for part, found in result.get("parts", {}).items()]
            lines += [f"- {k}: {v}" for k, v in result.items() if k in ("different", "shared")]
            lines += [f"- {line}" for line in result.get("stderr", [])[-1:]]
    return "\n".join(lines) + "\n"


def _cells(result: Mapping[str, Any]) -> list[str]:
    metrics = result["metrics"]

    def last(name: str, form: str) -> str:
        return form.format(metrics[name][-1]) if metrics.get(name) else ""

    right = metrics.get("eval/accuracy", [])
    return [
        str(result["ended"]),
        *(last(f"time/{name}_s", "{:.2f}") for name in ("step", "rollout", "train")),
        last("system/gpu_memory_reserved_gb", "{:.1f}"),
        f"{peak / 1000:.1f}" if (peak := result.get("card_peak_mb")) else "",
        str(result.get("estimated_gb", "")),
        f"{right[0]:.1%} → {right[-1]:.1%}" if right else "",
        f"{last('rollouts/logprob_mismatch_mean', '{:.2g}')}, "
        f"{last('rollouts/logprob_mismatch_max', '{:.2g}')}",
    ]


def main(config: DayConfig) -> None:
    if config.device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no GPU here; --device cpu --tiny tries this without one")
    console = Console(soft_wrap=True, highlight=False)
    json_file, page = config.output.with_suffix(".json"), config.output.with_suffix(".md")
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        shapes = ("small",) if config.tiny else ("0.5B", "1.5B", "3B")
        seconds = 60 * config.minutes - TO_FINISH
        settings = FirstLightConfig(
            output=json_file, seconds=seconds, shapes=shapes, device=config.device
        )
        day = Day(config, Results(settings, root, console), root / "models")
        day.results.after = lambda record: replace_text(page, page_of(record))
        for stage in STAGES:
            stage(day)


if __name__ == "__main__":
    main(tyro.cli(DayConfig, description=__doc__))
