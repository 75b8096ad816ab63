"""Which part of a loop makes it grow: gains of its sublayers, from the injection to the last block.

The loop is a chain of sublayers ``h -> x_1 -> ... -> x_m = h'``. A backward pass that starts with the leading left
eigenvector w of the Jacobian (``Jᵀ w = λ w``) shrinks or grows by a certain factor in each sublayer, and the logarithms
of these factors add up to exactly ``log |λ|``. So each sublayer's share of the growth rate is measured, not modelled.
Beside it stands the forward growth of the state norm, which shows jumps (an injection that outweighs the state) that no
derivative sees.

Not covered: sublayers off the main path (the inside of attention), whose effect shows in the block that holds them;
growth over several loops, where the eigenvector turns (`dynamics.lyapunov`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .jacobian import Step
from .own_token import cut_off

__all__ = ["SublayerError", "SublayerGain", "sublayer_gains"]


class SublayerError(ValueError):
    """A module named as a sublayer does not carry the whole state through the loop once."""


@dataclass(frozen=True, slots=True)
class SublayerGain:
    """What one sublayer of a loop does to the state and to the perturbation followed.

    Attributes:
        name: As given.
        state_norm: Mean over tokens of the norm of its output.
        state_gain: That norm divided by the one before the sublayer (of ``h`` for the first).
        log_gain: Its share of the growth rate, nats per loop; over all sublayers these add up to ``log ‖Jᵀw‖ - log
            ‖w‖``.
    """

    name: str
    state_norm: float
    state_gain: float
    log_gain: float


def sublayer_gains(
    step: Step, state: Tensor, sublayers: Mapping[str, nn.Module], direction: Tensor
) -> list[SublayerGain]:
    """Return how much each sublayer of a loop contributes to growth along one direction.

    Costs one forward per sublayer (to check that its output carries the whole state) and one or two backward passes.

    Args:
        step: One loop, ``(..., D) -> (..., D)``, that runs the sublayers, each once. What it runs before, without what
            it is given, does not count: the loops that lead to this one, in a model whose depth nothing sets.
        state: Where to look.
        sublayers: Name -> module, in the order in which they run; each output must be all that later ones see of the
            state (a residual stream, not a branch of it).
        direction: Cotangent w of the shape of the state, real or complex; the leading left eigenvector splits ``log
            |λ|``.

    Returns:
        One entry per sublayer in order, and a last one named ``rest`` when the step goes on after the last of them.

    Raises:
        SublayerError: A sublayer was not run exactly once, or part of the state goes past it (the message names it).

    Source: telescoping of reverse-mode products over cuts of the computational graph; Fig. 21 of arXiv 2604.12946 for
    the state norms.

    >>> layers = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    >>> for layer, gain in zip(layers, (0.5, 3.0)):
    ...     _ = layer.weight.data.copy_(gain * torch.eye(2))
    >>> h, named = torch.ones(1, 1, 2), {"first": layers[0], "second": layers[1]}
    >>> gains = sublayer_gains(layers, h, named, h)
    >>> [(g.name, round(g.state_gain, 3), round(g.log_gain, 3)) for g in gains]
    [('first', 0.5, -0.693), ('second', 3.0, 1.099)]
    """
    with torch.enable_grad(), _outputs(sublayers) as runs:
        source = state.detach().clone().requires_grad_()
        output = step(source)
    seen = {name: _run_on(source, name, outputs) for name, outputs in runs.items()}
    for name, module in sublayers.items():
        _require_whole(step, state, name, module)
    cuts = [source, *(seen[name] for name in sublayers)]
    names = list(sublayers)
    if cuts[-1] is not output:
        cuts.append(output)
        names.append("rest")
    sizes = _gradient_sizes(cuts, output, direction)
    states = [float(torch.linalg.vector_norm(cut.detach(), dim=-1).mean()) for cut in cuts]
    return [
        SublayerGain(name, after, after / before if before > 0 else float("inf"), float(into.log() - out_of.log()))
        for name, before, after, into, out_of in zip(names, states, states[1:], sizes, sizes[1:], strict=False)
    ]


def _gradient_sizes(cuts: list[Tensor], output: Tensor, direction: Tensor) -> list[Tensor]:
    """Return the norm of the (complex) gradient at each cut."""
    parts = [direction.real, direction.imag] if direction.is_complex() else [direction]
    total = [torch.zeros((), dtype=torch.float64) for _ in cuts]
    for part in parts:
        weight = part.to(output.device, output.dtype).reshape(output.shape)
        gradients = torch.autograd.grad(output, cuts, weight, retain_graph=True)
        total = [t + torch.linalg.vector_norm(g.double()).cpu() ** 2 for t, g in zip(total, gradients, strict=True)]
    return [t.sqrt() for t in total]


def _require_whole(step: Step, state: Tensor, name: str, module: nn.Module) -> None:
    """Cut the graph at a module's output: the step must no longer depend on the state."""

    def cut(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple | list):  # (state, cache), as Hugging Face layers return
            return type(output)([cut_off(output[0]).requires_grad_(), *output[1:]])
        return cut_off(output).requires_grad_()

    handle = module.register_forward_hook(cut)
    try:
        with torch.enable_grad():
            source = state.detach().clone().requires_grad_()
            output = step(source)
        past = torch.autograd.grad(output.sum(), source, allow_unused=True)[0] if output.requires_grad else None
    finally:
        handle.remove()
    if past is not None and bool((past != 0).any()):
        raise SublayerError(
            f"sublayer {name!r}: part of the state goes past it, so its gain is not a share of the growth"
        )


@contextmanager
def _outputs(sublayers: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """Return the outputs of each module in the steps run inside, or the first of several that one returns."""
    seen: dict[str, list[Tensor]] = {name: [] for name in sublayers}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            seen[name].append(output[0] if isinstance(output, tuple | list) else output)

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in sublayers.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _run_on(source: Tensor, name: str, outputs: list[Tensor]) -> Tensor:
    """Return the one output that depends on what the step was given; earlier loops have run without it."""
    mine = [output for output in outputs[-2:] if _depends(output, source)]
    if len(mine) != 1:
        raise SublayerError(
            f"sublayer {name!r}: expected to run once per loop, {'ran again' if mine else 'did not run'}"
        )
    return mine[0]


def _depends(output: Tensor, source: Tensor) -> bool:
    """Return whether autograd leads from one tensor to another."""
    if not output.requires_grad:
        return False
    return torch.autograd.grad(output.sum(), source, retain_graph=True, allow_unused=True)[0] is not None
