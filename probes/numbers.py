"""The numbers a training loop hands over, each judged by itself: one that is no number costs nothing but itself.

Accepted is whatever is one real number: Python's, numpy's, ``Decimal``, a tensor of one element on any device. Refused
by name, once in the log and in the file (``number_refused``): a string, a complex number, several values, a tensor
without data, a name of something that loopscope measures itself. ``None`` is not given.

A list of learning rates, as ``scheduler.get_last_lr()`` returns it, stands for the parameter groups. The first one is
recorded, as trainers log it; where the groups differ, a note in the file says so.

Not covered: whether a number makes sense. NaN and infinity are recorded as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from torch import Tensor

from ..runfile.layout import DESCRIPTIONS
from .notices import Notices, one_line

TRAINERS: Final = ("loss", "grad_norm", "lr", "tokens")
"""The columns of a run file that hold what the trainer says; all other names in it are measured."""

_NO_NUMBER: Final = (str, bytes, complex, np.complexfloating)


class Refused(Exception):
    """Something is not one real number; the message says what it is."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """The numbers of one step.

    Args:
        here: Those the host knows.
        away: Tensors of one number on another device, which nobody waits for.
    """

    here: dict[str, float] = field(default_factory=dict)
    away: dict[str, Tensor] = field(default_factory=dict)


def accepted(given: Mapping[str, Any], step: int, notices: Notices) -> Numbers:
    """Sort the numbers of a step, and refuse by name those that are none.

    Args:
        given: By name, as the training loop gave them; tensors spread over ranks are gathered already.
        step: Training step, for the event.
        notices: Takes the message of a refusal.

    >>> events = []
    >>> given = {"loss": np.float32(2), "lr": [0.1, 0.2], "depth": 3, "name": "a"}
    >>> accepted(given, 7, Notices(events.append)).here
    {'loss': 2.0, 'lr': 0.1}
    >>> [event.message for event in events][1]
    'depth is not recorded: loopscope measures a number of this name itself; choose another name'
    """
    numbers = Numbers()
    for name, value in given.items():
        try:
            if name == "lr" and isinstance(value, list | tuple):
                value = _first_rate(value, step, notices)
            if value is None:
                continue
            if name in DESCRIPTIONS and name not in TRAINERS:
                raise Refused("loopscope measures a number of this name itself; choose another name")
            number = one_number(value)
            if isinstance(number, Tensor):
                numbers.away[name] = number
            else:
                numbers.here[name] = number
        except Exception as error:
            refuse(name, error, step, notices)
    return numbers


def refuse(name: str, error: Exception, step: int, notices: Notices) -> None:
    """Say that a number is not recorded, at its first occurrence."""
    why = str(error) if isinstance(error, Refused) else f"it cannot be read ({one_line(error)})"
    notices.say(step, "number_refused", f"{name} is not recorded: {why}", cause=name)


def one_number(value: Any) -> float | Tensor:
    """Return a value as a number, or as the tensor that holds it on another device.

    Raises:
        Refused: It is not one real number.

    >>> one_number(Tensor([1.0]).requires_grad_()), one_number(True), one_number(np.array(3))
    (1.0, 1.0, 3.0)
    >>> one_number([1.0, 2.0])
    Traceback (most recent call last):
    loopscope.probes.numbers.Refused: it has 2 values, expected one number
    """
    if isinstance(value, Tensor):
        return _of_tensor(value)
    if isinstance(value, _NO_NUMBER):
        raise Refused(f"it is a {type(value).__name__}, expected one real number")
    if isinstance(value, list | tuple | np.ndarray):
        if np.size(value) != 1:
            raise Refused(f"it has {np.size(value)} values, expected one number")
        return one_number(value.reshape(()).item() if isinstance(value, np.ndarray) else value[0])
    try:
        return float(value)
    except (TypeError, ValueError):
        raise Refused(f"it is a {type(value).__name__}, expected one real number") from None
    except OverflowError:  # an integer beyond float64
        return math.inf if value > 0 else -math.inf


def _of_tensor(tensor: Tensor) -> float | Tensor:
    """Return the number in a tensor of one element; on another device, the tensor as it is."""
    if tensor.is_complex():
        raise Refused("it is complex, expected one real number")
    if tensor.numel() != 1:
        raise Refused(f"it has {tensor.numel()} values, expected one number")
    if tensor.device.type == "cpu":
        return float(tensor.detach())
    return tensor.detach().reshape(())


def _first_rate(rates: Sequence[Any], step: int, notices: Notices) -> Any:
    """Return the learning rate of the first parameter group."""
    if not rates:
        raise Refused("it is an empty list, expected the rate of at least one parameter group")
    if any(not isinstance(rate, Tensor) and rate != rates[0] for rate in rates):
        message = f"lr was given for {len(rates)} parameter groups, which differ; that of the first one is recorded"
        notices.say(step, "first_group_lr", message, severity="note")
    return rates[0]


def wrong_names(names: Sequence[str]) -> str:
    """Say which of the names that a user declares cannot be used, and why; nothing when all can.

    >>> wrong_names(["accuracy"]), wrong_names(["state_norm"])
    ('', "scalar 'state_norm' is taken by a number loopscope measures itself; choose another name")
    """
    for name in names:
        if name in DESCRIPTIONS:
            return f"scalar {name!r} is taken by a number loopscope measures itself; choose another name"
    return ""
