"""A linearised loop on one screen: the verdict, then every number with its bounds and its method, one to a line.

Not covered: JSON (`Linearization.to_dict`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final
from unicodedata import combining

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..estimate import Estimate
    from .parts import FullLoop, LinearPart

EIGENVALUES: Final = 4  # shown of a spectrum

Row = tuple[str, str]
"""What a number is, and the number in words."""


def sheet(first: Iterable[str], rows: Iterable[Row]) -> str:
    """Return lines of text: what comes first, then one number to a line; what is empty is left out.

    >>> print(sheet(["stable", ""], [("ρ(A̅)", "0.5"), ("trajectory", "settles"), ("gap", "")]))
    stable
      ρ(A̅)        0.5
      trajectory  settles
    """
    known = [row for row in rows if row[1]]
    wide = max((_width(name) for name, _ in known), default=0)
    return "\n".join(
        [*filter(None, first), *(f"  {name}{' ' * (wide - _width(name))}  {said}" for name, said in known)]
    )


def rows_of_linear_part(part: LinearPart) -> Iterator[Row]:
    """Yield the numbers of the linear part."""
    yield "ρ(A̅)", f"{part.radius}, {part.certificate}"
    yield "σ_max(A̅)", str(part.norm)
    yield "max ‖A̅^t‖", str(part.peak_growth)
    yield "σ_max(B̅)", _said(part.input_norm)
    yield "σ_max(C)", _said(part.read_out_norm)


def rows_of_loop(loop: FullLoop) -> Iterator[Row]:
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
