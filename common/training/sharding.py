"""Weights, gradients and the optimizer's state of a policy, spread over the processes of a run.

torch's `fully_shard` does it, on the process group that Accelerate made (ZeRO stage 3, arXiv
1910.02054): each rank holds a part of every weight, and has a layer whole only while it computes
that layer. So all ranks go through the layers in step.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from common.errors import UserError
from common.flags.train_config import TrainConfig
from common.models.load import hold_linear_maps_in_bfloat16
from common.models.log_probs import TokenLogProbs, chunk_elements_on, reference_log_probs
from common.models.vocabulary import num_tokens
from common.replay_buffer import (
    LogProbModel,
    MicroBatchLimits,
    blank_experience,
    score_tokens,
)
from common.run.checkpoint import PARTS, Checkpoint
from common.training.distributed import AcceleratedRanks
from common.training.learner import OffloadedAdamW
from common.training.policy_and_reference import Models, load_models
from common.training.ranks import Ranks, Result

if TYPE_CHECKING:
    import transformers


class ShardedRanks(AcceleratedRanks):
    """Ranks each of which holds a part of the model."""

    in_step = True

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """As `Ranks.sum_gradients`, of gradients that are means over ranks already."""
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(self.count)

    def whole(self, tensor: Tensor) -> Tensor:
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def most(self, count: int) -> int:
        """The largest of the counts of all ranks."""
        counts = torch.tensor(count, device=self.device)
        dist.all_reduce(counts, dist.ReduceOp.MAX)
        return int(counts)


class Mesh:
    """Which ranks have a whole model together; each such set of neighbours has a copy."""

    def __init__(self, device: torch.device, ranks: ShardedRanks, within: int | None) -> None:
        """Raises `UserError` for ranks that are no multiple of those of a copy."""
        self.size = within or ranks.count
        """Ranks that have a copy together."""
        if ranks.count % self.size:
            raise UserError(
                f"--shard-within {self.size}: {ranks.count} processes are no multiple of it; let "
                "it be the processes of a machine"
            )
        self.place = ranks.index % self.size
        """That of this rank among them."""
        self.is_first_copy = ranks.index < self.size
        shape, names = (ranks.count // self.size, self.size), ("replicate", "shard")
        if ranks.count == self.size:
            shape, names = shape[1:], names[1:]
        self.devices = init_device_mesh(device.type, shape, mesh_dim_names=names)

    def rows(self, count: int) -> slice:
        """Those of so many that this rank has, as `torch.chunk` divides them."""
        most = -(-count // self.size)
        return slice(self.place * most, (self.place + 1) * most)


@dataclass(frozen=True)
class ShardedModels(Models):
    """A policy and a reference in parts, and a whole copy of the policy to sample with."""

    ranks: ShardedRanks
    mesh: Mesh

    @torch.no_grad()
    def follow(self) -> None:
        """Take the weights over, one after another."""
        theirs = dict(self.policy.model.named_parameters())
        for name, own in self.sampler.model.named_parameters():
            if theirs[name].requires_grad:
                own.copy_(self.ranks.whole(theirs[name]))

    def to_be_saved(
        self, optimizer: torch.optim.Optimizer, parts: Path
    ) -> tuple[dict[str, Tensor] | None, dict[str, Any]]:
        """As `Models.to_be_saved`. What a rank's optimizer remembers is a file of its own."""

        def write() -> None:
            if self.mesh.is_first_copy:
                try:
                    parts.mkdir(parents=True, exist_ok=True)
                    part = optimizer_part(optimizer, self.policy)
                    torch.save(part, parts / _file(self.mesh.place))
                except (OSError, RuntimeError) as error:
                    shutil.rmtree(parts, ignore_errors=True)
                    raise UserError(
                        f"{parts}: cannot write a part of the checkpoint ({error}); make room, "
                        "then continue with --resume"
                    ) from None

        def check() -> None:
            if len(_files(parts)) != self.mesh.size:
                raise UserError(
                    f"{parts}: {len(_files(parts))} of {self.mesh.size} parts of the checkpoint "
                    "are here; let --log-dir be a directory that all machines see"
                )

        self.ranks.each(write)
        self.ranks.first(check)
        return self._whole_weights(), {}

    @torch.no_grad()
    def _whole_weights(self) -> dict[str, Tensor]:
        """What a checkpoint holds, on the CPU of the first rank: weights that are trained, each by
        one name, and what a model keeps beside its weights."""
        model = self.policy.model
        names = {name for name, p in model.named_parameters() if p.requires_grad}
        names |= {*model.state_dict()} - {
            n for n, _ in model.named_parameters(remove_duplicate=False)
        }
        found = {}
        for name, part in model.state_dict().items():
            if name in names:
                whole = self.ranks.whole(part)
                if self.ranks.index == 0:
                    found[name] = whole.cpu()
        return found

    def restore_optimizer(self, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
        """As `Models.restore_optimizer`, from the parts of as many ranks as there were."""
        parts = [
            torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            for file in _files(checkpoint.path / PARTS)
        ]
        is_offloaded = isinstance(optimizer, OffloadedAdamW)
        for name, parameter in _parameters(self.policy):
            here = self.mesh.rows(len(parameter))
            for key, value in parts[0].get(name, {}).items():
                if value.ndim:
                    local = torch.cat([part[name][key] for part in parts])[here].clone()
                    value = _as_part(local.to(parameter.device), parameter)
                    value = value.to("cpu") if is_offloaded else value
                else:
                    value = value.to(parameter.device)
                optimizer.state[parameter][key] = value


def _file(place: int) -> str:
    return f"optimizer_{place:05d}.pt"


def _files(directory: Path) -> list[Path]:
    return sorted(directory.glob("optimizer_*.pt"))


def _as_part(local: Tensor, like: DTensor) -> DTensor:
    """A rank's part of what is as large as a weight."""
    return DTensor.from_local(
        local,
        like.device_mesh,
        like.placements,
        shape=like.shape,
        stride=like.stride(),
    )


def _parameters(policy: TokenLogProbs) -> Iterator[tuple[str, DTensor]]:
    for name, parameter in policy.named_parameters():
        assert isinstance(parameter, DTensor)
        yield name, parameter


def optimizer_part(
    optimizer: torch.optim.Optimizer, policy: TokenLogProbs
) -> dict[str, dict[str, Tensor]]:
    """What the optimizer remembers of this rank's part of each weight, by the weight's name."""
    return {
        name: {
            key: value.to_local() if isinstance(value, DTensor) else value
            for key, value in optimizer.state[parameter].items()
        }
        for name, parameter in _parameters(policy)
        if parameter in optimizer.state
    }


def load_sharded_models(
    config: TrainConfig,
    device: torch.device,
    weights: Path | None,
    tokenizer: transformers.PreTrainedTokenizerBase,
    ranks: ShardedRanks,
) -> ShardedModels:
    """As `load_models`, on the CPU, where one rank after another loads a whole model and keeps a
    part of it on its device.

    Raises `UserError` for a model that has no layers to be spread one by one.
    """
    mesh = Mesh(device, ranks, config.shard_within)
    use_bfloat16 = config.model_options(device).use_bfloat16
    config = replace(config, dtype="bfloat16" if use_bfloat16 else "float32")
    cpu = torch.device("cpu")
    options = replace(config.model_options(cpu), num_tokens=num_tokens(tokenizer))

    def load_whole() -> TokenLogProbs:
        return load_models(config, cpu, weights, tokenizer, with_reference=False).policy

    def load_policy_part() -> TokenLogProbs:
        return shard(load_whole(), mesh, ranks)

    def load_reference_part() -> LogProbModel:
        reference = reference_log_probs(options, policy)
        return shard(reference, mesh, ranks) if isinstance(reference, TokenLogProbs) else reference

    def load_sampler() -> TokenLogProbs:
        sampler = load_whole()
        if use_bfloat16 and not config.lora_rank:
            hold_linear_maps_in_bfloat16(sampler.model)
        sampler.chunk_elements = chunk_elements_on(device)
        return sampler.requires_grad_(False).to(device)

    policy = in_turns(ranks, load_policy_part)
    reference = in_turns(ranks, load_reference_part) if config.watches_kl else None
    # The first pass is what it goes by in which weights are trained: adapters must be on in it.
    score_tokens(policy, [blank_experience()], MicroBatchLimits(tokens=2))
    return ShardedModels(policy, reference, in_turns(ranks, load_sampler), ranks, mesh)


def in_turns(ranks: Ranks, work: Callable[[], Result]) -> Result:
    """What `work` returns on this rank, which does it after those before it."""
    done: list[Result] = []

    def take_turn(turn: int) -> None:
        if turn == ranks.index:
            done.append(work())

    for turn in range(ranks.count):
        ranks.each(partial(take_turn, turn))
    return done[0]


def shard(policy: TokenLogProbs, mesh: Mesh, ranks: ShardedRanks) -> TokenLogProbs:
    """Keep this rank's part of every weight, on its device.

    Embedding and projection, which may be one, belong to the policy itself, as it also projects
    hidden states onto the vocabulary. Weights travel as they are kept, and autocast rounds them
    where they are used, as in one process.
    """
    for layer in layers_of(policy.model):
        fully_shard(layer, mesh=mesh.devices)
    whole = fully_shard(policy, mesh=mesh.devices, reshard_after_forward=True)
    if hasattr(whole, "set_reduce_scatter_unused_params"):
        # Of experts that a rank's tokens did not reach it has no gradient.
        whole.set_reduce_scatter_unused_params(True)
    policy.most_passes = ranks.most
    policy.chunk_elements = chunk_elements_on(ranks.device)
    return policy


def layers_of(model: transformers.PreTrainedModel) -> Iterator[nn.Module]:
    """What transformers never splits among devices: the blocks that a model repeats.

    Raises `UserError` for a model that names none.
    """
    kinds = set(model._no_split_modules or ())
    found = [name for name, module in model.named_modules() if type(module).__name__ in kinds]
    if not found:
        raise UserError(
            f"--shard: {type(model).__name__} does not say which of its layers to spread (its "
            "_no_split_modules); leave it out"
        )
    for name in found:
        if not any(name.startswith(f"{other}.") for other in found):
            yield model.get_submodule(name)
