"""The random states a training step draws from, as plain arrays, and how to bring them back.

Torch's CPU generator, the generators of CUDA devices that are in use, and the global ones of numpy and Python. All are
kept on the host, CUDA's too, so reading them waits for no device. About 30 µs.

Not covered: generators of the user's own (``torch.Generator()``, ``numpy.random.default_rng()``) and a bit generator
put in the place of numpy's global Mersenne twister.
"""

# Layouts: numpy 624 words of state, position, whether a normal number is left over, that number as two words;
# Python 625 words (its position last), the same three words.

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]


def random_states() -> dict[str, NDArray[np.generic]]:
    """The states as they are now.

    Returns:
        ``torch`` uint8, ``cuda:N`` uint8 for each device in use, ``numpy`` uint32 (628), ``python`` uint32 (628).

    >>> states = random_states()
    >>> first = random.random(), float(np.random.random())
    >>> restore_random(states)
    >>> first == (random.random(), float(np.random.random()))
    True
    """
    import torch

    found: dict[str, NDArray[np.generic]] = {"torch": torch.get_rng_state().numpy()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for number in range(torch.cuda.device_count()):
            found[f"cuda:{number}"] = torch.cuda.get_rng_state(number).numpy()
    state = np.random.get_state(legacy=False)  # noqa: NPY002 - the global stream is what users' code draws from
    if state["bit_generator"] == "MT19937":
        tail = _tail(state["has_gauss"], state["gauss"])
        found["numpy"] = np.concatenate([state["state"]["key"], _words([state["state"]["pos"]]), tail])
    _, words, left = random.getstate()
    found["python"] = np.concatenate([_words(words), _tail(left is not None, left or 0.0)])
    return found


def restore_random(states: Mapping[str, NDArray[np.generic]]) -> None:
    """Puts every state back that is given; those of CUDA devices that are not there are left out.

    Args:
        states: As `random_states` gave them, or a recorded step's (`flight.FlightStep.random`).
    """
    import torch

    for name, state in states.items():
        if name == "torch":
            torch.set_rng_state(torch.from_numpy(np.array(state, dtype=np.uint8)))
        elif name.startswith("cuda:") and int(name[5:]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(torch.from_numpy(np.array(state, dtype=np.uint8)), int(name[5:]))
        elif name == "numpy":
            words = _words(state)
            twister = {"key": words[:624], "pos": int(words[624])}
            left, value = _from_tail(words[625:])
            whole = {"bit_generator": "MT19937", "state": twister, "has_gauss": left, "gauss": value}
            np.random.set_state(whole)  # noqa: NPY002
        elif name == "python":
            words = _words(state)
            left, value = _from_tail(words[625:])
            random.setstate((3, tuple(words[:625].tolist()), value if left else None))


def _words(values: object) -> Words:
    """Whole numbers below 2³² as an array."""
    return np.asarray(values, dtype=np.uint32)


def _tail(left: object, value: float) -> Words:
    """Whether a second normal number was drawn already and not yet used, and that number bit for bit."""
    return np.concatenate([_words([bool(left)]), np.array([value], dtype="<f8").view("<u4")])


def _from_tail(words: Words) -> tuple[int, float]:
    """What `_tail` was made of."""
    return int(words[0]), float(np.ascontiguousarray(words[1:3]).view("<f8")[0])
