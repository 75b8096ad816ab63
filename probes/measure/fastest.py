"""The fastest reduction of states that a device has."""

from __future__ import annotations

import torch

from .reduction import EagerReduction, Reduction


def reduction_for(device: torch.device) -> Reduction:
    """Return the fastest reduction of states on this device."""
    if device.type == "cuda":
        try:
            from .fused import FusedReduction
        except ImportError:  # no Triton: the eager one is right, and slower
            pass
        else:
            return FusedReduction()
    return EagerReduction()
