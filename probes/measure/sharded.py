"""Tensors that are spread over ranks (``DTensor`` of FSDP2 and tensor parallelism): the one place that knows them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_spread(value: Any) -> TypeGuard[DTensor]:
    """Return whether a value is a tensor of which this rank holds a part.

    >>> import torch
    >>> is_spread(torch.ones(2))
    False
    """
    module = sys.modules.get("torch.distributed.tensor")  # slow to import, and nothing is spread without it
    return module is not None and isinstance(value, module.DTensor)


def gathered(value: Any) -> Any:
    """Return the full tensor of a spread one, which takes all ranks; anything else as it is."""
    return value.full_tensor() if is_spread(value) else value


def own_part(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor, without a collective."""
    return tensor.to_local() if is_spread(tensor) else tensor


def is_sharded(model: nn.Module) -> bool:
    """Return whether parameters are spread over the ranks (FSDP, tensor parallelism), at any moment of training.

    >>> is_sharded(nn.Linear(2, 2))
    False
    """
    if any(is_spread(parameter) for parameter in model.parameters()):
        return True
    fsdp = sys.modules.get("torch.distributed.fsdp")  # half a second to import, and nothing is sharded without it
    kinds = () if fsdp is None else (fsdp.FSDPModule, fsdp.FullyShardedDataParallel)
    return any(isinstance(module, kinds) for module in model.modules())  # gathered just now, perhaps
