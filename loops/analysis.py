"""The full analysis of a live model's loop: `dynamics.linearize` applied where the model's own `LoopSite` says.

Not covered: choosing representative input; the numbers describe the loop at the states this input visits.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..dynamics.loop.linearize import linearize_loop
from .bound import bound_loop
from .call import Input
from .rerun import CUTS, UNCHECKED
from .site import LoopSite, LoopSiteError, unwrap

if TYPE_CHECKING:
    from torch import nn

    from ..dynamics.loop.linearization import Linearization

OTHER_START = 0.5  # relative size of the second start's difference from the first


def linearize(
    model: nn.Module,
    tokens: Input,
    *,
    num_loops: int = 16,
    site: LoopSite | None = None,
    seed: int = 0,
    budget: float = 150.0,
    progress: Callable[[str, float], None] | None = None,
) -> Linearization:
    """Say what kind of dynamical system the loop of this model is, near the states that this input visits.

    Runs the loop, takes the spectrum of its linear part and of its full Jacobian (per token where the loop is causal),
    follows perturbations, looks for fixed points from two starts, and predicts how many loops are safe. Of a loop that
    carries several variables it says how each of them goes on, and how they act on each other. The model is left as it
    was. See `loopscope.dynamics.linearize_loop` for the parts, their cost and their status.

    Args:
        model: Any looped model; in evaluation mode inside, as before outside.
        tokens: ``(B, S)`` input, or all arguments of the model as a tuple or a mapping.
        num_loops: Loops run before the loop is linearised; from h_1 where only returned states are seen.
        site: Where the loop is, for a model that does not state it.
        seed: Of the initial state.
        budget: Seconds after which no further part is begun; ``skipped`` names what is left out.
        progress: Called as ``progress(part, fraction)``.

    Returns:
        All numbers with their status, the three regimes and a verdict in words.

    Raises:
        LoopSiteError: The loop cannot be located, or is none that can be run and derived by itself.
        ValueError: ``num_loops`` is below 1.

    >>> import torch
    >>> from loopscope.models import build
    >>> _ = torch.manual_seed(0)
    >>> result = linearize(build("demo"), torch.zeros(1, 4, dtype=torch.int64), num_loops=8)
    >>> print(result.verdict.split(" | ")[0])
    LTI stable (ρ 0.447, certified)
    """
    with _derivatives_of(model), bound_loop(model, tokens, site=site, seed=seed) as loop:
        parts = {name: getattr(loop.site, name) for name in ("a_bar", "b_bar", "c_out")}
        scale = OTHER_START * loop.state.norm(dim=-1, keepdim=True) / loop.state.shape[-1] ** 0.5
        result = linearize_loop(
            loop.step,
            loop.state,
            loops=num_loops,
            **{name: read().detach() for name, read in parts.items() if read is not None},
            read_out=loop.read_out,
            starts=[loop.state + scale * loop.state.new_empty(loop.state.shape).normal_()],
            step_of=loop.step_of,
            e=loop.e,
            sublayers=loop.sublayers or None,
            variables=loop.variables,
            training_depth=loop.site.mean_depth,
            budget=budget,
            progress=progress,
        )
        said = {"one map" if loop.remark == UNCHECKED else "noise": loop.remark} if loop.remark else {}
        said |= {"detached": CUTS} if loop.cuts() else {}
        return replace(result, skipped={**result.skipped, **said}) if said else result


@contextmanager
def _derivatives_of(model: nn.Module) -> Iterator[None]:
    """Name the model in an error that torch, or a derivative of the model's own, raises while its loop is analysed."""
    try:
        yield
    except (LoopSiteError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        raised_in, ours = Path(at.filename), Path(__file__).parents[1]
        if any(raised_in.is_relative_to(ours / folder) for folder in ("loops", "dynamics")):  # or wrong arguments
            raise
        said = " ".join(str(error).split()) or f"{type(error).__name__} at {raised_in.name}:{at.lineno}: {at.line}"
        raise LoopSiteError(
            f"a derivative of the loop of {type(unwrap(model)).__name__} cannot be taken ({said}), so it can be "
            "watched but not linearised"
        ) from error
