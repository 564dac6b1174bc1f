"""What is asked of a device wherever one is chosen."""

import subprocess
import sys

import pytest
import torch

from common.models.device import resolve_device


def test_attention_is_never_left_to_cudnn():
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        resolve_device("cpu")
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


FREE_AND_ALLOCATE = """
import resource, sys, torch
from common.models.device import resolve_device

if sys.argv[1] == "kept":
    resolve_device("cpu")
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**26)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_that_was_freed_is_not_made_anew():
    """256 MB are 65,536 pages of 4 KB, or 128 huge ones: the second time the kernel is asked for
    hardly any of them, where it would be asked for all."""
    faults = {
        kept: int(
            subprocess.run(
                [sys.executable, "-c", FREE_AND_ALLOCATE, kept],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for kept in ("kept", "given back")
    }
    assert faults["given back"] >= 128
    assert faults["kept"] < faults["given back"] / 10
