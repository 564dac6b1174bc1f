"""From `--device` to a device that exists."""

from __future__ import annotations

import ctypes
import sys

import torch
from torch import Tensor

from common.errors import UserError

# Parameters of mallopt(3), and a threshold that nothing exceeds.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _NEVER = -1, -4, -1


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA if there is a GPU, else the CPU. Raises `UserError` for an absent device.

    cuDNN's attention is turned off: it is compiled anew, and kept, for every length of a sequence,
    of which sampling has one per token. torch has other kernels for all that it can do.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
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
    if device.type == "cpu":
        keep_freed_memory()
    return device


def keep_freed_memory() -> None:
    """Let glibc keep what freed tensors took, instead of giving it back to the kernel at once.

    The kernel fills each page with zeros before it hands it out again: without this that is a
    seventh of a step at 135 M parameters. Other allocators are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. A GPU copies it from pinned memory, while Python goes on."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
