"""When to measure: plain functions of the training step, and the presets that bundle them by cost.

Not covered: schedules that look at the run's values; a measurement that is due is due whatever the loss does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

Schedule = Callable[[int], bool]
"""Whether to measure in this step (0, 1, 2, …)."""

EXACT_WIDTH = 128
"""Up to this width the eigenvalues of a dense matrix are computed in every step."""


def every(interval: int) -> Schedule:
    """Return a schedule that is due in step 0 and every ``interval`` steps after it.

    Raises:
        ValueError: ``interval`` is less than 1.

    >>> [step for step in range(10) if every(4)(step)]
    [0, 4, 8]
    """
    if interval < 1:
        raise ValueError(f"every({interval}): the interval counts steps and must be at least 1")
    return lambda step: step % interval == 0


def never(step: int) -> bool:
    """Return False: due in no step.

    >>> never(0)
    False
    """
    return False


def thinning(first: int, last: int) -> Schedule:
    """Due every ``first`` steps at the start of a run, ever more rarely after, every ``last`` steps in the long run.

    The interval doubles whenever the run has become twice as long, from 40 intervals on, so that no moment is further
    from a measurement than 2.5 % of the run: a loop that is going to explode mostly does so early.

    Raises:
        ValueError: ``last`` is not ``first`` times a power of two.

    >>> [step for step in range(16) if thinning(5, 80)(step)], thinning(5, 80)(405), thinning(5, 80)(410)
    ([0, 5, 10, 15], False, True)
    """
    doublings, rest = divmod(last, first) if first >= 1 else (0, 1)
    if rest or doublings.bit_count() != 1:
        raise ValueError(f"thinning({first}, {last}): the last interval must be the first one times a power of two")

    def due(step: int) -> bool:
        lengths = max(1, step // (40 * first))  # how many times 40 first intervals the run has been going for
        interval = min(last, first << (lengths.bit_length() - 1))
        return step % interval == 0

    return due


def matrix_interval(width: int) -> int:
    """Return the steps between exact eigenvalues of a dense ``(width, width)`` A̅: cheap beside training.

    The cost grows as width³ and so does that of a training step's share for each matrix, but a small eigen-problem is
    over in a millisecond: every step up to width 128, then quadratically rarer (every 36 steps at 768, about 0.4 s each
    on one core of a background thread). In between ρ(A̅) and σ_max(A̅) are tracked (`recorder`).

    >>> matrix_interval(32), matrix_interval(192), matrix_interval(768), matrix_interval(1024)
    (1, 4, 36, 64)
    """
    return 1 if width <= EXACT_WIDTH else max(4, (width // EXACT_WIDTH) ** 2)


@dataclass(frozen=True, slots=True)
class Preset:
    """What is measured and when.

    Args:
        name: Written into the run file.
        rows: Steps that get a row; steps without one leave no trace.
        spectrum: Steps whose eigenvalues of A̅ are kept, where A̅ is read in that step.
        probe_batch: Steps after which the fixed probe batch is run at depth 2·μ_rec, of 8 loops at least.
        full_loop: Steps after which the Jacobian of the full loop is measured on it (`full_loop`).
        inside: Steps in which blocks of the first loop and the prelude, and the gradient at every loop, are measured
            (`inside`).
        token_map: Passes of the probe batch of which every token's steps are kept.
    """

    name: str
    rows: Schedule
    spectrum: Schedule
    probe_batch: Schedule
    full_loop: Schedule = never
    inside: Schedule = never
    token_map: Schedule = never


def inspecting(first: int = 50, last: int = 400) -> Preset:
    """Return the preset `inspect`: `watch`, and the full loop after step 1 and after every ``first`` to ``last`` ones.

    >>> [step for step in range(200) if inspecting().full_loop(step)]
    [0, 49, 99, 149, 199]
    """
    after = thinning(first, last)
    return replace(PRESETS["watch"], name="inspect", full_loop=lambda step: step == 0 or after(step + 1))


PRESETS = {"watch": Preset("watch", rows=every(1), spectrum=every(10), probe_batch=thinning(10, 160))}
PRESETS["inspect"] = inspecting()
# Everything, at a cost that a run made for looking at can bear: see docs/performance.md.
PRESETS["study"] = replace(
    PRESETS["inspect"], name="study", spectrum=every(1), inside=thinning(1, 16), token_map=every(1)
)


def find_preset(name: str | Preset) -> Preset:
    """Return a preset by name, or the one given.

    Raises:
        ValueError: There is no preset of that name.

    >>> find_preset("watch").rows(7)
    True
    """
    if isinstance(name, Preset):
        return name
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)} or pass a Preset")
    return PRESETS[name]
