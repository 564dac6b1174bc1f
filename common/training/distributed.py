"""Accelerate's processes as the ranks of a run, and launches that are not what they seem."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import compress
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from common.errors import UserError
from common.flags.train_config import ConfigType, TrainConfig
from common.models.device import resolve_device
from common.rollout.generator import Interrupted
from common.training.interruption import was_launched
from common.training.ranks import Item, Ranks, Result

if TYPE_CHECKING:
    from accelerate import Accelerator

    from common.training.learner import Learner

COLLECTIVE_TIMEOUT = timedelta(minutes=30)


def make_accelerator(config: ConfigType) -> tuple[Accelerator, ConfigType]:
    """Accelerate on the device and in the precision of the flags, and the flags with that.

    `--dtype auto` takes the precision of Accelerate's own configuration if that is bf16; otherwise
    it stays, as it means the same in a run of one process. Buffers
    (tables of positions) are the same on all ranks and are not broadcast before every forward pass.

    Raises `UserError` for a launch that would run as fewer processes than were asked for, and for a
    device that Accelerate would not use.
    """
    _refuse_silent_launches()
    _refuse_lonely_ranks()
    device = resolve_device(config.device)
    if device.type == "cuda" and device.index is not None:
        raise UserError(
            f"--device {config.device}: Accelerate chooses the GPU; use --device cuda and "
            f"CUDA_VISIBLE_DEVICES={device.index}"
        )
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="bf16" if _wants_bfloat16(config, device) else "no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT)],
    )
    # By the name that torch has for it, and Accelerate has not yet.
    ddp_options = DistributedDataParallelKwargs()
    ddp_options.to_kwargs = lambda: {"forward_sync_buffers": False}
    accelerator.ddp_handler = ddp_options  # pyright: ignore[reportAttributeAccessIssue]
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size != accelerator.num_processes:
        raise UserError(
            f"WORLD_SIZE is {world_size}, but Accelerate sees {accelerator.num_processes} "
            "process(es), each of which would train alone; use: "
            f"accelerate launch --multi_gpu --num_processes {world_size} train.py"
        )
    in_bfloat16 = accelerator.mixed_precision == "bf16"
    if config.model_options(device).use_bfloat16 == in_bfloat16:
        return accelerator, config
    return accelerator, replace(config, dtype="bfloat16" if in_bfloat16 else "float32")


def _wants_bfloat16(config: TrainConfig, device: torch.device) -> bool:
    configured = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if config.dtype == "auto" and configured in ("fp16", "fp8"):
        raise UserError(
            f"mixed precision {configured} of Accelerate's configuration: use bf16 or no, "
            "or --dtype bfloat16 or float32"
        )
    asked = config.model_options(device).use_bfloat16
    return asked or (config.dtype == "auto" and configured == "bf16")


def _refuse_silent_launches() -> None:
    """`accelerate launch --cpu --num_processes 2` starts one process, and says nothing.

    It does set an address to meet at, which no launch of a single process does.
    """
    if was_launched() and "LOCAL_RANK" not in os.environ and "MASTER_PORT" in os.environ:
        raise UserError(
            "accelerate launch was asked for several processes but started one; use: "
            "accelerate launch --multi_gpu --num_processes 2 train.py (add --device cpu for CPUs)"
        )


def _refuse_lonely_ranks() -> None:
    """A process that is told of others, but not where to meet them, would fail obscurely."""
    if (count := int(os.environ.get("WORLD_SIZE", "1"))) > 1 and "MASTER_ADDR" not in os.environ:
        raise UserError(
            f"WORLD_SIZE is {count}, but nothing says where the processes meet; use: "
            f"accelerate launch --multi_gpu --num_processes {count} train.py"
        )


class AcceleratedRanks(Ranks):
    """The processes of an accelerator."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.index = accelerator.process_index
        self.count = accelerator.num_processes
        self.device = accelerator.device
        self.received = 0

    def split(
        self,
        items: Sequence[Item],
        work: Callable[[list[Item]], Sequence[Result]],
        told: Callable[[Result], Result] = lambda result: result,
    ) -> list[Result]:
        """As `Ranks.split`. Raises `Interrupted` or a `UserError` on all ranks if any does."""
        own: Sequence[Result] = []
        done: Sequence[Result] | Interrupted | UserError
        try:
            own = work(self.share(items))
            done = list(map(told, own))
        except (Interrupted, UserError) as ending:
            done = ending
        results: list[Result] = [None] * len(items)  # pyright: ignore[reportAssignmentType]
        for rank, part in enumerate(self.merge(done)):
            if isinstance(part, Interrupted | UserError):
                raise part
            results[rank :: self.count] = own if rank == self.index else part
        return results

    def merge(self, value: Item) -> list[Item]:
        told: list[bytes] = [b""] * self.count
        dist.all_gather_object(told, pickle.dumps(value))
        return self._read(told)

    def to_first(self, value: Item) -> list[Item]:
        nothing = torch.empty(0, dtype=torch.uint8)
        told = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        received = self.trade([told] + [nothing] * (self.count - 1))
        if self.index:
            return []
        return [pickle.loads(one.numpy().tobytes()) for one in received]

    def _read(self, told: Sequence[bytes]) -> list[Any]:
        self.received += sum(len(one) for rank, one in enumerate(told) if rank != self.index)
        return [pickle.loads(one) for one in told]

    def trade(self, parcels: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        sizes = torch.tensor([len(parcel) for parcel in parcels], device=self.device)
        received = torch.empty_like(sizes)
        dist.all_to_all_single(received, sizes)
        counts = received.tolist()
        found = torch.empty(sum(counts), dtype=torch.uint8, device=self.device)
        sent = torch.cat(list(parcels)).to(self.device)
        dist.all_to_all_single(found, sent, counts, sizes.tolist())
        self.received += sum(counts) - counts[self.index]
        return list(found.cpu().split(counts))

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        somewhere = map(any, zip(*self.merge([p.grad is not None for p in trainable]), strict=True))
        trained = list(compress(trainable, somewhere))
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        sums = [dist.all_reduce(parameter.grad, async_op=True) for parameter in trained]
        for handle in filter(None, sums):
            handle.wait()

    def first(self, work: Callable[[], Result]) -> Result:
        """As `Ranks.first`. A `UserError` there is one on all ranks."""
        result: Result | None = None
        failure: UserError | None = None
        if self.index == 0:
            try:
                result = work()
            except UserError as error:
                failure = error
        result, failure = self.merge((result, failure))[0]
        if failure is not None:
            raise failure
        return result  # pyright: ignore[reportReturnType]


def prepared(
    accelerator: Accelerator, learner: Learner
) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """The policy and its optimizer as Accelerate wraps them: in DDP, unless a policy that is spread
    over the ranks reduces its gradients by itself. What the optimizer remembers stays in its place.
    """
    if learner.ranks.in_step:
        optimizer = accelerator.prepare_optimizer(learner.optimizer, device_placement=False)
        return learner.policy, optimizer
    return accelerator.prepare(learner.policy, learner.optimizer, device_placement=[None, False])


def ddp_metrics(accelerator: Accelerator) -> dict[str, float]:
    """`ddp/*` as the first rank sees them."""
    return {
        "ddp/num_processes": float(accelerator.num_processes),
        "ddp/process_index": float(accelerator.process_index),
        "ddp/local_process_index": float(accelerator.local_process_index),
        "ddp/sync_gradients": float(accelerator.sync_gradients),
    }
