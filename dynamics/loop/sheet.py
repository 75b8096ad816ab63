"""A `Linearization` on one screen: the verdict, every number with its bounds and its method, and what was left out.

Not covered: JSON (`Linearization.to_dict`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final
from unicodedata import combining

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..estimate import Estimate
    from .linearization import FullLoop, Linearization, LinearPart

EIGENVALUES: Final = 4  # shown of a spectrum

Row = tuple[str, str]
"""What a number is, and the number in words."""


def sheet(result: Linearization) -> str:
    """Return the result as lines of text: the verdict first, then one number to a line.

    An interval in brackets holds the exact number; what follows says how it was had.
    """
    rows = [row for row in _rows(result) if row[1]]
    wide = max((_width(name) for name, _ in rows), default=0)
    lines = [result.verdict]
    if result.disagreement:
        lines.append(result.disagreement)
    lines += [f"  {name}{' ' * (wide - _width(name))}  {said}" for name, said in rows]
    return "\n".join(lines)


def _rows(result: Linearization) -> Iterator[Row]:
    """Yield the numbers, in the order in which they are explained in docs/theory.md."""
    if result.linear is not None:
        yield from _linear(result.linear)
    if result.loop is not None:
        yield from _loop(result.loop)
    yield from ((f"∂{each.of}/∂{each.by}", str(each).partition(": ")[2]) for each in result.blocks)
    yield "trajectory", result.trajectory.sentence
    yield from ((name, law.sentence) for name, law in result.variables.items())
    for point in result.fixed_points:
        starts = f", from {point.starts} starts" if point.starts > 1 else ""
        yield "fixed point", f"{point.kind}, ρ {point.radius:.3g}, residual {point.residual:.1e}{starts}"
    if result.start is not None:
        stays = "depends on it" if result.start.depends else "forgets it"
        yield "start", f"the end {stays} (distance × {result.start.factor:.3g} per loop)"
    if result.input is not None:
        yield "input", f"changes the end by {result.input.gain:.3g} times its own relative change"
    if result.depth is not None:
        yield "safe depth", result.depth.sentence
    yield from (("left out", f"{part}: {reason}") for part, reason in result.skipped.items())


def _linear(part: LinearPart) -> Iterator[Row]:
    """Yield the numbers of the linear part."""
    yield "ρ(A̅)", f"{part.radius}, {part.certificate}"
    yield "σ_max(A̅)", str(part.norm)
    yield "max ‖A̅^t‖", str(part.peak_growth)
    yield "σ_max(B̅)", _said(part.input_norm)
    yield "σ_max(C)", _said(part.read_out_norm)


def _loop(loop: FullLoop) -> Iterator[Row]:
    """Yield the numbers of the full loop."""
    yield "ρ_J", str(loop.radius)
    yield "eigenvalues", _leading(loop.eigenvalues)
    if not math.isnan(loop.lyapunov_max):
        error = "" if math.isnan(loop.lyapunov_error) else f" ± {loop.lyapunov_error:.1g}"
        yield "λ₁", f"{loop.lyapunov_max:.4g}{error} nats per loop"
    yield "σ_max(J)", _said(loop.norm)
    yield "max ‖J^t‖", f"{loop.peak.growth} at loop {loop.peak.loop}" if loop.peak is not None else ""
    yield "σ(J − A̅)/σ(A̅)", _said(loop.gap)
    for each in loop.sublayers:
        yield each.name, f"adds {each.log_gain:+.3g} nats per loop; its state is {each.state_gain:.3g} times the last"


def _leading(eigenvalues: NDArray[np.complex128]) -> str:
    """Return the leading eigenvalues of the whole loop, or of its token with the largest radius."""
    if not eigenvalues.size:
        return ""
    table = eigenvalues.reshape(-1, eigenvalues.shape[-1])
    row = table[int(np.nanargmax(np.abs(table[:, 0])))] if np.isfinite(table[:, 0]).any() else table[0]
    shown = ", ".join(_complex(value) for value in row[:EIGENVALUES].tolist())
    more = ", …" if len(row) > EIGENVALUES else ""
    of = f" (the token with the largest ρ of {len(table)})" if eigenvalues.ndim > 1 else ""
    return f"{shown}{more}{of}"


def _complex(value: complex) -> str:
    """Return a complex number; the imaginary part only where there is one.

    >>> _complex(0.5 + 0j), _complex(-0.25 - 0.125j)
    ('0.5', '-0.25-0.125i')
    """
    return f"{value.real:.4g}" if value.imag == 0 else f"{value.real:.4g}{value.imag:+.4g}i"


def _said(estimate: Estimate | None) -> str:
    """Return an estimate in words; nothing where it was not measured."""
    return "" if estimate is None else str(estimate)


def _width(text: str) -> int:
    """Return how many places a text takes; a bar over a letter takes none.

    >>> _width("A̅")
    1
    """
    return sum(not combining(letter) for letter in text)
