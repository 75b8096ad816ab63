"""How often `classify` is right, undecided and wrong: loops whose law is known, by kind, depth and type of the states.

Every loop is really run: six tokens of width 16, rounded to the type of its states after every loop, and its norms are
averaged and recorded in float32 as a probe does. Each seed draws its own matrices, starts and rates. Thresholds may
only be chosen on the even seeds; the table that counts is that of the odd ones. `--first-seed` takes seeds that nobody
has looked at yet, all of them.

    python benchmarks/trajectory.py --seeds 40
    python benchmarks/trajectory.py --first-seed 1000 --seeds 100
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from loopscope.dynamics.trajectory.trajectory import ROUND_OFF_OF, classify_map
from numpy.typing import NDArray

Array = NDArray[np.float64]
Step = Callable[[Array, int], Array]
TOKENS, WIDTH, DEEPEST = 6, 16, 64
DEPTHS = (6, 8, 12, 16, 24, 32, 64)
TYPES = ("float64", "float32", "bfloat16")
LAWS: dict[str, tuple[str, Callable[[np.random.Generator], tuple[Step, Array]]]] = {}


def law(kind: str) -> Callable[[Callable[..., tuple[Step, Array]]], Callable[..., tuple[Step, Array]]]:
    """Register a loop: the function draws a step ``(h, t) -> h'`` and a first state."""

    def keep(make: Callable[..., tuple[Step, Array]]) -> Callable[..., tuple[Step, Array]]:
        LAWS[make.__name__] = (kind, make)
        return make

    return keep


def linear(kind: str, name: str, matrix: Callable[[np.random.Generator], Array], push: float = 1.0) -> None:
    """Register ``h' = A h + push e``."""

    def make(rng: np.random.Generator) -> tuple[Step, Array]:
        a, e = matrix(rng), push * rng.normal(size=(TOKENS, WIDTH))
        return lambda h, t: h @ a.T + e, rng.normal(size=(TOKENS, WIDTH))

    LAWS[name] = (kind, make)


def basis(rng: np.random.Generator) -> Array:
    """Return a random rotation."""
    return np.asarray(np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0])


def normal(*rates: float, spread: float = 0.0) -> Callable[[np.random.Generator], Array]:
    """Draw symmetric matrices with these eigenvalues, each as often; the leading one varies by ``spread``."""

    def draw(rng: np.random.Generator) -> Array:
        values = np.resize(rates, WIDTH) + spread * rng.uniform(-1, 1) * (
            np.resize(rates, WIDTH) == max(rates, key=abs)
        )
        q = basis(rng)
        return np.asarray(q @ np.diag(values) @ q.T)

    return draw


def turning(rate: float, angle: float | tuple[float, float]) -> Callable[[np.random.Generator], Array]:
    """Draw rotations by one angle or by angles drawn from a range, times a rate."""

    def draw(rng: np.random.Generator) -> Array:
        angles = np.full(WIDTH // 2, angle) if isinstance(angle, float) else rng.uniform(*angle, WIDTH // 2)
        a = np.zeros((WIDTH, WIDTH))
        for i, x in enumerate(angles):
            a[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = rate * np.array([[np.cos(x), -np.sin(x)], [np.sin(x), np.cos(x)]])
        q = basis(rng)
        return np.asarray(q @ a @ q.T)

    return draw


def jordan(rate: float, size: int, coupling: float) -> Callable[[np.random.Generator], Array]:
    """Draw Jordan blocks of one rate."""
    a = rate * np.eye(WIDTH) + coupling * np.diag(np.where(np.arange(1, WIDTH) % size, 1.0, 0.0), 1)
    return lambda rng: a


def dense(radius: float) -> Callable[[np.random.Generator], Array]:
    """Draw random non-normal matrices of a radius."""

    def draw(rng: np.random.Generator) -> Array:
        a = rng.normal(size=(WIDTH, WIDTH))
        return np.asarray(radius * a / np.abs(np.linalg.eigvals(a)).max())

    return draw


for rate in (0.3, 0.5, 0.8, 0.9, 0.95, 0.97):
    linear("settling", f"contraction {rate}", normal(rate))
for rate in (-0.8, -0.95):
    linear("settling", f"alternating {rate}", normal(rate))
linear("settling", "focus 0.9, angle 1", turning(0.9, 1.0))
linear("settling", "focus 0.95, angle 0.3", turning(0.95, 0.3))
linear("settling", "Jordan blocks of 0.8", jordan(0.8, 2, 0.5))
linear("settling", "two rates 0.4 and 0.9", normal(0.4, 0.9, spread=0.03))
linear("settling", "all rates up to 0.92", lambda rng: normal(*np.linspace(0.1, 0.92, WIDTH))(rng))
linear("settling", "dense, radius 0.85", dense(0.85))
linear("settling", "contraction to zero, 0.8", normal(0.8), push=0.0)
linear("drifting", "h + e", normal(1.0))
linear("drifting", "h + e in half, 0.6 in half", normal(1.0, 0.6))
linear("orbiting", "rotation by 1", turning(1.0, 1.0))
linear("orbiting", "rotation by 2.5", turning(1.0, 2.5))
linear("orbiting", "rotations by 0.7 to 3", turning(1.0, (0.7, 3.0)))
linear("orbiting", "period 2", normal(-1.0))
linear("orbiting", "period 3", turning(1.0, 2 * np.pi / 3))
linear("orbiting", "period 2 and a transient 0.6", normal(-1.0, 0.6))
for rate in (1.02, 1.05, 1.1, 1.3, 2.0, 5.0):
    linear("exploding", f"growth {rate}", normal(rate))
linear("exploding", "spiral 1.02, angle 1", turning(1.02, 1.0))
linear("exploding", "spiral 1.05, angles 0.5 to 2", turning(1.05, (0.5, 2.0)))
linear("exploding", "alternating -1.1", normal(-1.1))
linear("exploding", "Jordan blocks of 1.05", jordan(1.05, 2, 0.5))
linear("exploding", "dense, radius 1.1", dense(1.1))
linear("exploding", "growth 1.2 in one of 16, 0.5 else", normal(1.2, *[0.5] * 15))
linear("exploding", "growth 1e15", normal(1e15))


@law("settling")
def tanh_block(rng: np.random.Generator) -> tuple[Step, Array]:
    """Return 0.5 h + e + a block that reads h through a norm."""
    w, e = 0.5 * rng.normal(size=(WIDTH, WIDTH)) / 4, rng.normal(size=(TOKENS, WIDTH))
    return lambda h, t: 0.5 * h + e + np.tanh(normed(h) @ w), 0 * e


@law("settling")
def sphere_contraction(rng: np.random.Generator) -> tuple[Step, Array]:
    """Return a normalised state that is pulled to its input."""
    e = normed(rng.normal(size=(TOKENS, WIDTH)))
    return lambda h, t: normed(0.8 * h + e), normed(rng.normal(size=(TOKENS, WIDTH)))


@law("settling")
def like_t_to_the_minus_2(rng: np.random.Generator) -> tuple[Step, Array]:
    """Return the map h' = h - h² / 2 from above its fixed point 0: steps like t^-2."""
    return lambda h, t: h - h * np.abs(h) / 2, rng.uniform(0.5, 1, size=(TOKENS, WIDTH))


@law("settling")
def like_t_to_the_minus_1_5(rng: np.random.Generator) -> tuple[Step, Array]:
    """Return the map h' = h - h³ / 2: steps like t^-3/2."""
    return lambda h, t: h - h**3 / 2, rng.uniform(0.5, 1, size=(TOKENS, WIDTH))


@law("settling")
def jump_then_0_85(rng: np.random.Generator) -> tuple[Step, Array]:
    """Return a first loop that jumps by twenty times the rest."""
    e = rng.normal(size=(TOKENS, WIDTH))
    return lambda h, t: 0.85 * h + e * (20 if t == 0 else 3), 0 * e


@law("settling")
def far_rest_0_7(rng: np.random.Generator) -> tuple[Step, Array]:
    """Return a fixed point of norm 1000, approached from near by."""
    rest = 250 * rng.normal(size=(TOKENS, WIDTH))
    return lambda h, t: rest + 0.7 * (h - rest), rest + 40 * rng.normal(size=(TOKENS, WIDTH))


@law("settling")
def logistic_2_8(rng: np.random.Generator) -> tuple[Step, Array]:
    """Return the logistic map with an attracting fixed point of multiplier -0.8."""
    return lambda h, t: 2.8 * h * (1 - h), rng.uniform(0.2, 0.8, size=(TOKENS, WIDTH))


@law("drifting")
def harmonic_steps(rng: np.random.Generator) -> tuple[Step, Array]:
    """Return steps like 1/t."""
    e = rng.normal(size=(TOKENS, WIDTH))
    return lambda h, t: h + e / (t + 1), 0 * e


@law("drifting")
def root_steps(rng: np.random.Generator) -> tuple[Step, Array]:
    """Return steps like t^-1/2."""
    e = rng.normal(size=(TOKENS, WIDTH))
    return lambda h, t: h + e / np.sqrt(t + 1), 0 * e


@law("drifting")
def polynomial_steps(rng: np.random.Generator) -> tuple[Step, Array]:
    """Return steps like t."""
    e = rng.normal(size=(TOKENS, WIDTH))
    return lambda h, t: h + e * (t + 1), 0 * e


@law("drifting")
def random_walk(rng: np.random.Generator) -> tuple[Step, Array]:
    """Return independent steps."""
    return lambda h, t: h + rng.normal(size=h.shape), 0 * rng.normal(size=(TOKENS, WIDTH))


@law("drifting")
def drift_from_afar(rng: np.random.Generator) -> tuple[Step, Array]:
    """Return the map h + e from a start of twenty times the step, so that the relative step is small."""
    e = rng.normal(size=(TOKENS, WIDTH))
    return lambda h, t: h + e, 20 * rng.normal(size=(TOKENS, WIDTH))


@law("drifting")
def drift_and_rotation(rng: np.random.Generator) -> tuple[Step, Array]:
    """Return steps of which half of the state turns and half drifts."""
    a, e = turning(1.0, 1.5)(rng), rng.normal(size=(TOKENS, WIDTH))
    a[: WIDTH // 2], a[:, : WIDTH // 2] = 0, 0
    a[: WIDTH // 2, : WIDTH // 2] = np.eye(WIDTH // 2)
    b = np.zeros((WIDTH // 2, WIDTH // 2))
    for i in range(0, WIDTH // 2, 2):
        b[i : i + 2, i : i + 2] = [[np.cos(1.5), -np.sin(1.5)], [np.sin(1.5), np.cos(1.5)]]
    a[WIDTH // 2 :, WIDTH // 2 :] = b
    return lambda h, t: h @ a.T + e, 0 * e


@law("drifting")
def wobbling_drift(rng: np.random.Generator) -> tuple[Step, Array]:
    """Return the map h + e, each step off by a tenth."""
    e = rng.normal(size=(TOKENS, WIDTH))
    return lambda h, t: h + e * (1 + 0.1 * rng.normal(size=(TOKENS, 1))) + 0.1 * rng.normal(size=e.shape), 0 * e


@law("drifting")
def pre_norm_addition(rng: np.random.Generator) -> tuple[Step, Array]:
    """Return the map h + e + a block that reads h through a norm."""
    w, e = rng.normal(size=(WIDTH, WIDTH)) / 8, rng.normal(size=(TOKENS, WIDTH))
    return lambda h, t: h + e + np.tanh(normed(h) @ w), 0 * e


@law("orbiting")
def limit_cycle(rng: np.random.Generator) -> tuple[Step, Array]:
    """Return a spiral out to a circle of radius 1 in every plane, half-way there."""
    a = turning(1.0, 1.1)(rng)

    def step(h: Array, t: int) -> Array:
        size = np.linalg.norm(h, axis=1, keepdims=True)
        return (1.3 - 0.3 * size**2) * (h @ a.T)

    return step, 0.4 * normed(rng.normal(size=(TOKENS, WIDTH)))


@law("orbiting")
def logistic_chaos(rng: np.random.Generator) -> tuple[Step, Array]:
    """Return the logistic map at 3.9."""
    return lambda h, t: 3.9 * h * (1 - h), rng.uniform(0.2, 0.8, size=(TOKENS, WIDTH))


@law("orbiting")
def logistic_2_cycle(rng: np.random.Generator) -> tuple[Step, Array]:
    """Return the logistic map at 3.3: an attracting cycle of two."""
    return lambda h, t: 3.3 * h * (1 - h), rng.uniform(0.2, 0.8, size=(TOKENS, WIDTH))


@law("orbiting")
def chaotic_network(rng: np.random.Generator) -> tuple[Step, Array]:
    """Return the tanh of a random matrix of gain 3; one in which a token comes to rest in the end is drawn again."""
    while True:
        w, start = 3 * rng.normal(size=(WIDTH, WIDTH)) / 4, rng.normal(size=(TOKENS, WIDTH))
        h = start
        for _ in range(1000):
            before, h = h, np.tanh(h @ w)
        if np.linalg.norm(h - before, axis=1).min() > 0.1:
            return lambda h, t, w=w: np.tanh(h @ w), start


@law("orbiting")
def rotation_on_the_sphere(rng: np.random.Generator) -> tuple[Step, Array]:
    """Return a normalised state that turns."""
    a = turning(1.0, (0.8, 2.5))(rng)
    return lambda h, t: normed(1.5 * h @ a.T), normed(rng.normal(size=(TOKENS, WIDTH)))


@law("exploding")
def not_finite_late(rng: np.random.Generator) -> tuple[Step, Array]:
    """Return a contraction whose state becomes NaN in its last third."""
    e, share = rng.normal(size=(TOKENS, WIDTH)), rng.uniform(0.7, 0.95)
    step: Step = lambda h, t: 0.5 * h + e  # noqa: E731
    step.nan_at = share  # type: ignore[attr-defined]
    return step, 0 * e


@law("exploding")
def quadratic_blow_up(rng: np.random.Generator) -> tuple[Step, Array]:
    """Return the map h + h² / 10: faster than any exponential in the end."""
    return lambda h, t: h + h * np.abs(h) / 10, rng.uniform(1, 2, size=(TOKENS, WIDTH))


def normed(h: Array) -> Array:
    """Return every token at length 1."""
    return np.asarray(h / np.maximum(np.linalg.norm(h, axis=1, keepdims=True), 1e-300))


def rounded(h: Array, name: str) -> Array:
    """Return the state as its type holds it."""
    if name == "float64":
        return h
    short = h.astype(np.float32)
    if name == "float32":
        return short.astype(np.float64)
    bits = short.view(np.uint32)
    kept = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return np.where(np.isfinite(short), kept, short).astype(np.float64)


@dataclass
class Recorded:
    """Mean norms of one loop of 64, as a probe records them."""

    residual: Array
    cosine: Array
    state: Array


@cache
def run(name: str, kind: str, seed: int) -> Recorded:
    """Run one loop to its full depth."""
    rng = np.random.default_rng([seed, sum(map(ord, name))])
    step, h = LAWS[name][1](rng)
    states = [rounded(h, kind)]
    for t in range(DEEPEST):
        states.append(rounded(step(states[-1], t), kind))
    path = np.array(states)
    steps = np.diff(path, axis=0)
    size = np.linalg.norm(steps, axis=2)
    turn = np.full(size.shape, np.nan)
    turn[1:] = (steps[1:] * steps[:-1]).sum(2) / np.maximum(size[1:] * size[:-1], 1e-300)
    means = (size.mean(1), turn.mean(1), np.linalg.norm(path, axis=2).mean(1))
    return Recorded(*(mean.astype(np.float32).astype(np.float64) for mean in means))


def verdicts(name: str, state: str, seeds: range, depth: int) -> NDArray[np.str_]:
    """Return the kind that is given to one loop at one depth, by seed."""
    runs = [run(name, state, seed) for seed in seeds]
    residual, cosine = (np.stack([getattr(r, what)[:depth] for r in runs]) for what in ("residual", "cosine"))
    norm = np.stack([r.state[: depth + 1] for r in runs])
    if name == "not_finite_late":
        bad = max(1, int(0.8 * depth))
        residual[:, bad:], norm[:, bad + 1 :] = np.nan, np.nan
    return classify_map(residual, cosine, norm, round_off=ROUND_OFF_OF[state]).kind


def table(seeds: range, depths: tuple[int, ...]) -> dict[str, dict[tuple[str, int], tuple[float, float, float, float]]]:
    """Return the shares of right, undecided, wrong and falsely stable verdicts by kind, type and depth."""
    shares: dict[str, dict[tuple[str, int], tuple[float, float, float, float]]] = {}
    for name, (truth, _) in LAWS.items():
        shares[name] = {}
        for state in TYPES:
            for depth in depths:
                said = verdicts(name, state, seeds, depth)
                right, torn = (said == truth).mean(), (said == "undecided").mean()
                falsely = (said == "settling").mean() if truth == "exploding" else 0.0
                shares[name][state, depth] = (right, torn, ((said != truth) & (said != "undecided")).mean(), falsely)
    return shares


def main() -> None:
    """Print the table of the seeds that no threshold was chosen on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--first-seed", type=int, default=0, help="above 0: fresh seeds, odd and even")
    parser.add_argument("--chosen-on", action="store_true", help="the even seeds instead, to choose thresholds on")
    parser.add_argument("--full", action="store_true", help="every type of states by itself")
    options = parser.parse_args()
    seeds = range(0 if options.chosen_on else 1, options.seeds, 2)
    if options.first_seed:
        seeds = range(options.first_seed, options.first_seed + options.seeds)
    with np.errstate(all="ignore"):
        report(table(seeds, DEPTHS), full=options.full)


def report(shares: dict[str, dict[tuple[str, int], tuple[float, float, float, float]]], *, full: bool) -> None:
    """Print right / undecided / wrong in per cent: of all types together, or of each."""
    types = [(t,) for t in TYPES] if full else [TYPES]
    print("| loop | law | " + " | ".join(f"T = {d}" for d in DEPTHS) + " |")
    print("|---" * (2 + len(DEPTHS)) + "|")
    for name, cells in shares.items():
        for group in types:
            row = []
            for depth in DEPTHS:
                right, torn, wrong, _ = np.mean([cells[state, depth] for state in group], axis=0)
                row.append(f"{100 * right:.0f} / {100 * torn:.0f} / {100 * wrong:.0f}")
            label = name.replace("_", " ") + (f", {group[0]}" if full else "")
            print(f"| {label} | {LAWS[name][0]} | " + " | ".join(row) + " |")
    print()
    for depth in DEPTHS:
        every = np.array([cells[state, depth] for cells in shares.values() for state in TYPES])
        wrong = sorted(
            ((cells[state, depth][2], name, state) for name, cells in shares.items() for state in TYPES), reverse=True
        )
        worst = ", ".join(f"{name} in {state} {100 * share:.0f} %" for share, name, state in wrong[:8] if share > 0.05)
        print(
            f"T = {depth}: right {100 * every[:, 0].mean():.1f} %, undecided {100 * every[:, 1].mean():.1f} %, wrong "
            f"{100 * every[:, 2].mean():.1f} %, growing yet stable {100 * every[:, 3].max():.1f} % at worst"
            + (f"; more than 5 % wrong: {worst}" if worst else "")
        )


if __name__ == "__main__":
    main()
