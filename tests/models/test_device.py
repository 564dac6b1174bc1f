"""What is asked of a device wherever one is chosen."""

import subprocess
import sys

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


_FAULTS = """
import resource, torch
from common.models.device import resolve_device

resolve_device("cpu")
for number in range(30):
    if number == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_a_tensor_in_the_place_of_a_freed_one_takes_no_new_pages():
    result = subprocess.run(
        [sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) < 100  # each of the ten would take 16,384
