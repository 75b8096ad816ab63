"""Copies from the device to the host that nobody waits for.

On a CUDA device a `Transfer` copies into pinned memory on the current stream and marks the end with an event, which the
training thread asks about at a later step. On the CPU it is a clone.

Not covered: devices without streams other than the CPU (``mps``, ``xla``): there the copy waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Copy:
    """One tensor on its way to the host.

    Args:
        host: Where it arrives; not to be read before its `Transfer` is ready.
    """

    host: Tensor

    def array(self) -> NDArray[Any]:
        """Return what arrived; bf16 becomes float32."""
        return (self.host.float() if self.host.dtype == torch.bfloat16 else self.host).numpy()

    def number(self) -> float:
        """Return what arrived, of a tensor of one number."""
        return float(self.array().item())


class Transfer:
    """Tensors on their way to the host. Add them all by `copy`, then call `sent`.

    >>> source = torch.arange(3.0)
    >>> transfer = Transfer()
    >>> copy = transfer.copy(source)
    >>> transfer.sent()
    >>> _ = source.zero_()
    >>> transfer.ready(), copy.array().tolist()
    (True, [0.0, 1.0, 2.0])
    """

    def __init__(self) -> None:
        self._device: torch.device | None = None
        self._event: torch.cuda.Event | None = None

    def copy(self, tensor: Tensor, *, own: bool = False) -> Copy:
        """Start the copy of a tensor; later changes to it are not seen.

        Args:
            tensor: What is copied.
            own: Whether nobody else holds it, so that on the host it is its own copy.
        """
        if tensor.is_cuda:
            self._device = tensor.device  # the model's device, which need not be the current one
        elif own and tensor.device.type == "cpu":
            return Copy(tensor.detach())
        return Copy(_host_copy(tensor.detach()))

    def sent(self) -> None:
        """Mark the end of the copies."""
        if self._device is not None:
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(self._device))

    def ready(self) -> bool:
        """Return whether everything has arrived. Call it from the thread that started the copies."""
        return self._event is None or self._event.query()

    def wait(self) -> None:
        """Block until everything has arrived; for the end of a run only."""
        if self._event is not None:
            self._event.synchronize()


def _host_copy(tensor: Tensor) -> Tensor:
    """Return a copy on the host, on its way when the source is on a CUDA device."""
    if not tensor.is_cuda:
        return tensor.to("cpu", copy=True)
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
