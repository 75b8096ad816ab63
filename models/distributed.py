"""Several processes training one model: replicated (DDP) or sharded (FSDP2), started by ``torchrun``.

    torchrun --nproc-per-node 8 -m loopscope train ...

Sharding keeps gradients and optimizer state in shards and gathers all weights for one forward and backward. The
loop's weights are needed at every loop and ranks run different depths: gathering them block by block would neither
save memory nor stay in step between ranks.

Not covered: tensor and pipeline parallelism, several nodes with different numbers of processes.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .looped import LoopedTransformer

Parallelism = Literal["ddp", "fsdp"]


@contextlib.contextmanager
def started(device: str = "auto") -> Iterator[torch.device]:
    """Join the process group that ``torchrun`` describes in the environment; do nothing when there is none.

    Args:
        device: As torch names it, or ``"auto"``: CUDA where there is one.

    Yields:
        The device of this process.
    """
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if "LOCAL_RANK" not in os.environ:
        yield torch.device(kind)
        return
    chosen = torch.device(kind)
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield chosen
    finally:
        dist.destroy_process_group()
        # Cycles of sharded modules and optimizers hold threads of the group; left to the interpreter's end, they abort
        # a process that has done its work (seen in 5 of 10 busy runs without this line).
        gc.collect()


def rank() -> int:
    """Return the number of this process; 0 when there is one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return how many processes train."""
    return dist.get_world_size() if dist.is_initialized() else 1


def parallel(model: LoopedTransformer, how: Parallelism) -> nn.Module:
    """Return what to call in place of the model; the model itself when there is one process.

    Args:
        model: On its device, with the same weights on all ranks (rank 0's are taken).
        how: ``"ddp"`` keeps a copy per rank, ``"fsdp"`` shards in place.

    Raises:
        ValueError: Reentrant activation checkpointing, with which DDP would see a shared weight become ready twice.
    """
    if world_size() == 1:
        return model
    if model.config.activation_checkpointing == "reentrant":
        raise ValueError("activation_checkpointing: expected 'non-reentrant' with several processes, found 'reentrant'")
    if how == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    from torch.distributed.fsdp import fully_shard  # half a second to import: only where it is used

    with torch.no_grad():
        for parameter in model.parameters():
            dist.broadcast(parameter, src=0)
    fully_shard(model)
    return model


def accumulating(module: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Hold gradient exchange back for all micro-batches of a step but the last."""
    if isinstance(module, nn.parallel.DistributedDataParallel) and not last:
        return cast(AbstractContextManager[None], module.no_sync())
    if world_size() > 1 and not isinstance(module, nn.parallel.DistributedDataParallel):
        from torch.distributed.fsdp import FSDPModule

        cast(FSDPModule, module).set_requires_gradient_sync(last)
    return contextlib.nullcontext()


def mean(value: Tensor) -> Tensor:
    """Return the mean over the ranks; no device synchronisation."""
    if world_size() > 1:
        dist.all_reduce(value)
        value = value / world_size()
    return value


def any_rank(flag: bool, device: torch.device) -> bool:
    """Return whether the flag is set on any rank, so that all ranks stop together."""
    if world_size() == 1:
        return flag
    votes = torch.tensor(int(flag), device=device)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return bool(votes.item())


def whole(tensor: Tensor) -> Tensor:
    """Return the full tensor of a sharded one; a collective."""
    return cast(Any, tensor).full_tensor() if is_sharded(tensor) else tensor


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is spread over the ranks."""
    if world_size() == 1:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def shard_like(tensor: Tensor, example: Tensor) -> Tensor:
    """Return a full tensor, known to all ranks, laid out as an example is."""
    if not is_sharded(example):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    mesh, placements = cast(DTensor, example).device_mesh, cast(DTensor, example).placements
    return distribute_tensor(tensor.to(example.device), mesh, placements, src_data_rank=None)


def wait() -> None:
    """Wait until all ranks are here."""
    if world_size() > 1:
        dist.barrier()
