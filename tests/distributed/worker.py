"""One process of a distributed test: `accelerate launch ... worker.py then CASE flags then ...`.

The cases are done one after another. All but `gradients` run the train script of the experiment
that the test was started in.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, groupby
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch.distributed.tensor import DTensor

import common.models.log_probs
import common.training.command_line
import common.training.policy_and_reference
from common.algo.kl import kl_divergence_k3
from common.algo.objective import Extras, Objective
from common.flags.train_config import TrainConfig, resolve_defaults
from common.logger.metrics import RunStatistics
from common.logger.timer import Timer
from common.models.log_probs import TokenLogProbs
from common.models.token_tree import TokenTree
from common.replay_buffer import Experience, ExperienceBatch
from common.training.command_line import run_script
from common.training.distributed import AcceleratedRanks, make_accelerator
from common.training.learner import Learner, OptimizerBatch
from common.training.ranks import Ranks
from common.training.sharding import Mesh, ShardedRanks, shard
from tests.helpers import random_experiences, random_model
from tests.variants import VARIANTS

DTYPES = {"float32": torch.float32, "float64": torch.float64}
OBJECTIVES = ("grpo", "dr_grpo")
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
KL_WEIGHT, ENTROPY_WEIGHT = 0.1, 0.05


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    experiment: ClassVar[str] = "worker"


class SharedAs(Ranks):
    """Ranks of which the second has just these experiences."""

    second: Collection[int] = ()

    def share(self, items: Sequence[Any]) -> list[Any]:
        everything = list(chain.from_iterable(items))
        second = [one for one in everything if one.task_id in self.second]
        others = [one for one in everything if one.task_id not in self.second]
        if self.index == 1:
            return [second]
        return [others if self.index == 0 else []]


class SharedAlike(SharedAs, AcceleratedRanks):
    """Those each of which has a whole model."""


class SharedInParts(SharedAs, ShardedRanks):
    """Those each of which has a part of it."""


def train_module() -> Any:
    """The script of the experiment that the test was started in."""
    spec = importlib.util.spec_from_file_location("train", "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train"] = module
    sys.path.insert(0, str(Path.cwd()))
    spec.loader.exec_module(module)
    return module


def buffer(dtype: torch.dtype) -> list[Experience]:
    return random_experiences(13, dtype=dtype)


def make_policy(dtype: torch.dtype) -> TokenLogProbs:
    return TokenLogProbs(random_model(dtype), temperature=1.0, learns_entropy=True)


def make_learner(
    model: TokenLogProbs, ranks: Ranks, micro_batch_size: int, extras: Extras | None = None
) -> Learner:
    """One that steps with a constant rate and a bounded norm."""
    config = resolve_defaults(
        Config(micro_batch_size=micro_batch_size, lr=LEARNING_RATE, warmup_fraction=0),
        bundled=True,
    )
    config = replace(config, adam_beta2=0.999, weight_decay=0.01)
    return Learner(
        config, model, extras or Extras(), RunStatistics(), Timer(torch.device("cpu")), ranks
    )


def accumulate(
    objective: Objective, policy: torch.nn.Module, batch: OptimizerBatch, scale: int = 1
) -> None:
    """The loss of the train scripts, micro-batch by micro-batch."""
    for micro in batch.micro_batches():
        log_probs, entropy = policy(
            micro.token_ids, micro.attention_mask, micro.sampled, micro.kept
        )
        tokens = micro.tokens(log_probs, batch.totals)
        log_ratio = objective.log_ratio(log_probs, tokens.log_probs_old, tokens.mask)
        surrogate, clipped = objective.surrogate(log_ratio, tokens)
        policy_loss = objective.aggregate(surrogate, tokens.mask, batch.totals)
        assert tokens.log_probs_ref is not None
        kl = kl_divergence_k3(log_probs, tokens.log_probs_ref, tokens.mask)
        kl_loss = KL_WEIGHT * objective.aggregate(kl, tokens.mask, batch.totals)
        bonus = ENTROPY_WEIGHT * objective.aggregate(entropy, tokens.mask, batch.totals)
        (scale * (policy_loss + kl_loss - bonus)).backward()
        batch.record(micro, log_ratio, policy_loss, kl_loss, entropy, clipped, kl, bonus=bonus)


def gradients() -> None:
    """The gradient of every split, dtype and objective, by the session's own sum and by DDP's, and
    weights after five float64 steps."""
    output = Path(sys.argv[1])
    accelerator, _ = make_accelerator(resolve_defaults(Config(device="cpu"), bundled=True))
    ranks = SharedAlike(accelerator)
    assert ranks.count == 2
    results: dict[str, torch.Tensor | None] = {}
    # Of nothing, so that steps which count the loss leave the weights as they are.
    idle = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    for dtype_name, dtype in DTYPES.items():
        model = make_policy(dtype)
        wrapped = accelerator.prepare(model)
        for split, (ranks.second, sizes) in SPLITS.items():
            learner = make_learner(model, ranks, sizes[ranks.index])
            for name in OBJECTIVES:
                for way in ("own", "ddp"):
                    model.zero_grad()
                    batch = OptimizerBatch(learner, buffer(dtype))
                    policy, scale = (model, 1) if way == "own" else (wrapped, ranks.count)
                    accumulate(VARIANTS[name], policy, batch, scale)
                    if way == "own":
                        ranks.sum_gradients(model.parameters())
                    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])  # pyright: ignore
                    batch.step(idle, reduced=True)
                    key = f"{dtype_name}/{name}/{split}/{way}"
                    results[key] = gradient
                    loss = learner.steps[-1].metrics()["training_step/loss"]
                    results[f"{key}/loss"] = torch.tensor(loss, dtype=torch.float64)
    model = make_policy(torch.float64)
    ranks.second = range(9, 13)
    learner = make_learner(model, ranks, 4)
    for _ in range(5):
        batch = OptimizerBatch(learner, buffer(torch.float64))
        accumulate(VARIANTS["grpo"], model, batch)
        batch.step(learner.optimizer)
    results["weights"] = torch.cat([p.detach().flatten() for p in model.parameters()])
    scarce, absent = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    if ranks.index == 1:
        scarce.grad = torch.full((2,), 3.0)
    ranks.sum_gradients([scarce, absent])
    results["scarce"], results["absent"] = scarce.grad, absent.grad
    torch.save(results, output / f"rank{ranks.index}.pt")


def sharded() -> None:
    """As `gradients`, of a model of which each rank has a part, on any number of ranks."""
    output = Path(sys.argv[1])
    accelerator, _ = make_accelerator(resolve_defaults(Config(device="cpu"), bundled=True))
    ranks = SharedInParts(accelerator)
    assert ranks.count == int(sys.argv[2])
    within = int(sys.argv[3]) if len(sys.argv) > 3 else None
    mesh = Mesh(torch.device("cpu"), ranks, within)
    results: dict[str, torch.Tensor] = {}
    idle = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    for dtype_name, dtype in DTYPES.items():
        model = make_policy(dtype)
        shard(model, mesh, ranks)
        for split, (ranks.second, sizes) in SPLITS.items():
            learner = make_learner(model, ranks, sizes[min(ranks.index, 1)])
            for name in OBJECTIVES:
                model.zero_grad()
                batch = OptimizerBatch(learner, buffer(dtype))
                accumulate(VARIANTS[name], model, batch)
                ranks.sum_gradients(model.parameters())
                gradients = [ranks.whole(p.grad) for p in model.parameters() if p.grad is not None]
                batch.step(idle, reduced=True)
                key = f"{dtype_name}/{name}/{split}"
                results[key] = torch.cat([gradient.flatten() for gradient in gradients])
                loss = learner.steps[-1].metrics()["training_step/loss"]
                results[f"{key}/loss"] = torch.tensor(loss, dtype=torch.float64)
    model = make_policy(torch.float64)
    shard(model, mesh, ranks)
    ranks.second = range(9, 13)
    learner = make_learner(model, ranks, 4)
    for _ in range(5):
        batch = OptimizerBatch(learner, buffer(torch.float64))
        accumulate(VARIANTS["grpo"], model, batch)
        batch.step(learner.optimizer)
    weights = [ranks.whole(p.detach()).flatten() for p in model.parameters()]
    results["weights"] = torch.cat(weights)
    results |= of_unequal_trees(mesh, ranks)
    results |= bytes_kept(mesh, ranks)
    torch.save(results, output / f"rank{ranks.index}.pt")


def of_unequal_trees(mesh: Mesh, ranks: ShardedRanks) -> dict[str, torch.Tensor]:
    """The gradient where one rank alone has rows that begin alike, and where one process has all
    rows of all ranks."""
    rng = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 512, (2, 300), generator=rng) for _ in range(ranks.count)]
    rows[0] = torch.cat([rows[0][:1].repeat(4, 1)[:, :280], rows[0].repeat(2, 1)[:, :20]], dim=1)
    rows[0][:, 290:] = torch.randint(0, 512, (4, 10), generator=rng)

    def learn(policy: TokenLogProbs, token_ids: torch.Tensor) -> None:
        everything = torch.ones_like(token_ids, dtype=torch.bool)
        scored = torch.arange(token_ids.shape[1]).expand(token_ids.shape) >= 270
        policy(token_ids, everything, scored)[0].sum().backward()

    whole, parts = make_policy(torch.float64), make_policy(torch.float64)
    for token_ids in rows:
        learn(whole, token_ids)
    shard(parts, mesh, ranks)
    learn(parts, rows[ranks.index])
    ranks.sum_gradients(parts.parameters())
    numbers = [
        [len(TokenTree.of(list(token_ids.numpy())).passes) for token_ids in rows],
        [ranks.whole(p.grad).flatten() for p in parts.parameters() if p.grad is not None],
        [p.grad.flatten() for p in whole.parameters() if p.grad is not None],
    ]
    return {
        "tree passes": torch.tensor(numbers[0]),
        "tree": torch.cat(numbers[1]),
        "tree expected": torch.cat(numbers[2]),
    }


def bytes_kept(mesh: Mesh, ranks: ShardedRanks) -> dict[str, torch.Tensor]:
    """Of all that a learner keeps of a model and its reference after a step, here and in one
    process."""
    found = {}
    for name, is_whole in (("bytes of the whole", True), ("bytes", False)):
        policy, reference = make_policy(torch.float32), make_policy(torch.float32)
        if not is_whole:
            shard(policy, mesh, ranks)
            shard(reference, mesh, ranks)
        optimizer = torch.optim.AdamW(policy.parameters(), fused=True)
        token_ids = torch.arange(40)[None]
        everything = torch.ones_like(token_ids, dtype=torch.bool)
        scored = everything.cumsum(dim=-1) > 1
        with torch.no_grad():
            reference(token_ids, everything, scored)
        policy(token_ids, everything, scored)[0].sum().backward()
        gradients = [p.grad for p in policy.parameters()]
        optimizer.step()
        kept = [
            *(*policy.parameters(), *reference.parameters(), *gradients),
            *(value for state in optimizer.state.values() for value in state.values()),
        ]
        local = [t.to_local() if isinstance(t, DTensor) else t for t in kept if t is not None]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in local}
        found[name] = torch.tensor(sum(storages.values()))
    return found


def use_float64(patch: pytest.MonkeyPatch) -> None:
    """Load the models of runs in float64."""
    for module, name in (
        (common.training.policy_and_reference, "load_policy"),
        (common.models.log_probs, "load_reference"),
    ):
        load = getattr(module, name)
        patch.setattr(module, name, lambda *arguments, load=load: load(*arguments).double())


def spoil(
    patch: pytest.MonkeyPatch, step: int, change: Callable[[ExperienceBatch], ExperienceBatch]
) -> None:
    """Change what the second rank learns from in one optimizer step."""
    honest, steps = OptimizerBatch.micro_batches, count(1)

    def micro_batches(self: OptimizerBatch) -> Iterator[ExperienceBatch]:
        is_spoiled = next(steps) == step and os.environ["RANK"] == "1"
        return map(change, honest(self)) if is_spoiled else honest(self)

    patch.setattr(OptimizerBatch, "micro_batches", micro_batches)


def float64_run() -> None:
    """A whole run, its models in float64."""
    with pytest.MonkeyPatch.context() as patch:
        use_float64(patch)
        run()


def nan_run() -> None:
    """A whole run in which what the second rank learns from in the third optimizer step is NaN."""

    def broken(micro: ExperienceBatch) -> ExperienceBatch:
        return replace(micro, log_probs_ref=micro.log_probs_sampler * torch.nan)

    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, 3, broken)
        run()


def raising_run() -> None:
    """A whole run in which the second rank fails in the fourth optimizer step."""

    def failing(micro: ExperienceBatch) -> ExperienceBatch:
        raise RuntimeError("planted on rank 1")

    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, 4, failing)
        run()


def refused_run() -> None:
    """A run that no rank starts; each says why, as none is ended for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common.training.command_line, "SECONDS_TO_BE_ENDED", 0.0)
        with pytest.raises(SystemExit) as stop:
            run()
    assert stop.value.code == 2


def run() -> None:
    """A whole run."""
    train = train_module()
    run_script(train.main, train.Config)


CASES = {
    "gradients": gradients,
    "sharded": sharded,
    "float64": float64_run,
    "nan": nan_run,
    "raises": raising_run,
    "refused": refused_run,
    "run": run,
}

if __name__ == "__main__":
    for is_between, words in groupby(sys.argv[1:], lambda word: word == "then"):
        if not is_between:
            case, *sys.argv[1:] = words
            CASES[case]()
