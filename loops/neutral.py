"""Running a model on the side without leaving a trace in training.

Not covered: models that change buffers in ``eval`` mode, and generators of their own that a forward draws from.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import numpy as np
import torch
from torch import nn


def eagerly() -> AbstractContextManager[object]:
    """Inside, compiled code runs as it was written: nothing is compiled for a run on the side, and every graph stays.

    >>> with eagerly():
    ...     pass
    """
    compiles = "torch._dynamo" in sys.modules  # nothing is compiled where that was never imported
    return torch.compiler.set_stance("force_eager") if compiles else nullcontext()


@contextmanager
def undisturbed(model: nn.Module, device: torch.device, seed: int = 0) -> Iterator[None]:
    """Evaluation mode, no gradients and a fixed random stream inside; everything as it was after.

    Restores every module's own training flag and the random states of torch (CPU and ``device``), numpy and Python.
    Parameters that a forward inside gathered (FSDP2) are sharded again, and where it raised, FSDP2 is told that it is
    over, in a torch that can be told.

    Args:
        model: Its ``training`` flags are set to evaluation inside.
        device: The device whose generator is forked besides the CPU's.
        seed: Start of the random stream inside, so that each visit sees the same draws.

    >>> model = nn.Sequential(nn.Dropout())
    >>> before = torch.get_rng_state()
    >>> with undisturbed(model, torch.device("cpu")):
    ...     inside = model.training, torch.rand(()).item() >= 0
    >>> inside, model.training, torch.equal(before, torch.get_rng_state())
    ((False, True), True, True)
    """
    training = {module: module.training for module in model.modules()}
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global stream is what users' code draws from
    devices = [device] if device.type == "cuda" else []
    try:
        model.eval()
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.default_generator.manual_seed(seed)
            for one in devices:
                with torch.cuda.device(one):
                    torch.cuda.manual_seed(seed)
            yield
    except BaseException:
        _forget_forward(model)
        raise
    finally:
        for module, flag in training.items():
            module.training = flag
        _reshard(model)
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def _reshard(model: nn.Module) -> None:
    """Gives gathered parameters back: FSDP2 keeps those of its root until a backward pass, which none follows here."""
    for module in _fsdp_modules(model):
        module.reshard()


def _forget_forward(model: nn.Module) -> None:
    """Ends the forward that an exception cut off: FSDP2 would take the next one of training for the rest of it."""
    for module in _fsdp_modules(model):
        with suppress(RuntimeError):  # asked of the root alone, and only the module itself knows whether it is that
            getattr(module, "reset_iter_state", lambda: None)()


def _fsdp_modules(model: nn.Module) -> list[Any]:
    """The modules that FSDP2 manages."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # half a second to import, and nothing is sharded without it
    return [] if fsdp is None else [module for module in model.modules() if isinstance(module, fsdp.FSDPModule)]
