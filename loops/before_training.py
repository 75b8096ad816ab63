"""What a loop is like before its first training step, and what of that is known to go wrong later.

Each check looks at one thing, says what it saw, from where it is known, and what to try. A check that cannot look says
why: a loop without a known A̅, a model that does not say its training depth. The model is read, never trained; in one
check its parameters are changed and put back, so give it a model that nothing else uses.

Not covered: data, schedules, and everything that only a step of training can show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn

from ..dynamics.linear.spectrum import spectral_radius
from ..dynamics.loop.linearization import Linearization
from ..dynamics.regime import LTI_TOLERANCE
from .site import LoopSite

Severity = Literal["note", "warning", "error"]
TRIES: Final = 12  # settings of the parameters behind A̅ that are tried
PUSH: Final = 4.0  # standard deviations by which they are moved
HELD: Final = 1.001  # ρ(A̅) that a constraint may reach, by rounding
FURTHEST: Final = 4  # times the training depth: loops that nobody has shown to help
HOT, WARM = 0.05, 0.03  # learning rates of the calibrated map
SMALL: Final = 1_000_000  # parameters of models that the map was measured on, at most


@dataclass(frozen=True, slots=True)
class Remark:
    """What one check saw.

    Attributes:
        id: Of the check.
        name: Its name.
        state: ``warned``, ``fine``, or ``not judged``.
        severity: How much it matters, where it warned.
        message: What was seen, with the numbers; or why it could not look.
        source: Where it is known from.
        remedy: What to try.
    """

    id: str
    name: str
    state: Literal["warned", "fine", "not judged"]
    severity: Severity
    message: str
    source: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """A training that is about to begin.

    Attributes:
        model: The model as it was built.
        site: Where its loop is.
        lr: Peak learning rate; None where it is not known.
        loops: Loops that will be run at test time; None: as in training.
        prelude_norm: Whether the input of the loop is normed; None where it is not known.
        linearized: The loop near the states that it visits now; None where that could not be measured.
    """

    model: nn.Module
    site: LoopSite
    lr: float | None = None
    loops: int | None = None
    prelude_norm: bool | None = None
    linearized: Linearization | None = None


def remarks(plan: Plan) -> list[Remark]:
    """Return what every check says of a plan, in the order of their ids."""
    return [check(plan) for check in CHECKS]


def radius_at_start(plan: Plan) -> Remark:
    """Ask whether A̅ contracts where training begins."""
    name = ("LL001", "radius-at-start")
    a_bar = _a_bar(plan.site)
    if a_bar is None:
        return Remark(*name, "not judged", "error", _NO_A_BAR)
    radius = _radius(a_bar)
    if not a_bar.requires_grad:
        return Remark(*name, "fine", "error", f"ρ(A̅) = {radius:.4g}, fixed by design")
    remedy = "initialise A̅ with a smaller radius, or constrain it (Parcae)"
    source = "docs/theory.md: the linear part multiplies the state by ρ(A̅) in every loop"
    if radius >= 1:
        return Remark(*name, "warned", "error", f"ρ(A̅) = {radius:.4g} before the first step", source, remedy)
    if radius > 1 - LTI_TOLERANCE:
        return Remark(*name, "warned", "warning", f"ρ(A̅) = {radius:.4g}, at the edge already", source, remedy)
    return Remark(*name, "fine", "error", f"ρ(A̅) = {radius:.4g}")


def free_a_bar(plan: Plan) -> Remark:
    """Ask whether training can move A̅ beyond 1: parameters behind it are pushed, and put back."""
    name = ("LL002", "free-a-bar")
    a_bar = _a_bar(plan.site)
    if a_bar is None or plan.site.a_bar is None:
        return Remark(*name, "not judged", "warning", _NO_A_BAR)
    if not a_bar.requires_grad:
        return Remark(*name, "fine", "warning", "A̅ is fixed by design")
    furthest = _furthest_radius(plan.model, plan.site.a_bar, a_bar)
    if furthest <= HELD:
        return Remark(*name, "fine", "warning", f"ρ(A̅) stayed at or below {furthest:.4g} wherever it was pushed to")
    return Remark(
        *name,
        "warned",
        "warning",
        f"nothing holds A̅: its parameters pushed by {PUSH:g} standard deviations give ρ(A̅) = {furthest:.3g}",
        "the calibration runs: 24 of 55 with a free A̅ went wrong at hot rates, none of three with Parcae",
        "constrain A̅ so that ρ(A̅) < 1 by construction (Parcae), or watch it (LS020)",
    )


def prelude_norm(plan: Plan) -> Remark:
    """Ask whether the input of the loop is normed before it is injected in every loop."""
    name = ("LL003", "no-prelude-norm")
    if plan.prelude_norm is None:
        return Remark(*name, "not judged", "note", "only a configuration says whether the prelude is normed")
    if plan.prelude_norm:
        return Remark(*name, "fine", "note", "the input of the loop is normed")
    return Remark(
        *name,
        "warned",
        "note",
        "the input of the loop is not normed, so that its size, injected in every loop, is free to grow in training",
        "the Parcae paper, section on loss spikes: they come with large residuals, and the norm removes them",
        "set prelude_norm = true in [model]",
    )


def expands_at_start(plan: Plan) -> Remark:
    """Ask whether the full loop, blocks included, grows at initialisation: residual branches may be too large."""
    name = ("LL004", "residual-scale")
    seen = plan.linearized
    if seen is None or seen.loop is None:
        return Remark(*name, "not judged", "warning", "the full loop could not be linearised")
    rate, law = seen.loop.lyapunov_max, seen.trajectory
    what = f"λ = {rate:+.3g} nats a loop over {seen.loops} loops; {law.sentence}"
    if seen.regimes["trajectory"] == "unstable" or seen.regimes["loop"] == "unstable":
        return Remark(
            *name,
            "warned",
            "warning",
            f"the loop expands before any training: {what}",
            "docs/theory.md, the full loop; residual branches must shrink with the number of times they are applied",
            "scale what writes to the residual stream by 1/√(2 · blocks · loops), or use sandwich norm",
        )
    return Remark(*name, "fine", "warning", what)


def rounds_to_one(plan: Plan) -> Remark:
    """Ask whether A̅ kept in bfloat16 would still contract: just below 1 its numbers lie 2⁻⁸ apart."""
    name = ("LL005", "bf16-a-bar")
    a_bar = _a_bar(plan.site)
    if a_bar is None:
        return Remark(*name, "not judged", "warning", _NO_A_BAR)
    exact, rounded = _radius(a_bar), _radius(a_bar.detach().bfloat16().float())
    if exact < 1 <= rounded:
        return Remark(
            *name,
            "warned",
            "warning",
            f"ρ(A̅) = {exact:.6g}, and {rounded:.6g} once it is rounded to bfloat16",
            "bfloat16 has eight significant bits: between 0.5 and 1 its numbers are 2⁻⁸ apart",
            "keep the parameters of the injection, and A̅ itself, in float32",
        )
    return Remark(*name, "fine", "warning", f"ρ(A̅) = {exact:.4g}, in bfloat16 {rounded:.4g}")


def depth_of_use(plan: Plan) -> Remark:
    """Ask whether more loops are planned at test time than training can have prepared for."""
    name = ("LL006", "depth-of-use")
    trained = plan.site.mean_depth
    if plan.loops is None or trained is None:
        missing = "no --loops was given" if trained is not None else "the model does not say its training depth"
        return Remark(*name, "not judged", "warning", missing)
    if plan.loops > FURTHEST * trained:
        return Remark(
            *name,
            "warned",
            "warning",
            f"{plan.loops} loops are planned for a model that is trained with {trained} on average",
            "the Parcae paper on test-time depth: the loss saturates at about the training depth",
            f"train with more loops, or stay below {FURTHEST * trained}; loopscope depth measures what they give",
        )
    return Remark(*name, "fine", "warning", f"{plan.loops} loops, trained with {trained} on average")


def rate_on_the_map(plan: Plan) -> Remark:
    """Ask what became of runs with a free A̅ at this learning rate."""
    name = ("LL007", "rate-on-the-map")
    a_bar = _a_bar(plan.site)
    if plan.lr is None:
        return Remark(*name, "not judged", "warning", "no learning rate is known; give one with --lr")
    if a_bar is None or plan.site.a_bar is None:
        return Remark(*name, "not judged", "warning", _NO_A_BAR)
    size = sum(p.numel() for p in plan.model.parameters())
    if size > SMALL:
        return Remark(*name, "not judged", "warning", f"the map was measured on models of {SMALL:,} parameters at most")
    free = a_bar.requires_grad and _furthest_radius(plan.model, plan.site.a_bar, a_bar) > HELD
    if not free or plan.lr < WARM:
        return Remark(*name, "fine", "warning", f"lr {plan.lr:g}, A̅ {'free' if free else 'held'}: healthy on the map")
    hot = plan.lr >= HOT
    return Remark(
        *name,
        "warned",
        "error" if hot else "warning",
        f"lr {plan.lr:g} with a free A̅: {'every run' if hot else 'some runs'} of the small setting went wrong there",
        "the calibration runs (concatenation, pre-norm, width 32): healthy up to 0.01, mixed at 0.03, lost at 0.05",
        "lower the rate of the injection at least, or constrain A̅ (Parcae)",
    )


CHECKS: Final[tuple[Callable[[Plan], Remark], ...]] = (
    radius_at_start,
    free_a_bar,
    prelude_norm,
    expands_at_start,
    rounds_to_one,
    depth_of_use,
    rate_on_the_map,
)
_NO_A_BAR: Final = "the loop has no A̅ that can be read"


def _a_bar(site: LoopSite) -> Tensor | None:
    """Return A̅ as it is now; None where it cannot be read."""
    return None if site.a_bar is None else site.a_bar()


def _radius(a_bar: Tensor) -> float:
    """Return ρ of a scaled identity, a diagonal, or a dense matrix."""
    matrix = a_bar.detach().double()
    if matrix.ndim < 2:
        return float(matrix.abs().max())
    return float(spectral_radius(matrix).value)


def _furthest_radius(model: nn.Module, read: Callable[[], Tensor], a_bar: Tensor) -> float:
    """Return the largest ρ(A̅) over some settings of the parameters behind it; they are put back."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(a_bar.sum(), parameters, allow_unused=True)
    behind = [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
    kept = [p.detach().clone() for p in behind]
    noise = torch.Generator().manual_seed(0)
    furthest = _radius(a_bar)
    try:
        for pushed in _pushes(kept, noise):
            with torch.no_grad():
                for parameter, value in zip(behind, pushed, strict=True):
                    parameter.copy_(value)
                radius = _radius(read())
            furthest = max(furthest, radius) if math.isfinite(radius) else math.inf
    finally:
        with torch.no_grad():
            for parameter, value in zip(behind, kept, strict=True):
                parameter.copy_(value)
    return furthest


def _pushes(values: list[Tensor], noise: torch.Generator) -> Iterator[list[Tensor]]:
    """Yield settings: all moved up, all moved down, all enlarged, and random ones."""
    sizes = [float(value.std(correction=0)) or 1.0 for value in values]
    yield [value + PUSH * max(size, 1.0) for value, size in zip(values, sizes, strict=True)]
    yield [value - PUSH * max(size, 1.0) for value, size in zip(values, sizes, strict=True)]
    yield [value * PUSH for value in values]
    for _ in range(TRIES - 3):
        yield [value + PUSH * size * torch.randn(value.shape, generator=noise).to(value)
               for value, size in zip(values, sizes, strict=True)]  # fmt: skip
