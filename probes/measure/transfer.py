"""Copies from the device to the host that nobody waits for.

On a CUDA device a `Transfer` copies into pinned memory on the current stream and marks the end with an event, which the
training thread asks about at a later step. On the CPU it is a clone.

Not covered: devices without streams other than the CPU (``mps``, ``xla``): there the copy waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


class Transfer:
    """Tensors on their way to the host.

    Args:
        tensors: What to copy; later changes to them are not seen.

    >>> source = torch.arange(3.0)
    >>> transfer = Transfer({"x": source})
    >>> _ = source.zero_()
    >>> transfer.ready(), transfer.arrays()["x"].tolist()
    (True, [0.0, 1.0, 2.0])
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._copies = {name: _host_copy(tensor.detach()) for name, tensor in tensors.items()}
        self._event: torch.cuda.Event | None = None
        device = next((tensor.device for tensor in tensors.values() if tensor.is_cuda), None)
        if device is not None:  # the model's device, which need not be the current one
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(device))

    def ready(self) -> bool:
        """Whether everything has arrived. Call it from the thread that started the copy."""
        return self._event is None or self._event.query()

    def wait(self) -> None:
        """Blocks until everything has arrived; for the end of a run only."""
        if self._event is not None:
            self._event.synchronize()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The copies as arrays; bf16 becomes float32."""
        return {
            name: (copy.float() if copy.dtype == torch.bfloat16 else copy).numpy()
            for name, copy in self._copies.items()
        }


def _host_copy(tensor: Tensor) -> Tensor:
    """A copy on the host, on its way when the source is on a CUDA device."""
    if not tensor.is_cuda:
        return tensor.to("cpu", copy=True)
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
