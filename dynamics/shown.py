"""How results show themselves in a notebook: no array of thousands of numbers, but what it is and how large.

Not covered: saving (`Linearization.to_dict`).
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final

import numpy as np

MOST: Final = 6
"""Numbers of an array, or things in a list, that are shown one by one."""


class Shown:
    """Gives a dataclass a ``repr`` that fits on a screen; to be declared with ``repr=False``.

    >>> from dataclasses import dataclass
    >>> @dataclass(repr=False)
    ... class Seen(Shown):
    ...     rates: np.ndarray
    ...     few: np.ndarray
    >>> Seen(np.zeros((4, 12)), np.array([0.5]))
    Seen(rates=<float64 (4, 12)>, few=[0.5])
    """

    __slots__ = ()

    def __repr__(self) -> str:
        of: Any = self
        said = (f"{field.name}={short(getattr(self, field.name))}" for field in fields(of) if field.repr)
        return f"{type(self).__name__}({', '.join(said)})"


def short(value: Any) -> str:
    """Return a value in a few words: large arrays and tensors by type and shape, long lists by their length.

    >>> short({"a": list(range(9)), "b": (1, None)})
    "{'a': <9 things>, 'b': (1, None)}"
    """
    if isinstance(value, np.ndarray) and value.size <= MOST:
        return str(value.tolist())
    if hasattr(value, "shape") and hasattr(value, "dtype") and value.shape != ():  # a tensor without asking for torch
        return f"<{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}>"
    if isinstance(value, dict):
        inside = [f"{key!r}: {short(one)}" for key, one in value.items()]
        return f"{{{', '.join(inside)}}}"
    if isinstance(value, list | tuple):
        if len(value) > MOST:
            return f"<{len(value)} things>"
        inside = [short(one) for one in value]
        end = "," if len(value) == 1 and isinstance(value, tuple) else ""
        return f"[{', '.join(inside)}]" if isinstance(value, list) else f"({', '.join(inside)}{end})"
    return repr(value)
