"""Cost and error of tracked spectra against exact ones, side by side in one run.

A random matrix moves by a fixed relative amount per step (slowly: 0.003, fast: 0.02) while outlier eigenvalues grow
through |λ| = 1 or cross each other; "identity" is a multiple of the identity in float32 that moves away from it by as
much per step. Every step is solved by the trackers (no refresh, so that their own error shows) and by numpy; scipy and
torch are timed on some steps. Errors are those of the values that a run file would hold, the converged ones.

    python benchmarks/spectra.py --width 256 1024 --steps 25

Not covered: spectra of the full loop, which need a model.
"""

import argparse
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date

import numpy as np
import torch
from loopscope.dynamics import SpectralTracker, certify_radius, verdict
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, eigs

KINDS = ("bulk", "real", "pair", "crossing", "identity")
RATES = (0.003, 0.02)


def drift(kind: str, rate: float, width: int, steps: int) -> Iterator[NDArray[np.float32]]:
    """Return the matrices of one scenario, float32 as parameters are."""
    rng = np.random.default_rng(0)
    random = rng.normal(size=(width, width)) / np.sqrt(width)
    u, v = np.linalg.qr(rng.normal(size=(width, 2)))[0].T
    for step in range(steps):
        size = 0.5 + 0.7 * step / steps
        if kind == "real":
            outlier = size * np.outer(u, u)
        elif kind == "pair":
            outlier = size * (0.8 * (np.outer(u, u) + np.outer(v, v)) + 0.6 * (np.outer(u, v) - np.outer(v, u)))
        elif kind == "crossing":
            outlier = (1.15 - 0.2 * size) * np.outer(u, u) - (0.7 + 0.5 * size) * np.outer(v, v)
        elif kind == "identity":
            yield (0.9 * np.eye(width) + rate * step * random).astype(np.float32)
            continue
        else:
            outlier = np.zeros((width, width))
        yield (0.8 * random + outlier).astype(np.float32)
        random = np.sqrt(1 - rate**2) * random + rate * rng.normal(size=(width, width)) / np.sqrt(width)


def timed(times: list[float], work: Callable[[], float]) -> float:
    """Return the value of the work and append its seconds."""
    began = time.perf_counter()
    value = work()
    times.append(time.perf_counter() - began)
    return value


def arpack(a: NDArray[np.float32]) -> float:
    """Return the radius by ARPACK with the setting that does not stop on the wrong edge eigenvalue."""
    try:
        return float(np.abs(eigs(a, k=6, ncv=40, return_eigenvectors=False)).max())
    except ArpackNoConvergence as stopped:
        return float(np.abs(stopped.eigenvalues).max(initial=np.nan))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What tracking gave in one scenario.

    Attributes:
        given: Shares of the steps with a value, of ρ and of σ_max.
        error: Worst relative errors of these values; NaN without any.
        enclosed: Share of the steps whose interval holds ρ.
        cost: Median seconds of numpy over those of the tracker, behind the first step: of ρ and of σ_max.
    """

    given: tuple[float, float]
    error: tuple[float, float]
    enclosed: float
    cost: tuple[float, float]


def scenario(kind: str, rate: float, width: int, steps: int, times: dict[str, list[float]]) -> Outcome:
    """Track one drift; exact values and tracked ones are taken in turn, so that both see the same machine."""
    radius = SpectralTracker("radius", background=False, refresh_every=10**9)
    norm = SpectralTracker("norm", background=False, refresh_every=10**9)
    # The benchmark measures tracking alone: pretend the refresh at the start has been done.
    radius._is_due = norm._is_due = lambda index, estimate: False  # type: ignore[method-assign]
    errors, given, seconds = np.zeros((steps, 2)), np.zeros((steps, 2), bool), np.zeros((steps, 4))
    enclosed = 0
    for step, a in enumerate(drift(kind, rate, width, steps)):
        warm = step > 0
        exact = timed(times["numpy eigvals"], lambda a=a: float(np.abs(np.linalg.eigvals(a.astype(np.float64))).max()))
        stretch = timed(times["numpy norm"], lambda a=a: float(np.linalg.norm(a.astype(np.float64), 2)))
        began = time.perf_counter()
        tracked = radius.update(a)
        middle = time.perf_counter()
        size = norm.update(a)
        ended = time.perf_counter()
        times["tracker radius" if warm else "tracker radius, first step"].append(middle - began)
        times["tracker norm" if warm else "tracker norm, first step"].append(ended - middle)
        seconds[step] = times["numpy eigvals"][-1], times["numpy norm"][-1], middle - began, ended - middle
        errors[step] = abs(tracked.value / exact - 1), abs(size.value / stretch - 1)
        given[step] = tracked.converged, size.converged
        enclosed += tracked.lower * (1 - 1e-9) <= exact <= tracked.upper * (1 + 1e-9)
        if step % 10 == 5:
            timed(times["scipy eigs (k=6, ncv=40)"], lambda a=a: arpack(a))
            tensor = torch.from_numpy(a).double()
            timed(times["torch eigvals"], lambda t=tensor: float(torch.linalg.eigvals(t).abs().max()))
    worst = [errors[given[:, i], i].max(initial=0.0) if given[:, i].any() else np.nan for i in (0, 1)]
    median = np.median(seconds[1:], axis=0)
    shares = given.mean(axis=0)
    return Outcome(
        (float(shares[0]), float(shares[1])),
        (float(worst[0]), float(worst[1])),
        enclosed / steps,
        (float(median[0] / median[2]), float(median[1] / median[3])),
    )


def main() -> None:
    """Run all scenarios and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, nargs="+", default=[1024])
    parser.add_argument("--steps", type=int, default=25, help="steps of each scenario")
    options = parser.parse_args()
    machine = platform.processor() or platform.machine()
    print(f"{date.today()}  {machine}  numpy {np.__version__}  torch {torch.__version__}")
    for width in options.width:
        compare(width, options.steps)


def compare(width: int, steps: int) -> None:
    """Print both tables for one width."""
    times: dict[str, list[float]] = {
        name: []
        for name in (
            *(
                "numpy eigvals",
                "torch eigvals",
                "scipy eigs (k=6, ncv=40)",
                "tracker radius",
                "tracker radius, first step",
            ),
            *("numpy norm", "tracker norm", "tracker norm, first step", "certificate"),
        )
    }
    print(f"\nd = {width}, {steps} steps a scenario, {torch.get_num_threads()} torch threads\n")
    columns = ("ρ given", "worst error", "in interval", "exact/this", "σ given", "worst error", "exact/this")
    print(f"{'scenario':<10}{'rate':>7}" + "".join(f"{column:>13}" for column in columns))
    for kind in KINDS:
        for rate in RATES:
            out = scenario(kind, rate, width, steps, times)
            print(
                f"{kind:<10}{rate:>7}{out.given[0]:>13.0%}{out.error[0]:>13.1e}{out.enclosed:>13.0%}{out.cost[0]:>13.1f}"
                f"{out.given[1]:>13.0%}{out.error[1]:>13.1e}{out.cost[1]:>13.1f}",
                flush=True,
            )
    for a in drift("real", 0.02, width, 1):
        for target in (0.9833, 1.0158):
            scaled = a * (target / np.abs(np.linalg.eigvals(a)).max())
            began = time.perf_counter()
            proof = certify_radius(scaled)
            times["certificate"].append(time.perf_counter() - began)
            print(f"\nρ = {target}: {verdict(proof)} {proof}")
    exact = {name: float(np.median(times["numpy norm" if "norm" in name else "numpy eigvals"])) for name in times}
    print(f"\n{'method':<30}{'median':>12}{'exact / this':>14}")
    for name, seconds in times.items():
        median = float(np.median(seconds)) if seconds else np.nan
        print(f"{name:<30}{median * 1e3:>9.1f} ms{exact[name] / median:>14.1f}")


if __name__ == "__main__":
    main()
