"""One process of `benchmarks/ddp_scaling.py`: the train script, with its collectives timed.

DDP reads the annotations of its hook, which therefore may not be text.
"""

import json
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from common.training.distributed import AcceleratedRanks

seconds = 0.0


def time_collectives() -> None:
    """Count the time that gradients are under way, and that of whatever else ranks exchange."""
    prepare = Accelerator.prepare

    def timed(exchange: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            global seconds
            start = time.perf_counter()
            result = exchange(*given)
            seconds += time.perf_counter() - start
            return result

        return call

    def timed_hook(
        state: None,
        bucket: torch.distributed.GradBucket,  # pyright: ignore[reportPrivateImportUsage]
    ) -> torch.futures.Future[torch.Tensor]:
        start = time.perf_counter()

        def done(future: torch.futures.Future[torch.Tensor]) -> torch.Tensor:
            global seconds
            seconds += time.perf_counter() - start
            return future.value()

        return allreduce_hook(torch.distributed.group.WORLD, bucket).then(done)  # pyright: ignore

    def prepare_with_hook(self: Accelerator, *objects: Any, **options: Any) -> Any:
        prepared = prepare(self, *objects, **options)
        for module in prepared:
            if isinstance(module, DistributedDataParallel):
                module.register_comm_hook(None, timed_hook)
        return prepared

    for name in ("merge", "to_first", "trade", "sum_gradients"):
        setattr(AcceleratedRanks, name, timed(getattr(AcceleratedRanks, name)))
    Accelerator.prepare = prepare_with_hook  # pyright: ignore[reportAttributeAccessIssue]


if __name__ == "__main__":
    output = Path(sys.argv.pop(1))
    time_collectives()
    sys.path.insert(0, str(Path.cwd()))
    runpy.run_path("train.py", run_name="__main__")
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        output.write_text(json.dumps(seconds))
