"""Every train script on a GPU, and one of them on models of real shapes.

python -m benchmarks.gpu.first_light --output first_light.json       (about ten minutes)

Results are added to the file after every run; a run that fails is recorded and the others go on.
"""

from __future__ import annotations

import json
import platform
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console

from benchmarks.gpu.processes import CardMemory, Script, difference, run, train_script
from benchmarks.machine import processor
from common.repository import REPOSITORY
from common.rewards.transcript import Transcript
from common.run.files import replace_text
from common.tasks.task import Task

PYTHON = (sys.executable,)
LAUNCH = (sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1")

SMALL = (
    *("--max-steps", "3", "--rollouts-per-step", "8", "--group-size", "4"),
    *("--eval-samples", "32", "--eval-interval", "0", "--checkpoint-interval", "0"),
)
# Long enough to be stopped in the middle.
EXACT = (
    *("--max-steps", "4", "--rollouts-per-step", "16", "--group-size", "8"),
    *("--eval-samples", "64", "--eval-interval", "2", "--checkpoint-interval", "2"),
)
# A checkpoint of 1.5 billion weights is 18 GB, so that none is written: runs are stopped instead.
LARGE = (
    *("--rollouts-per-step", "8", "--group-size", "8", "--micro-batch-size", "8"),
    *("--eval-samples", "0", "--max-steps", "100"),
    *("--reward", "benchmarks.gpu.first_light:coin_flip"),
)
LONG = ("--max-completion-tokens", "256", "--max-length", "512")

STAGES = ("experiments", "learning", "shapes", "limits")


@dataclass(frozen=True)
class FirstLightConfig:
    """Which parts to run, and how long they may take."""

    output: Path = Path("first_light.json")
    """File of the results."""
    stages: tuple[str, ...] = STAGES
    """Parts to run, in this order."""
    seconds: float = 900.0
    """No run begins after so many seconds, and one that goes on is stopped 30 seconds later."""
    workers: int = 8
    """Runs of `experiments` side by side; all others have the card to themselves."""
    shapes: tuple[str, ...] = ("0.5B", "1.5B", "3B")
    """Models of `shapes`; `small` on a CPU."""
    device: str = "cuda"
    """Of the train scripts."""


def coin_flip(completion: Transcript, task: Task) -> float:
    """A reward of which there is something to learn, as far as the gradient can tell."""
    return float(random.random() < 0.5)


class Results:
    """What has been measured, on the disk after every run."""

    def __init__(self, config: FirstLightConfig, root: Path, console: Console) -> None:
        self.config = config
        self.root = root
        self._console = console
        self._started = time.perf_counter()
        self._lock = threading.Lock()
        self._record: dict[str, Any] = {"machine": machine(), "runs": {}}
        self.after: Callable[[dict[str, Any]], None] = lambda record: None
        """Called with everything after every measurement."""

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self._started

    @property
    def seconds_left(self) -> float:
        """Until a run is stopped."""
        return self.config.seconds + 30 - self.elapsed

    @property
    def is_late(self) -> bool:
        return self.elapsed > self.config.seconds

    def add(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Measure and write it down; what goes wrong in a measurement is its result."""
        if self.is_late:
            result: dict[str, Any] = {"ended": "not begun"}
        else:
            begun = self.elapsed
            try:
                result = {"begun_s": round(begun, 1), **measure()}
            except (OSError, ValueError, KeyError) as error:
                result = {"ended": repr(error)}
        with self._lock:
            self._record["runs"][name] = result
            self._record["seconds"] = round(self.elapsed, 1)
            text = as_lines(self._record).replace(str(self.root), "ROOT")
            replace_text(self.config.output, text.replace(str(REPOSITORY), "REPOSITORY"))
            self.after(self._record)
            self._console.out(f"{self.elapsed:6.1f} s  {name}: {summary(result)}", highlight=False)
        return result


def as_lines(record: dict[str, Any]) -> str:
    """JSON with the values of a metric on one line."""
    text = json.dumps(record, indent=1)
    return re.sub(r"\[[^\[\]{}\"]*\]", lambda found: " ".join(found[0].split()), text) + "\n"


def summary(result: dict[str, Any]) -> str:
    metrics = result.get("metrics", {})
    parts = [str(result.get("ended", ""))]
    for name in ("time/step_s", "time/rollout_s", "time/train_s", "eval/accuracy"):
        if values := metrics.get(name):
            parts.append(f"{name.split('/')[1]} {values[0]:.2f} .. {values[-1]:.2f}")
    for name in ("rollouts/logprob_mismatch_mean", "rollouts/logprob_mismatch_max"):
        if values := metrics.get(name):
            parts.append(f"{name.rsplit('_', 1)[1]} mismatch {max(values):.2g}")
    if values := metrics.get("system/gpu_memory_reserved_gb"):
        parts.append(f"{max(values):.1f} GB")
    if "different" in result:
        parts.append(f"{result['different']} differ, by {result['largest_relative']:.2g}")
    ended = str(result.get("ended", "exit code 0"))
    if ended != "exit code 0" and not ended.startswith("stopped after 2 steps"):
        parts += result.get("stderr", [])[-3:]
    return ", ".join(parts)


def machine() -> dict[str, Any]:
    names = ("torch", "transformers", "accelerate", "peft", "bitsandbytes", "numpy", "tokenizers")
    cuda = torch.cuda.is_available()
    driver = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
    asked = shutil.which("nvidia-smi") is not None
    return {
        "device": torch.cuda.get_device_name() if cuda else processor(),
        "cuda": torch.version.cuda,
        "driver": subprocess.run(driver, capture_output=True, text=True).stdout.strip()
        if asked
        else None,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in names},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def experiments(results: Results) -> None:
    """Every script and the flags that have something to do with the device, side by side."""
    device = ("--device", results.config.device)
    bfloat16 = ("--dtype", "bfloat16")
    float32 = ("--dtype", "float32")
    lora = ("--lora-rank", "8")
    plain: dict[str, tuple[str, Sequence[str], Sequence[str]]] = {
        "learning, float32": ("experiment_base", PYTHON, (*device, *float32)),
        "drgrpo": ("experiment_drgrpo", PYTHON, (*device, *SMALL)),
        "accelerate": ("experiment_accelerate", LAUNCH, (*device, *SMALL)),
        "accelerate_ddp": ("experiment_accelerate_ddp", LAUNCH, (*device, *SMALL)),
        "tool_calling": ("experiment_multiturn_tool_calling", PYTHON, (*device, *SMALL)),
        "qa": ("experiment_multiturn_qa", PYTHON, (*device, *SMALL)),
        "base": ("experiment_base", PYTHON, (*device, *SMALL)),
        "base, float32": ("experiment_base", PYTHON, (*device, *float32, *SMALL)),
        "figures": (
            "experiment_base",
            PYTHON,
            (*device, "--figures-interval", "1", "--histogram-interval", "1", *SMALL),
        ),
        "eager attention": ("experiment_base", PYTHON, (*device, "--attn", "eager", *SMALL)),
        "gradient checkpointing": (
            "experiment_base",
            PYTHON,
            (*device, "--gradient-checkpointing", *SMALL),
        ),
        "dynamic sampling": (
            "experiment_base",
            PYTHON,
            (*device, "--dynamic-sampling", "2", "--overlong", "penalty", "--top-p", "0.9", *SMALL),
        ),
        "LoRA, 4 bits": ("experiment_base", PYTHON, (*device, *lora, "--load-in-4bit", *SMALL)),
        "dry run": ("experiment_base", PYTHON, (*device, "--dry-run", *SMALL)),
        "exact, straight": ("experiment_base", PYTHON, (*device, *bfloat16, *EXACT)),
        "exact, again": ("experiment_base", PYTHON, (*device, *bfloat16, *EXACT)),
        "exact, accelerate": ("experiment_accelerate", LAUNCH, (*device, *bfloat16, *EXACT)),
        "exact, float32": ("experiment_base", PYTHON, (*device, *float32, *EXACT)),
        "exact, float32 again": ("experiment_base", PYTHON, (*device, *float32, *EXACT)),
    }
    with ThreadPoolExecutor(results.config.workers) as pool:
        futures = [
            *(
                pool.submit(resumed, results, name, (*device, *dtype, *EXACT))
                for name, dtype in (
                    ("exact, resumed", bfloat16),
                    ("exact, float32 resumed", float32),
                )
            ),
            *(
                pool.submit(train, results, name, experiment, flags, python=python)
                for name, (experiment, python, flags) in plain.items()
            ),
            pool.submit(merged, results, (*device, *lora, *SMALL)),
            pool.submit(
                command, results, "chat", "common.training.ask", "tiny", "--question", "2+3-4"
            ),
        ]
        for future in futures:
            future.result()
    for one, other in (
        ("exact, straight", "exact, again"),
        ("exact, straight", "exact, resumed"),
        ("exact, float32", "exact, float32 again"),
        ("exact, float32", "exact, float32 resumed"),
    ):
        files = [rows_of(results, "experiment_base", name) for name in (one, other)]
        results.add(f"{other} = {one}", lambda files=files: difference(*files))
    accelerated = rows_of(results, "experiment_accelerate", "exact, accelerate")
    straight = rows_of(results, "experiment_base", "exact, straight")
    results.add("exact, accelerate = exact, straight", lambda: difference(straight, accelerated))


def run_name(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "_")


def rows_of(results: Results, experiment: str, name: str) -> Path:
    return results.root / experiment / run_name(name) / "metrics.jsonl"


def train(
    results: Results,
    name: str,
    experiment: str,
    flags: Sequence[str],
    *,
    python: Sequence[str] = PYTHON,
    stop_after: int | None = None,
    memory: CardMemory | None = None,
    run_of: str | None = None,
    noted: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run a train script and write down what came out, beside what is `noted`; `run_of` names
    another's run to go on."""
    script = train_script(
        experiment,
        run_name(run_of or name),
        results.root,
        flags,
        max(1.0, results.seconds_left),
        python=python,
        stop_after=stop_after,
    )
    return results.add(name, lambda: {**run(script, memory), **(noted or {})})


def resumed(results: Results, name: str, flags: Sequence[str]) -> None:
    """Kill a run after its third step, and resume it from the checkpoint of the second."""
    train(results, f"{name}, killed", "experiment_base", flags, stop_after=3, run_of=name)
    train(results, name, "experiment_base", (*flags, "--resume"))


def merged(results: Results, flags: Sequence[str]) -> None:
    """Train adapters and write them and their base as one model."""
    train(results, "LoRA", "experiment_base", flags)
    adapters = results.root / "experiment_base" / run_name("LoRA")
    command(results, "merge LoRA", "common.run.merge_lora", str(adapters))


def command(results: Results, name: str, module: str, *arguments: str) -> None:
    script = Script([sys.executable, "-m", module, *arguments], REPOSITORY, results.seconds_left)
    results.add(name, lambda: run(script))


def learning(results: Results) -> None:
    """The defaults, as on a CPU."""
    with (memory := CardMemory()).watched():
        device = ("--device", results.config.device)
        train(results, "learning, bfloat16", "experiment_base", device, memory=memory)


def shapes(results: Results) -> None:
    """Two steps of each kind of training that the README's table of memory has."""
    models = results.root / "models"
    checkpointing, lora = "--gradient-checkpointing", ("--lora-rank", "16")
    small, medium, large = (results.config.shapes * 3)[:3]
    kinds: list[tuple[str, str, Sequence[str]]] = [
        ("full", small, ()),
        ("full", medium, ()),
        ("LoRA", medium, lora),
        ("LoRA", large, lora),
        ("full, checkpointing", medium, (checkpointing,)),
        ("LoRA, 4 bits", medium, (*lora, "--load-in-4bit")),
        ("full, checkpointing", large, (checkpointing, "--micro-batch-size", "4")),
    ]
    with (memory := CardMemory()).watched():
        for kind, model, flags in kinds:
            train(
                results,
                f"{model}, {kind}",
                "experiment_base",
                (*model_flags(results, models / model), *LARGE, *LONG, *flags),
                stop_after=2,
                memory=memory,
            )


def model_flags(results: Results, directory: Path) -> tuple[str, ...]:
    return ("--device", results.config.device, "--model-name", str(directory))


def limits(results: Results) -> None:
    """What a checkpoint costs, and what is said when memory runs out."""
    directory = results.root / "models" / results.config.shapes[0]
    brief = ("--max-completion-tokens", "16", "--max-length", "512")
    flags = (*model_flags(results, directory), *LARGE, *brief)
    train(
        results,
        "checkpoint",
        "experiment_base",
        (*flags, "--checkpoint-interval", "1", "--keep-checkpoints", "1"),
        stop_after=2,
    )
    if not torch.cuda.is_available():
        return
    holding = subprocess.Popen(
        [sys.executable, "-c", HOLD, "8e9"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holding.stdout is not None
    holding.stdout.readline()
    try:
        train(results, "out of memory", "experiment_base", flags, stop_after=2)
    finally:
        holding.kill()
        holding.wait()


# Takes all memory of the card but so many bytes.
HOLD = """
import sys, torch
free, _ = torch.cuda.mem_get_info()
held = torch.empty(free - int(float(sys.argv[1])), dtype=torch.uint8, device="cuda")
sys.stdout.write("held\\n")
sys.stdout.flush()
sys.stdin.read()
"""


def make_models(results: Results) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu.random_models", str(results.root / "models")]
    names = list(dict.fromkeys(results.config.shapes))
    results.add("models", lambda: run(Script([*command, *names], REPOSITORY, 200)))


def main(config: FirstLightConfig) -> None:
    console = Console(soft_wrap=True, highlight=False)
    with tempfile.TemporaryDirectory() as directory:
        results = Results(config, Path(directory), console)
        making = threading.Thread(target=make_models, args=[results])
        making.start()
        stages = {
            "experiments": experiments,
            "learning": learning,
            "shapes": shapes,
            "limits": limits,
        }
        for stage in config.stages:
            if stage != "experiments":
                making.join()
            stages[stage](results)
        making.join()


if __name__ == "__main__":
    main(tyro.cli(FirstLightConfig))
