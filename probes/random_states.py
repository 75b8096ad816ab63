"""The states of the global random generators: taken when a step begins, put back to run it again."""

from __future__ import annotations

import ctypes
import math
import random
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runfile.flights import FlightStep

_WORDS: Final = 624  # of a Mersenne twister


class RandomReader:
    """Reads the states of the global random generators again and again, without a draw or a wait for a device.

    A generator that nobody drew from since the last time is not read again: numpy's costs 0.07 ms, a tenth of
    a step's bookkeeping, and to see that it stands still 0.001 ms.

    Not covered: numpy's generator set by hand to the words it has, with a Gaussian number in store that it had not.
    """

    def __init__(self) -> None:
        self._python: tuple[Any, ...] = ()
        self._numpy_words = b""
        self._packed: dict[str, NDArray[Any]] = {}

    def read(self) -> dict[str, NDArray[Any]]:
        """Return the states by name.

        Returns:
            ``python`` and ``numpy``: float64 ``(626,)``, the 624 words of the Mersenne twister, its position, and the
            Gaussian number it has in store (NaN: none). ``torch`` and, once CUDA was used, ``cuda0``, ``cuda1``, …:
            uint8, as torch gives them. numpy's is left out where its global generator was replaced by one of another
            kind.
        """
        import torch

        self._read_python()
        self._read_numpy()
        states = {**self._packed, "torch": torch.get_rng_state().numpy()}
        if torch.cuda.is_initialized():
            for device in range(torch.cuda.device_count()):
                states[f"cuda{device}"] = torch.cuda.get_rng_state(device).numpy()
        return states

    def _read_python(self) -> None:
        state = random.getstate()
        if state != self._python:
            _, words, gauss = self._python = state
            self._packed["python"] = _packed(words[:_WORDS], words[_WORDS], gauss)

    def _read_numpy(self) -> None:
        generator = np.random.mtrand.get_bit_generator()
        if not isinstance(generator, np.random.MT19937):
            self._packed.pop("numpy", None)
            self._numpy_words = b""
            return
        # The words and the position. A Gaussian number gets into store by drawing words, and out of it without.
        words = ctypes.string_at(generator.ctypes.state_address, 4 * (_WORDS + 1))
        if words == self._numpy_words and _gauss(self._packed["numpy"]) is None:
            return
        state: Any = np.random.get_state()  # noqa: NPY002
        _, keys, position, has_gauss, stored = state
        self._packed["numpy"] = _packed(keys, position, stored if has_gauss else None)
        self._numpy_words = words


def random_states() -> dict[str, NDArray[Any]]:
    """Return the states of the global random generators by name, as `RandomReader.read` does.

    >>> before = random_states()
    >>> drawn = random.random()
    >>> restore_random(FlightStep(random=before)) == tuple(before)
    True
    >>> random.random() == drawn
    True
    """
    return RandomReader().read()


def restore_random(step: FlightStep) -> tuple[str, ...]:
    """Put the global random generators back to where they were when a step began, so that it can be run again.

    Args:
        step: A step of `read_flight`.

    Returns:
        Names of the generators that were set; states of CUDA devices that this machine lacks are left out.

    Raises:
        ValueError: The step has no random states.
    """
    if not step.random:
        raise ValueError(f"step {step.step} was recorded without random states; choose one that has them in .random")
    done = []
    for name, state in step.random.items():
        if name == "python":
            random.setstate((3, tuple(int(word) for word in state[:-1]), _gauss(state)))
        elif name == "numpy":
            gauss = _gauss(state)
            keys = state[:_WORDS].astype(np.uint32)
            np.random.set_state(  # noqa: NPY002
                ("MT19937", keys, int(state[_WORDS]), int(gauss is not None), gauss or 0.0)
            )
        elif not _restore_torch(name, state):
            continue
        done.append(name)
    return tuple(done)


def _restore_torch(name: str, state: NDArray[np.uint8]) -> bool:
    """Set one of torch's generators; False where there is no such device here."""
    import torch

    given = torch.from_numpy(state.copy())
    if name == "torch":
        torch.set_rng_state(given)
        return True
    device = int(name.removeprefix("cuda"))
    if device >= torch.cuda.device_count():
        return False
    torch.cuda.set_rng_state(given, device)
    return True


def _packed(words: ArrayLike, position: int, gauss: float | None) -> NDArray[np.float64]:
    """Return the state of a Mersenne twister as numbers that float64 holds exactly."""
    packed = np.empty(_WORDS + 2)
    packed[:_WORDS] = words
    packed[_WORDS:] = position, math.nan if gauss is None else gauss
    return packed


def _gauss(state: NDArray[np.float64]) -> float | None:
    """Return the Gaussian number that a packed state has in store."""
    return None if math.isnan(state[-1]) else float(state[-1])
