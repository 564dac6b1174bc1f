"""What is asked of a device wherever one is chosen."""

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
