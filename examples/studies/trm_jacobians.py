"""The joint Jacobian of TRM, its six-variable form and HRM, their own code: loopscope's numbers beside dense ones.

    python examples/studies/trm_jacobians.py --checkout TinyRecursiveModels

Each model is trained on a sorting task, and linearised before training, after 50 and after 300 steps, as
`loopscope.linearize` does it. Beside that one joint pass is derived in float64 at the same state, the one after 17
passes, from a loop written out by hand, with ``torch.autograd.functional.jacobian``, and the numbers are taken from
that matrix. A number is within its bound where a lower bound is not above the dense number, an upper one not below it,
and where it differs by no more than its residual allows: that of a norm by itself, that of a spectral radius times the
condition number of the eigenvalue, both besides ROUNDING.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import loopscope
import numpy as np
import torch
from scipy.linalg import eig
from study import table
from torch import Tensor, nn
from trm_checkout import ByHand, batches, build, missing, optimizer_of, wide_norm

POINTS, RATE, LOOPS = (0, 50, 300), 0.001, 16
ROUNDING = {"float32": 2e-5, "float64": 1e-9}  # relative; the states of 17 passes differ by it, too
SIZES = {  # width, heads, tokens, sequences
    "trm": [(8, 2, 4, 1), (16, 2, 9, 2)],
    "trm_hier6": [(8, 2, 4, 1)],
    "hrm": [(8, 2, 4, 1), (16, 2, 9, 2)],
}


@dataclass(frozen=True, slots=True)
class Compared:
    """One number of loopscope beside the dense one."""

    what: str
    value: float
    dense: float
    allowed: float
    lower: float
    upper: float
    converged: bool

    @property
    def apart(self) -> float:
        """The relative difference."""
        return abs(self.value - self.dense) / max(abs(self.dense), 1e-12)

    @property
    def within(self) -> bool:
        """Whether the number is within the bound that it states, or says itself that it did not converge."""
        slack = 1 + ROUNDING["float32"]
        inside = self.lower <= self.dense * slack and self.dense <= self.upper * slack
        return inside and (self.apart <= self.allowed or not self.converged)


def radius_of(matrix: np.ndarray) -> tuple[float, float]:
    """Return the spectral radius of a dense matrix, and the condition number of the eigenvalue that has it.

    >>> radius_of(np.array([[0.5, 0.0], [0.0, 0.25]]))
    (0.5, 1.0)
    """
    values, left, right = eig(matrix, left=True, right=True)
    at = int(np.argmax(np.abs(values)))
    return float(np.abs(values[at])), float(1 / np.abs(np.vdot(left[:, at], right[:, at])))


def trained(checkout: Path, kind: str, seed: int, **sizes: Any) -> Iterator[tuple[int, nn.Module]]:
    """Yield the model at the points of its training."""
    head = build(checkout, seed, kind=kind, **sizes)
    optimizer, stream = optimizer_of(head, RATE), batches(seed, sizes["length"])
    batch = next(stream)
    carry = head.initial_carry(batch)  # type: ignore[operator]
    for step in range(POINTS[-1] + 1):
        if step in POINTS:
            yield step, head
        carry, loss, _, _, _ = head(carry=carry, batch=batch, return_keys=[])
        (loss / len(batch["inputs"])).backward()
        optimizer.step()
        optimizer.zero_grad()
        batch = next(stream)


def dense_jacobian(loop: ByHand, state: list[Tensor]) -> np.ndarray:
    """Return the Jacobian of one joint pass ``(n, n)``, the variables one after the other, each flat."""
    shape = state[0].shape
    flat = torch.cat([part.double().reshape(-1) for part in state])

    def one(joint: Tensor) -> Tensor:
        return torch.cat(
            [part.reshape(-1) for part in loop.one_pass(*(p.reshape(shape) for p in joint.chunk(len(state))))]
        )

    matrix: np.ndarray = torch.autograd.functional.jacobian(one, flat).numpy()
    return matrix


def compared(head: Any, batch: dict[str, Tensor], dtype: str) -> list[Compared]:
    """Return the numbers of loopscope and the dense ones, of a model as it is."""
    if dtype == "float64":
        head = copy.deepcopy(head).double()
        head.model.inner.forward_dtype = torch.float64
        head.model.inner.embed_tokens.cast_to = torch.float64
    code = sys.modules[type(head.model).__module__]
    carry = head.initial_carry(batch)
    with wide_norm(code) if dtype == "float64" else nullcontext():
        measured = loopscope.linearize(head.model, {"carry": carry, "batch": batch}, num_loops=LOOPS)
    visited = ByHand.of(head, batch, getattr(torch, dtype)).states(LOOPS + 1)
    matrix = dense_jacobian(ByHand.of(head, batch, torch.float64), [own[-1] for own in visited.values()])
    part = len(matrix) // len(visited)
    places = {name: slice(at * part, (at + 1) * part) for at, name in enumerate(visited)}
    radius, condition = radius_of(matrix)
    found = [_beside("ρ_J", measured.loop.radius, radius, dtype, condition)]
    if measured.loop.norm is not None:
        found.append(_beside("σ_J", measured.loop.norm, float(np.linalg.norm(matrix, 2)), dtype))
    for block in measured.blocks or []:
        own = matrix[places[block.of], places[block.by]]
        name = f"∂{block.of}/∂{block.by}"
        found.append(_beside(f"σ {name}", block.norm, float(np.linalg.norm(own, 2)), dtype))
        if block.radius is not None:
            found.append(_beside(f"ρ {name}", block.radius, *radius_of(own)[:1], dtype, radius_of(own)[1]))
    return found


def _beside(what: str, estimate: Any, dense: float, dtype: str, condition: float = 1.0) -> Compared:
    """Return a number of loopscope beside the dense one."""
    allowed = condition * (estimate.residual + ROUNDING[dtype])
    return Compared(what, estimate.value, dense, allowed, estimate.lower, estimate.upper, estimate.converged)


def main() -> int:
    """Train, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, help="of TRM's repository")
    parser.add_argument("--kind", choices=SIZES, help="default: all")
    options = parser.parse_args()
    if why := missing(options.checkout):
        print(why)
        return 0
    rows, outside, checkout = [], [], options.checkout.resolve()
    for kind in [options.kind] if options.kind else SIZES:
        for width, heads, length, count in SIZES[kind]:
            batch = {name: value[:count] for name, value in next(batches(7, length)).items()}
            for step, head in trained(checkout, kind, 0, width=width, heads=heads, length=length):
                for dtype in ROUNDING:
                    numbers = compared(head, batch, dtype)
                    n = count * length * width * sum(one.what.startswith("ρ ∂") for one in numbers)
                    blocks = numbers[2:]
                    worst = max(blocks, key=lambda one: one.apart)
                    rows.append([
                        kind, f"{n}", step, dtype, *(f"{one.dense:.4g}, {one.apart:.1e}" for one in numbers[:2]),
                        f"{len(blocks)}, {worst.apart:.1e} ({worst.what})",
                        ", ".join(one.what for one in numbers if not one.converged) or "–",
                        ", ".join(one.what for one in numbers if not one.within) or "–",
                    ])  # fmt: skip
                    print(rows[-1], flush=True, file=sys.stderr)
                    outside += [(kind, n, step, dtype, one) for one in numbers if not one.within]
    head_row = ["model", "n", "step", "format", "ρ_J dense, apart", "σ_max dense, apart", "blocks, most apart",
                "not converged", "outside its bound"]  # fmt: skip
    print(table(head_row, rows))
    print(*outside, sep="\n")
    return 1 if outside else 0


if __name__ == "__main__":
    sys.exit(main())
