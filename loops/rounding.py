"""Rounded weights in a loop: what an error of one loop has become after T of them, and what it costs in loss.

A looped model runs the same rounded weights T times, so one rounding error is made T times and carried on by the loop.
With δ_t the difference that rounding makes to the state and J_t the Jacobian of the loop at h_t,

    δ_{t+1} = J_t δ_t + r_t,        r_t = F'(h_t) − F(h_t),

where F is the loop and F' the rounded one (with the rounded prelude's input). A loop whose powers ‖J^t‖ shrink forgets
its rounding errors; one whose powers grow multiplies them. The loss follows from the logits' difference Δz to second
order: the mean over tokens of ``(p − y)·Δz + ½ Var_p(Δz)``.

Not covered: rounded activations or sums (weights alone are rounded), formats that need calibration data.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..dynamics.loop.jacobian import LoopJacobian
from .bound import bound_loop
from .rerun import BoundLoop

TOLERATED_GAP: Final = 0.02  # nats a format may cost


def _whole_numbers(bits: int) -> Callable[[Tensor], Tensor]:
    """Symmetric whole numbers of some bits, one scale a row (an output channel, or a token of an embedding)."""
    largest = 2 ** (bits - 1) - 1

    def rounded(weight: Tensor) -> Tensor:
        if weight.ndim < 2:  # gains, step sizes: kept as they are, as every published scheme does
            return weight
        scale: Tensor = weight.flatten(1).abs().amax(1).clamp(min=torch.finfo(weight.dtype).tiny) / largest
        scale = scale.view(-1, *[1] * (weight.ndim - 1))
        whole: Tensor = (weight / scale).round().clamp(-largest, largest)
        return whole * scale

    return rounded


FORMATS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "bf16": lambda weight: weight.bfloat16().to(weight.dtype),
    "int8": _whole_numbers(8),
    "int6": _whole_numbers(6),
    "int4": _whole_numbers(4),
}
"""How the weights of each format are rounded: weight -> the nearest weight that the format can hold."""


@dataclass(frozen=True, slots=True)
class RoundedDepth:
    """What one format costs at one depth.

    Attributes:
        format: Name of the format.
        depth: Loops run.
        predicted: Loss gap in nats, to first order in the state and to second in the logits.
        measured: Loss of the rounded model minus loss of the model, nats; NaN where a state has left the range of its
            dtype, so that neither loss means anything.
        predicted_error: ‖δ_T‖ / ‖h_T‖ as the Jacobians carry it.
        measured_error: The same of the two states.
    """

    format: str
    depth: int
    predicted: float
    measured: float
    predicted_error: float
    measured_error: float


@dataclass(frozen=True, slots=True)
class Rounding:
    """What rounding the weights costs, by format and depth.

    Attributes:
        rows: One for every format and depth.
        loss: Of the model as it is, by depth, nats.
        tolerance: Loss gap in nats up to which a format counts as safe.
    """

    rows: tuple[RoundedDepth, ...]
    loss: Mapping[int, float]
    tolerance: float = TOLERATED_GAP

    def safe_depth(self, name: str, *, predicted: bool = False) -> int:
        """Return the deepest of the depths tried up to which a format costs no more than the tolerance; 0: none.

        Args:
            name: The format.
            predicted: Judge the predicted gap instead of the measured one.
        """
        safe = 0
        for row in sorted((row for row in self.rows if row.format == name), key=lambda row: row.depth):
            if not (row.predicted if predicted else row.measured) <= self.tolerance:
                break
            safe = row.depth
        return safe

    def growth(self, name: str) -> float:
        """Return the mean factor per loop by which a format's error in the state grows, from the measured states.

        Below 1 the loop forgets; NaN with one depth only.
        """
        rows = sorted((row for row in self.rows if row.format == name), key=lambda row: row.depth)
        first, last = rows[0], rows[-1]
        if first.depth == last.depth or first.measured_error <= 0:
            return float("nan")
        return float((last.measured_error / first.measured_error) ** (1 / (last.depth - first.depth)))


def rounding(
    model: nn.Module,
    tokens: Tensor,
    targets: Tensor,
    *,
    formats: Sequence[str] = ("bf16", "int8", "int6"),
    depths: Sequence[int] = (1, 2, 4, 8, 16, 32),
    tolerance: float = TOLERATED_GAP,
    progress: Callable[[str, float], None] | None = None,
) -> Rounding:
    """Which number format of the weights is safe at which depth?

    Follows the state of the model and of a copy with rounded weights, and beside them the error that the Jacobians of
    the loop predict. Costs about ten forwards of one loop for each loop of the
    greatest depth, and six more for each format.

    Args:
        model: A looped model that returns logits; left as it was.
        tokens: ``(B, S)`` input.
        targets: ``(B, S)`` int64, the tokens that should follow.
        formats: Names of `FORMATS`.
        depths: Numbers of loops, each at least 1.
        tolerance: Loss gap in nats that counts as safe.
        progress: Called as ``progress(format, fraction)``.

    Returns:
        Predicted and measured loss gap of every format at every depth.

    Raises:
        ValueError: An unknown format, a depth below 1, or a model whose output holds no logits.
        LoopSiteError: The loop cannot be located, or not be run by itself.

    >>> from loopscope.models import build
    >>> _ = torch.manual_seed(0)
    >>> tokens = torch.randint(256, (2, 9))
    >>> costs = rounding(build("demo"), tokens[:, :-1], tokens[:, 1:], formats=["bf16"], depths=[1, 8])
    >>> costs.safe_depth("bf16")
    8
    """
    wanted = sorted(set(depths))
    if not wanted or wanted[0] < 1:
        raise ValueError(f"depths: expected numbers of at least 1, found {list(depths)}")
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ValueError(f"{unknown[0]}: not a format; choose from {', '.join(FORMATS)}")
    with ExitStack() as opened:
        loop = opened.enter_context(bound_loop(model, tokens))
        twins = {name: opened.enter_context(bound_loop(rounded_copy(model, name), tokens)) for name in formats}
        rows, loss = _followed(loop, twins, targets, wanted, progress or (lambda part, fraction: None))
    return Rounding(tuple(sorted(rows, key=lambda row: list(formats).index(row.format))), loss, tolerance)


def rounded_copy(model: nn.Module, name: str) -> nn.Module:
    """Return a copy of a model whose parameters hold what a format can hold.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[127.0, 0.6]]))
    >>> rounded_copy(layer, "int8").weight.tolist()
    [[127.0, 1.0]]
    """
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.is_floating_point():
                parameter.copy_(FORMATS[name](parameter))
    return twin


class _Twin:
    """A rounded model on its way: its state, and the difference that the Jacobians predict."""

    def __init__(self, name: str, loop: BoundLoop, h: Tensor) -> None:
        if loop.read_out is None:
            raise ValueError("the model's output holds no logits, so that its loss cannot be measured")
        self.name, self.loop, self.read_out = name, loop, loop.read_out
        self.state, self.error = loop.state, loop.state - h

    def advance(self, jacobian: LoopJacobian | None, h: Tensor, after: Tensor) -> None:
        """Run one loop from both states, and carry the predicted difference along."""
        with torch.no_grad():
            local = self.loop.step(h) - after
            self.state = self.loop.step(self.state)
        self.error = torch.full_like(h, torch.nan) if jacobian is None else jacobian.apply(self.error) + local

    def row(self, depth: int, h: Tensor, logits: Tensor, targets: Tensor) -> RoundedDepth:
        """Compare the losses at a depth, predicted and measured."""
        with torch.no_grad():
            own = self.read_out(h) - logits  # what rounding the coda costs by itself
            rounded = self.read_out(self.state)
        change = own + _directional(self.read_out, h, self.error)
        gap = _cross_entropy(rounded, targets) - _cross_entropy(logits, targets)
        size = float(h.double().norm()) or float("nan")  # relative to nothing: no number
        return RoundedDepth(
            format=self.name,
            depth=depth,
            predicted=_predicted_gap(logits, change, targets),
            measured=gap if _in_range(h) and _in_range(self.state) else float("nan"),
            predicted_error=float(self.error.double().norm()) / size,
            measured_error=float((self.state - h).double().norm()) / size,
        )


def _followed(
    loop: BoundLoop,
    rounded: Mapping[str, BoundLoop],
    targets: Tensor,
    depths: Sequence[int],
    progress: Callable[[str, float], None],
) -> tuple[list[RoundedDepth], dict[int, float]]:
    """Run the model and its rounded twins side by side, and compare them at every wanted depth."""
    if loop.read_out is None:
        raise ValueError("the model's output holds no logits, so that its loss cannot be measured")
    h = loop.state
    rows: list[RoundedDepth] = []
    loss: dict[int, float] = {}
    twins = [_Twin(name, each, h) for name, each in rounded.items()]
    for depth in range(1, depths[-1] + 1):
        progress(f"loop {depth}", depth / depths[-1])
        jacobian = LoopJacobian(loop.step, h) if _in_range(h) else None
        with torch.no_grad():
            after = loop.step(h)
        jacobian = jacobian if _in_range(after) else None
        for twin in twins:
            twin.advance(jacobian, h, after)
        h = after
        if depth in depths:
            with torch.no_grad():
                logits = loop.read_out(h)
            loss[depth] = _cross_entropy(logits, targets)
            rows += [twin.row(depth, h, logits, targets) for twin in twins]
    return rows, loss


def _in_range(state: Tensor) -> bool:
    """Whether the squares of a state are numbers: beyond, its norms are infinite and the model answers anything."""
    return bool(state.square().sum().isfinite())


def _directional(function: Callable[[Tensor], Tensor], h: Tensor, tangent: Tensor) -> Tensor:
    """Return the derivative of a function at h along a tangent, by central differences.

    The step is 1e-3 of the state's size: truncation and cancellation in float32 are then both near 1e-4.
    """
    size = float(tangent.norm())
    if not size > 0:
        return torch.zeros_like(function(h)) if size == 0 else torch.full_like(function(h), torch.nan)
    step = 1e-3 * max(float(h.norm()), 1e-6) / size
    with torch.no_grad():
        return (function(h + step * tangent) - function(h - step * tangent)) / (2 * step)


def _cross_entropy(logits: Tensor, targets: Tensor) -> float:
    """Mean loss in nats, added up in float64."""
    return float(F.cross_entropy(logits.double().flatten(0, 1), targets.flatten().to(logits.device)))


def _predicted_gap(logits: Tensor, change: Tensor, targets: Tensor) -> float:
    """Return the loss gap of a change of the logits, to second order."""
    p = logits.double().softmax(-1)
    dz = change.double()
    mean = (p * dz).sum(-1)
    variance = (p * dz.square()).sum(-1) - mean.square()
    chosen: Any = dz.gather(-1, targets.to(logits.device)[..., None])[..., 0]
    return float((mean - chosen + variance / 2).mean())
