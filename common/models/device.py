"""From `--device` to a device that exists."""

from __future__ import annotations

import torch
from torch import Tensor

from common.errors import UserError
from common.freed_memory import keep_freed_memory


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA if there is a GPU, else the CPU. Raises `UserError` for an absent device.

    cuDNN's attention is turned off: it is compiled anew, and kept, for every length of a sequence,
    of which sampling has one per token. torch has other kernels for all that it can do.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    keep_freed_memory()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: unknown; use auto, cpu, cuda, cuda:N or mps") from None
    present = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    if (device.index or 0) >= present.get(device.type, 0):
        raise UserError(f"--device {name}: this machine has no such device; try --device auto")
    return device


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. A GPU copies it from pinned memory, while Python goes on."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
