"""The linear part of a loop that cannot be read from parameters, estimated from the states a model visits.

The estimate is the best affine prediction of ``h[t+1]`` from ``h[t]`` and ``e``; where ``e`` cannot be seen, it is that
of one step ``h[t+1] − h[t]`` from the step before it, from which everything constant over the loops has dropped out.
That is a statement about the whole loop on these states, blocks included, and not the A̅ of an injection: it is reported
under its own name, with the share that it leaves unexplained.

Not covered: choosing inputs that visit all directions. A direction that no state has is missing, not filled in.
"""

# Shapes: N samples (tokens x loops), D width of the state, E width of the input.

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..dynamics.estimate import Estimate
from .call import Call, Input
from .hooks import LoopHooks, state_in
from .neutral import on_the_side
from .rerun import real
from .site import LoopSite, LoopSiteError, argument
from .trace import EXAMPLE_SHAPE, example_tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLES_PER_UNKNOWN = 4  # of each row of [A B c]; below 2 the fit mostly follows the noise
LEAST_SAMPLES_PER_UNKNOWN = 2
MOST_SEQUENCES = 256
WIDEST_UNASKED = 512  # states up to here take under a second or two, which attaching may cost
RANK_TOLERANCE = 1e-6  # of the largest singular value: float32 states carry about 1e-7


@dataclass(frozen=True, slots=True)
class Visited:
    """The states of one forward.

    Args:
        states: ``h_0 … h_T``, each ``(B, S, D)``; the first is None where no module receives it.
        e: The input of the loop, ``(B, S, E)``; None where it is not known.
    """

    states: tuple[Tensor | None, ...]
    e: Tensor | None

    @property
    def width(self) -> int:
        """D."""
        assert self.states[-1] is not None
        return self.states[-1].shape[-1]

    @property
    def loops(self) -> int:
        """How often the loop ran."""
        return len(self.states) - 1


@dataclass(frozen=True, slots=True)
class LinearEstimate:
    """An affine fit ``h[t+1] ≈ A h[t] + B e + c``, or without ``e`` a linear one of successive steps.

    Args:
        radius: Spectral radius of A; its residual is the share ``‖h[t+1] − A h[t] − B e − c‖ / ‖h[t+1] − mean‖`` (or
            the same of steps) left unexplained, and no bounds are proven. Unconverged where the samples do not
            determine A: directions that no state has then count as zero, or there is no value at all.
        halves: The radius from either half of the tokens alone: how far it depends on the sample.
        a: ``(D, D)``, acting on columns; None where there were too few samples.
        b: ``(D, E)``; None without an input.
        samples: N.
        unknowns: Columns to be determined: ``D + E + 1``, or D without an input.
        rank: How many of them the samples determine.
    """

    radius: Estimate
    halves: tuple[float, float]
    a: NDArray[np.float64] | None
    b: NDArray[np.float64] | None
    samples: int
    unknowns: int
    rank: int

    def summary(self) -> dict[str, Any]:
        """Return plain values for the run file, without the matrices."""
        shown = ("value", "residual", "method", "converged")
        numbers = {k: v for k, v in asdict(self.radius).items() if k in shown}
        numbers = {"radius": numbers.pop("value"), **numbers, "radius_first_half": self.halves[0]}
        numbers |= {"radius_second_half": self.halves[1], "samples": self.samples}
        numbers |= {"unknowns": self.unknowns, "rank": self.rank}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in numbers.items()}


def visit(model: nn.Module, site: LoopSite, example: Input) -> Visited:
    """Run a model once on the side and keep the states of its loop.

    Raises:
        LoopSiteError: The loop did not run, or receives no tensor where the site says so.

    >>> from loopscope.models import build
    >>> model = build("demo")
    >>> from loopscope.loops.find import find_site
    >>> visit(model, find_site(model), torch.zeros(1, 4, dtype=torch.int64)).loops
    8
    """
    if site.variables:
        from .joint import joint_states

        return Visited((None, *joint_states(model, site, example)), None)
    states: list[Tensor | None] = []
    inputs: list[Tensor] = []
    ends: list[Tensor] = []  # what `after` has received last, which runs in every loop of some models
    done = [False]

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the state and, the first time, the input that the body receives."""
        if site.state_argument is None or done[0] or (site.output is not None and states):
            return
        try:
            state = argument(args, kwargs, site.state_argument).detach().clone()
            if ends and not torch.equal(ends[-1], state):  # the loop begins again from another state
                done[0] = True
                return
            ends.clear()
            states.append(state)
            if site.input_argument is not None and not inputs:
                inputs.append(argument(args, kwargs, site.input_argument).detach().clone())
        except (AttributeError, IndexError, KeyError, TypeError):
            received = [*range(len(args)), *kwargs]
            raise LoopSiteError(
                f"{site.body!r} receives {received}, and no tensors where the site looks for them: "
                f"state_argument={site.state_argument!r}, input_argument={site.input_argument!r}"
            ) from None

    def finish(module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        if states and not ends and not done[0]:
            ends.append(state_in(args[0]).detach().clone())

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        states.extend([] if states else [None])
        states.append(state_in(output).detach().clone())

    with LoopHooks(model, site, enter=enter, returned=leave, after=finish), on_the_side(model):
        Call.of(model, example).run(model)
    states += ends
    if len(states) < 2:
        raise LoopSiteError(f"{site.body!r} and what follows it were not called by this input: is it the loop's?")
    last = states[-1]
    fits = bool(inputs) and last is not None and inputs[0].shape[:-1] == last.shape[:-1]
    return Visited(tuple(states), inputs[0] if fits else None)


def estimate_linear_part(model: nn.Module, site: LoopSite, example: Input | None = None) -> LinearEstimate:
    """Estimate how a loop acts on its state, to first order, over the states that an input visits.

    Costs one forward and three least-squares problems of ``N x (D + E + 1)``.

    Args:
        model: The user's module, unwrapped.
        site: Where its loop is.
        example: Input; default: as many random tokens as the number of unknowns asks for.

    Returns:
        The fit, labelled as an estimate.

    Raises:
        LoopSiteError: The loop did not run, or the model has no embedding to make tokens for.

    >>> from loopscope.models import build
    >>> from loopscope.loops.find import find_site
    >>> model = build("demo")
    >>> estimate = estimate_linear_part(model, find_site(model))
    >>> estimate.radius.method, estimate.unknowns
    ('least squares', 65)
    """
    if example is None:
        example = _enough(model, visit(model, site, example_tokens(model)))
    visited = visit(model, site, example)
    x, y = _samples(visited)
    unknowns = x.shape[-1]
    width = y.shape[-1]
    samples = x.shape[0] * x.shape[1]
    if samples < LEAST_SAMPLES_PER_UNKNOWN * unknowns:
        nothing = Estimate.missing("least squares: too few samples")
        return LinearEstimate(nothing, (math.nan, math.nan), None, None, samples, unknowns, 0)
    solution, rank, residual = _fit(x, y)
    a = solution[:width].T
    half = x.shape[0] // 2
    halves = (_radius(_fit(x[:half], y[:half])[0][:width].T), _radius(_fit(x[half:], y[half:])[0][:width].T))
    determined = rank == unknowns
    fit = "least squares" if visited.e is not None else "least squares of successive steps"
    method = fit if determined else f"{fit}: the states do not span all directions"
    radius = Estimate(_radius(a), 0.0, math.inf, residual, method, converged=determined)
    b = solution[width:-1].T if visited.e is not None else None
    return LinearEstimate(radius, halves, a, b, samples, unknowns, rank)


def linear_estimate(model: nn.Module, site: LoopSite, example: Input | None = None) -> dict[str, Any]:
    """Return what a run file says of a linear part that cannot be read: the estimate's numbers, or why there is none.

    >>> from torch import nn
    >>> linear_estimate(nn.Linear(2, 2), LoopSite(body="", after=""))["method"][:13]
    'not estimated'
    """
    try:
        if example is None and visit(model, site, example_tokens(model)).width > WIDEST_UNASKED:
            return {"radius": None, "method": f"not estimated: wider than {WIDEST_UNASKED}; loopscope.describe does"}
        return estimate_linear_part(model, site, example).summary()
    except Exception as error:  # a missing estimate must not keep anybody from recording
        return {"radius": None, "method": f"not estimated: {error}"}


def _enough(model: nn.Module, visited: Visited) -> Tensor:
    """Return random tokens that give enough samples for the unknowns of this loop."""
    x, _ = _samples(visited)
    pairs_per_sequence = x.shape[0] * x.shape[1] / EXAMPLE_SHAPE[0]
    sequences = min(MOST_SEQUENCES, math.ceil(SAMPLES_PER_UNKNOWN * x.shape[-1] / max(1.0, pairs_per_sequence)))
    one = example_tokens(model)
    own = torch.Generator().manual_seed(0)
    count = (max(EXAMPLE_SHAPE[0], sequences), EXAMPLE_SHAPE[1])
    return torch.randint(0, _vocabulary(model), count, generator=own).to(one.device)


def _vocabulary(model: nn.Module) -> int:
    """Return the number of entries of the first embedding."""
    return next(module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding))


def _samples(visited: Visited) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what is predicted from what, as ``(tokens, loops, ...)``; only loops in which all sequences take part."""
    last = visited.states[-1]
    assert last is not None  # only h_0 can be missing
    states = np.stack([_rows(h) for h in visited.states if h is not None and h.shape == last.shape], axis=1)
    if visited.e is None:
        states = np.diff(states, axis=1)
    if states.shape[1] < 2:
        raise LoopSiteError("too few successive states of this loop were seen to estimate anything from them")
    x, y = states[:, :-1], states[:, 1:]
    if visited.e is not None:
        e = np.broadcast_to(_rows(visited.e)[:, None], (*x.shape[:2], visited.e.shape[-1]))
        x = np.concatenate([x, e, np.ones((*x.shape[:2], 1))], axis=-1)
    return x, y


def _rows(tensor: Tensor) -> NDArray[np.float64]:
    """Turn ``(B, S, D)`` into ``(B S, D)`` in float64 on the host."""
    rows: NDArray[np.float64] = real(tensor).double().flatten(0, -2).cpu().numpy()
    return rows


def _fit(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], int, float]:
    """Fit by least squares over tokens and loops: solution ``(unknowns, D)``, rank, unexplained share."""
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return np.full((x.shape[1], y.shape[1]), np.nan), 0, math.nan
    least, _, rank, _ = np.linalg.lstsq(x, y, rcond=RANK_TOLERANCE)
    solution = np.asarray(least, dtype=np.float64)
    spread = float(np.linalg.norm(y - y.mean(axis=0)))
    return solution, int(rank), float(np.linalg.norm(y - x @ solution)) / spread if spread > 0 else math.nan


def _radius(a: NDArray[np.float64]) -> float:
    """Return the spectral radius; NaN where the matrix is not finite."""
    return float(np.abs(np.linalg.eigvals(a)).max()) if np.isfinite(a).all() else math.nan
