"""One process of a distributed test: `accelerate launch ... worker.py CASE OUTPUT [flags]`.

Every case asserts that it runs in as many processes as the test started.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import common.models.log_probs
import common.training.models_of_a_run
from common.algo.grpo import grpo
from common.algo.objective import Objective
from common.models.log_probs import TokenLogProbs
from common.replay_buffer import Experience, totals_of
from common.training.command_line import run_script
from tests.helpers import REPOSITORY, random_experiences, random_model
from tests.variants import VARIANTS

EXPERIMENT = REPOSITORY / "experiment_accelerate_ddp"
DTYPES = {"float32": torch.float32, "float64": torch.float64}
OBJECTIVES = {"GRPO": None, "Dr. GRPO": VARIANTS["Dr. GRPO"]}
# Case: which of 13 experiences the second rank has (the second one is empty, the third has zero
# advantage), and sequences per micro-batch on each rank.
SPLITS = {
    "even": (range(1, 13, 2), (4, 4)),
    "uneven": (range(9, 13), (4, 4)),
    "one rank has no advantage": ([2], (4, 4)),
    "one rank has nothing": ([], (4, 4)),
    "one rank has nothing to score": ([1], (4, 4)),
    "other micro-batches": (range(6, 13), (2, 5)),
}
LEARNING_RATE = 1e-3


def train_module() -> Any:
    spec = importlib.util.spec_from_file_location("train", EXPERIMENT / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train"] = module
    spec.loader.exec_module(module)
    return module


def buffer(dtype: torch.dtype) -> list[Experience]:
    return random_experiences(13, dtype=dtype)


def objective_of(name: str, config) -> Objective:
    return OBJECTIVES[name] or grpo(config)


def gradients(output: Path) -> None:
    """The gradient of every split, dtype and objective, and weights after five float64 steps."""
    train = train_module()
    config = replace(train.Config(device="cpu"), kl_weight=0.1)
    accelerator, config = train.make_accelerator(config)
    assert accelerator.num_processes == 2
    rank = accelerator.process_index
    results: dict[str, torch.Tensor] = {}
    for dtype_name, dtype in DTYPES.items():
        model = TokenLogProbs(random_model(dtype), temperature=1.0)
        policy = accelerator.prepare(model)
        everything = buffer(dtype)
        for split, (second, sizes) in SPLITS.items():
            share = [e for i, e in enumerate(everything) if (i in second) == (rank == 1)]
            config = replace(config, micro_batch_size=sizes[rank])
            for name in OBJECTIVES:
                policy.zero_grad()
                sums = train.accumulate_gradients(
                    accelerator,
                    objective_of(name, config),
                    policy,
                    share,
                    totals_of(everything),
                    config,
                )
                gradient = torch.cat([p.grad.flatten() for p in model.parameters()])  # pyright: ignore
                results[f"{dtype_name}/{name}/{split}"] = gradient
                results[f"{dtype_name}/{name}/{split}/loss"] = torch.tensor(
                    sums.metrics()["training_step/loss"], dtype=torch.float64
                )
    model = TokenLogProbs(random_model(torch.float64), temperature=1.0)
    policy, optimizer = accelerator.prepare(
        model, torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    )
    everything = buffer(torch.float64)
    share = [e for i, e in enumerate(everything) if (i >= 9) == (rank == 1)]
    for _ in range(5):
        train.accumulate_gradients(
            accelerator, grpo(config), policy, share, totals_of(everything), config
        )
        train.optimizer_step(optimizer, LEARNING_RATE, 1.0, accelerator.clip_grad_norm_)
    results["weights"] = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.save(results, output / f"rank{rank}.pt")


def float64_run() -> None:
    """A whole run, its models in float64."""
    for module, name in (
        (common.training.models_of_a_run, "load_policy"),
        (common.models.log_probs, "load_reference"),
    ):
        load = getattr(module, name)
        setattr(module, name, lambda *arguments, load=load: load(*arguments).double())
    run()


def nan_run() -> None:
    """A whole run in which what the second rank learns from in the third optimizer step is NaN."""
    train = train_module()
    honest, calls = train.accumulate_gradients, 0

    def accumulate_gradients(accelerator, objective, policy, share, totals, config):
        nonlocal calls
        calls += 1
        if calls == 3 and accelerator.process_index == 1:
            share = [replace(e, log_probs_old=e.log_probs_old * torch.nan) for e in share]
        return honest(accelerator, objective, policy, share, totals, config)

    train.accumulate_gradients = accumulate_gradients
    run_script(train.main, train.Config)


def raising_run() -> None:
    """A whole run in which the second rank fails in the fourth optimizer step."""
    train = train_module()
    honest, calls = train.accumulate_gradients, 0

    def accumulate_gradients(*arguments):
        nonlocal calls
        calls += 1
        if calls == 4 and os.environ["RANK"] == "1":
            raise RuntimeError("planted on rank 1")
        return honest(*arguments)

    train.accumulate_gradients = accumulate_gradients
    run_script(train.main, train.Config)


def run() -> None:
    train = train_module()
    run_script(train.main, train.Config)


if __name__ == "__main__":
    case = sys.argv.pop(1)
    if case == "gradients":
        gradients(Path(sys.argv[1]))
    else:
        {"float64": float64_run, "nan": nan_run, "raises": raising_run}[case]()
