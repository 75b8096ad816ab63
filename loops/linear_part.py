"""Reading A̅ and B̅ off the module in which state and input meet.

Two ways: parametrisations known by the names of their parameters, and structures visible in a traced forward (a linear
layer on ``[h; e]``, a plain sum). What fits neither is left unread, to be estimated (``least_squares``).

Not covered: injections spread over several modules.
"""

# Shapes: D width of the state, E width of the input.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .periods import Loop, Periods
from .site import LoopSite, Part
from .trace import Event

Matrix = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class LinearMatrices:
    """A̅ and B̅ as functions of the parameters as they are now."""

    a_bar: Matrix
    b_bar: Matrix


LinearPart = LinearMatrices
"""The name until 2026; `loopscope.dynamics.LinearPart` are the numbers measured of them."""


def known_linear_part(module: nn.Module) -> LinearMatrices | None:
    """Return the linear part of an injection whose parametrisation is known.

    - ``a_bar()`` and ``b_bar()``: the module says it itself.
    - ``A_log (D,)``, ``dt_bias (D,)``, ``B (D, E)``: A̅ = exp(−Δ exp(A_log)), B̅ = Δ B, Δ = softplus(dt_bias), as in the
      Parcae authors' implementation.
    - ``log_A (D,)``, ``log_dt (1,)``, ``B (D,)``: A̅ = exp(−exp(clamp(log_dt + log_A, −20, 20))), B̅ = B, as in
      OpenMythos.

    >>> module = nn.Module()
    >>> for name, value in {"log_A": torch.zeros(2), "log_dt": torch.zeros(1), "B": torch.ones(2)}.items():
    ...     module.register_parameter(name, nn.Parameter(value))
    >>> known_linear_part(module).a_bar().tolist() == [torch.tensor(-1.0).exp().item()] * 2
    True
    """
    a_bar, b_bar = getattr(module, "a_bar", None), getattr(module, "b_bar", None)
    if callable(a_bar) and callable(b_bar):
        return LinearMatrices(a_bar, b_bar)
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters(recurse=False)}
    if shapes.keys() == {"A_log", "dt_bias", "B"} and shapes["A_log"] == shapes["dt_bias"] == shapes["B"][:1]:
        return _softplus_step(module)
    if shapes.keys() == {"log_A", "log_dt", "B"} and shapes["log_A"] == shapes["B"] and shapes["log_dt"] == (1,):
        return _log_step(module)
    return None


def _softplus_step(module: nn.Module) -> LinearMatrices:
    """Return the diagonal with a learned step per channel."""
    held = dict(module.named_parameters(recurse=False))

    def delta() -> Tensor:
        return F.softplus(held["dt_bias"].float())

    return LinearMatrices(
        lambda: torch.exp(-delta() * torch.exp(held["A_log"].float())),
        lambda: delta()[:, None] * held["B"].float(),
    )


def _log_step(module: nn.Module) -> LinearMatrices:
    """Return the diagonal with one learned step, and B̅ used as it is."""
    held = dict(module.named_parameters(recurse=False))

    def a_bar() -> Tensor:
        return torch.exp(-torch.exp((held["log_dt"].float() + held["log_A"].float()).clamp(-20, 20)))

    return LinearMatrices(a_bar, lambda: held["B"].float())


def joined_linear_part(layer: nn.Linear, state: tuple[int, int], given: tuple[int, int]) -> LinearMatrices:
    """Return the two blocks of a linear layer on ``[h; e]``; ``state`` and ``given`` are their columns, start to stop.

    >>> layer = nn.Linear(4, 2, bias=False)
    >>> part = joined_linear_part(layer, (0, 2), (2, 4))
    >>> torch.equal(torch.cat([part.a_bar(), part.b_bar()], dim=1), layer.weight)
    True
    """
    return LinearMatrices(
        lambda: layer.weight[:, state[0] : state[1]].float(),
        lambda: layer.weight[:, given[0] : given[1]].float(),
    )


def traced_linear_part(periods: Periods, loop: Loop, site: LoopSite) -> LinearMatrices | None:
    """Return the linear part of the module that receives state and input, where its call shows it."""
    body = next(call for call in periods.calls(loop, 1) if call.name == site.body)
    at, given = site.state_argument, site.input_argument
    if at is None or given is None:
        return None
    if isinstance(at, Part) and isinstance(given, Part):
        joined = isinstance(body.module, nn.Linear) and at.argument == given.argument
        return _split(body, at[1:], given[1:]) if joined else None
    if isinstance(at, Part) or isinstance(given, Part):
        return None
    h, e = periods.key(body.places[at]), periods.key(body.places[given])
    layers = [event for event in body.walk() if isinstance(event.module, nn.Linear)]
    if len(layers) == 1 and layers[0] is not body:
        spans = {periods.key(part): (start, stop) for part, start, stop in periods.joined(layers[0].places[0])}
        result = periods.key(layers[0].writes[0]) == periods.key(body.writes[0])
        return _split(layers[0], spans[h], spans[e]) if result and spans.keys() == {h, e} else None
    return _sum(periods, body, {h, e})


def _split(call: Event, state: tuple[int, int], given: tuple[int, int]) -> LinearMatrices | None:
    """Return the blocks of a linear layer that returns as many channels as the state has."""
    layer = call.module
    if not isinstance(layer, nn.Linear) or layer.out_features != state[1] - state[0]:
        return None
    return joined_linear_part(layer, state, given)


def _sum(periods: Periods, body: Event, summands: set[int]) -> LinearMatrices | None:
    """Return identities, for a module without parameters that only adds state and input."""
    if body.learns or len(body.children) != 1:
        return None
    function = body.children[0]
    is_sum = function.name in ("add", "__add__", "__radd__") and len(function.reads) == 2
    if not is_sum or {periods.key(tensor) for tensor in function.reads} != summands:
        return None
    one = torch.ones((), device=body.writes[0].device)
    return LinearMatrices(lambda: one, lambda: one)
