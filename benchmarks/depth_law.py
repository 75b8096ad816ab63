"""Does ``depth_law`` know when it fits? How often it is identified, and how often ± 2 standard errors hold the limit.

Losses at a set of depths are drawn from laws that have the limit, and from laws that have another one or none, with
noise. Of those called identified, the limit must lie within ± 2 standard errors in 95 of 100; a law that is not the
exponential one should not be called identified at all, for its limit is not the fitted one.

    python benchmarks/depth_law.py --draws 400
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from loopscope.dynamics.trajectory.scaling import depth_law
from numpy.typing import NDArray

Array = NDArray[np.float64]
DEPTHS = {"5": [1, 2, 4, 8, 16], "8": [1, 2, 3, 4, 6, 8, 12, 16], "12": [1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32]}
NOISE = (1e-4, 1e-3, 5e-3)
LAWS: dict[str, Callable[[np.random.Generator, Array], tuple[Array, float]]] = {
    "exponential": lambda rng, t: _with(2.5, rng.uniform(0.2, 1) * np.exp(-rng.uniform(0.2, 1) * t)),
    "power": lambda rng, t: _with(2.5, rng.uniform(0.2, 1) * t ** -rng.uniform(0.3, 1.5)),
    "logarithm": lambda rng, t: _with(np.nan, 3 - rng.uniform(0.05, 0.3) * np.log(t) - 2.5, 2.5),
    "falls, then rises": lambda rng, t: _with(
        np.nan, rng.uniform(0.2, 1) * np.exp(-rng.uniform(0.5, 1.5) * t) + rng.uniform(0.005, 0.03) * np.log(t), 3.0
    ),
}


def _with(limit: float, rest: Array, level: float | None = None) -> tuple[Array, float]:
    """Return the losses and their true limit."""
    return (limit if level is None else level) + rest, limit


def main() -> None:
    """Print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print("| law | depths | noise, nats | identified | limit within ± 2 SE, of those |")
    print("|---|---|---|---|---|")
    for name, draw in LAWS.items():
        for label, depths in DEPTHS.items():
            for noise in NOISE:
                rng = np.random.default_rng([options.seed, len(depths)])
                t = np.array(depths, dtype=np.float64)
                sure, held = 0, 0
                for _ in range(options.draws):
                    losses, limit = draw(rng, t)
                    law = depth_law(t, losses + noise * rng.normal(size=t.size))
                    sure += law.identified
                    held += law.identified and abs(law.limit - limit) <= 2 * law.quality.standard_errors["limit"]
                share = f"{100 * held / sure:.0f} %" if sure and np.isfinite(limit) else "no limit" if sure else "none"
                print(f"| {name} | {label} | {noise:g} | {100 * sure / options.draws:.0f} % | {share} |")


if __name__ == "__main__":
    main()
