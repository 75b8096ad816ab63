"""A run whose loop carries z_H and z_L, of which one fails from step 40 on: it explodes, or is not finite any more."""

from pathlib import Path

import numpy as np
from loopscope.runfile.layout import VARIABLE_PASSES
from loopscope.runfile.writer import RunWriter

NAMES = ("z_H", "z_L")
FROM, STEPS, EVERY = 40, 120, 20
T = np.arange(17.0)


def passes(growth: float) -> np.ndarray:
    """What is measured of a variable in 16 passes: its steps change by a factor each, its norm grows with them."""
    measured = np.full((17, 3), np.nan, np.float32)
    measured[:, 0] = np.maximum(growth, 1.0) ** T
    measured[:-1, 1], measured[1:-1, 2] = 0.1 * growth ** T[:-1], 0.9
    return measured


def loops(growth: float) -> np.ndarray:
    """The loops of one step or one pass of the fixed batch: (17, 4) as in the run file."""
    table = np.concatenate([passes(growth), np.full((17, 1), 8.0, np.float32)], axis=1)
    return np.where(table == 8.0, table, np.float32(np.inf)) if np.isnan(growth) else table


def write_two(path: Path, fails: str = "", how: str = "explodes", *, until: int = STEPS, **info: object) -> Path:
    """Write a run and seal it.

    Args:
        path: Where to.
        fails: Name of the variable that fails; empty for none.
        until: Step from which on it does not fail any more.
        how: ``explodes``, or ``nan``: its state is not finite.
        info: What the run says of itself.
    """
    bad = np.nan if how == "nan" else 1.4
    with RunWriter.create(path, info={"variables": list(NAMES), "config": {"train": {"lr": 0.01}}} | info) as writer:
        for step in range(STEPS):
            ill = fails if FROM <= step < until else ""
            joint = bad if ill else 0.6
            row = {"step": step, "loss": 3.0 + 0.01 * np.sin(step), "lr": 0.01, "depth": 16, "time": 1.7e9 + step}
            writer.append_step(row | {"nonfinite": float(bool(ill) and how == "nan")}, loops(joint))
            for number, name in enumerate(NAMES):
                own = np.zeros((17, 6), np.float32)
                own[:, :4] = loops(bad if name == ill else 0.6)
                own[:, 4], own[:, 5] = T, 1.0
                writer.append_variable(step, number, own)
            if step % EVERY == 0:
                writer.append_probe(step, loops(joint))
                if not (ill and how == "nan"):
                    factors = [bad if name == ill else 0.6 for name in NAMES]
                    writer.append_array(step, VARIABLE_PASSES, np.stack([passes(factor) for factor in factors]))
        writer.flush()
        writer.seal()
    return path
