"""Loops of models that are known by name, told from their module structure; nothing foreign is imported.

Discovery finds most of these loops by itself. An adapter says the same without running a forward, also for a depth of
one, and knows what no single forward shows: where a training forward differs from the one that discovery runs.

    Parcae (the authors' ``parcae_lm``)    adapter, core blocks, C; all three injections, any depth sampling
    Huginn (``raven`` remote code)         a linear adapter on [h; e], core blocks, ln_f
    OpenMythos                             a diagonal injection at the end of a loop with halting
    Ouro                                   the whole stack and its norm, looped; the head may read every loop's state

Not covered: other versions of these models; where the structure differs, discovery decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .linear_part import LinearMatrices, joined_linear_part, known_linear_part
from .site import LoopSite, Part, uncompiled


def adapted_site(model: nn.Module) -> LoopSite | None:
    """Return the site of a known model, or None.

    Args:
        model: The user's module, unwrapped.

    >>> adapted_site(nn.Linear(2, 2)) is None
    True
    """
    adapter = _ADAPTERS.get(type(model).__name__)
    return None if adapter is None else adapter(model)


def _parcae(model: nn.Module) -> LoopSite | None:
    """Return the site of ``transformer.adapter(x, e)``, ``transformer.core_block``, then ``transformer.C``."""
    adapter, read_out = _module(model, "transformer.adapter"), _module(model, "transformer.C")
    core = _module(model, "transformer.core_block")
    if adapter is None or read_out is None or not isinstance(core, nn.ModuleList):
        return None
    linear = known_linear_part(adapter) or _parcae_linear_part(adapter)
    sampling = getattr(model, "recurrent_iteration_method", None) or _setting(model, "recurrent_iteration_method")
    gated = sampling not in (None, "per-batch")
    notes = []
    if gated:
        notes.append(
            f"depth is sampled {sampling}: means are over the tokens that move, a sequence counts as moving while any "
            "of its tokens does; to linearise the loop, set model.recurrent_iteration_method = 'per-batch' meanwhile"
        )
    return LoopSite(
        body="transformer.adapter",
        after="transformer.C",
        state_argument=0,
        input_argument=1,
        shared=gated,
        a_bar=linear.a_bar if linear is not None else None,
        b_bar=linear.b_bar if linear is not None else None,
        c_out=_weight(read_out),
        # In evaluation mode, with depth per batch, that many loops are run; per sequence, depth is sampled there too.
        depth_attribute="config.mean_recurrence" if not gated and _setting(model, "mean_recurrence") else None,
        mean_depth=_setting(model, "mean_recurrence"),
        # Gating by a mask takes place behind the blocks, so then they do not hand on the whole state.
        sublayers=("transformer.adapter", *(f"transformer.core_block.{i}" for i in range(len(core))))
        if not gated
        else (),
        prelude=_blocks(model, "transformer.prelude"),
        found="adapter for parcae_lm",
        notes=tuple(notes),
    )


def _parcae_linear_part(adapter: nn.Module) -> LinearMatrices | None:
    """Return A̅ and B̅ of the injections without a diagonal: a linear layer on ``[x; e]``, or a sum."""
    layer = _module(adapter, "adapter")
    if isinstance(layer, nn.Linear):
        width = layer.out_features
        return joined_linear_part(layer, (0, width), (width, layer.in_features))
    if type(adapter).__name__ == "AdditiveInjection" and not any(True for _ in adapter.parameters()):
        return LinearMatrices(lambda: torch.ones(()), lambda: torch.ones(()))
    return None


def _huginn(model: nn.Module) -> LoopSite | None:
    """Return the site of ``transformer.adapter([x; e])``, ``core_block``, then ``ln_f`` for the first time."""
    adapter, core = _module(model, "transformer.adapter"), _module(model, "transformer.core_block")
    if not isinstance(adapter, nn.Linear) or not isinstance(core, nn.ModuleList) or adapter.in_features % 2:
        return None
    width = adapter.out_features
    if adapter.in_features != 2 * width or _module(model, "transformer.ln_f") is None:
        return None
    linear = joined_linear_part(adapter, (0, width), (width, 2 * width))
    return LoopSite(
        body="transformer.adapter",
        after="transformer.ln_f",
        state_argument=Part(0, 0, width),
        input_argument=Part(0, width, 2 * width),
        a_bar=linear.a_bar,
        b_bar=linear.b_bar,
        depth_argument="num_steps",
        mean_depth=_setting(model, "mean_recurrence"),
        sublayers=("transformer.adapter", *(f"transformer.core_block.{i}" for i in range(len(core)))),
        prelude=_blocks(model, "transformer.prelude"),
        found="adapter for Huginn",
    )


def _open_mythos(model: nn.Module) -> LoopSite | None:
    """Return the site of ``recurrent.injection(h, e, out)``; behind the loop a weighted mean of states goes on."""
    injection = _module(model, "recurrent.injection")
    linear = known_linear_part(injection) if injection is not None else None
    if linear is None:
        return None
    return LoopSite(
        body="recurrent.injection",
        after="coda.0" if _module(model, "coda.0") is not None else "norm",
        state_argument=0,
        input_argument=1,
        output="recurrent.injection",
        shared=True,
        a_bar=linear.a_bar,
        b_bar=linear.b_bar,
        depth_argument="n_loops",
        mean_depth=_setting(model, "max_loop_iters", holder="cfg"),
        prelude=_blocks(model, "prelude"),
        found="adapter for OpenMythos",
        notes=("what follows the loop receives the halting-weighted mean of the states; recorded are the states",),
    )


def _ouro(model: nn.Module) -> LoopSite | None:
    """Return the site of all of ``model.layers`` and ``model.norm``, looped; the head may read all loops' states."""
    layers, norm = _module(model, "model.layers"), _module(model, "model.norm")
    if not isinstance(layers, nn.ModuleList) or norm is None or _module(model, "lm_head") is None:
        return None
    return LoopSite(
        body="model.layers.0",
        after="lm_head",
        state_argument=0,
        output="model.norm",
        depth_attribute="model.total_ut_steps" if getattr(model.model, "total_ut_steps", None) is not None else None,
        mean_depth=_setting(model, "total_ut_steps"),
        sublayers=(*(f"model.layers.{i}" for i in range(len(layers))), "model.norm"),
        found="adapter for Ouro",
        notes=("the loop has no injected input and no linear part",),
    )


_ADAPTERS: dict[str, Callable[[nn.Module], LoopSite | None]] = {
    "Parcae": _parcae,
    "RavenForCausalLM": _huginn,
    "OpenMythos": _open_mythos,
    "OuroForCausalLM": _ouro,
}


def _module(model: nn.Module, name: str) -> nn.Module | None:
    """Return the module of a dotted name, or None."""
    try:
        return uncompiled(model.get_submodule(name))
    except AttributeError:
        return None


def _blocks(model: nn.Module, name: str) -> tuple[str, ...]:
    """Return names of the modules in a list of this name."""
    blocks = _module(model, name)
    return tuple(f"{name}.{i}" for i in range(len(blocks))) if isinstance(blocks, nn.ModuleList) else ()


def _setting(model: nn.Module, name: str, default: Any = None, *, holder: str = "config") -> Any:
    """Return a value of the model's configuration."""
    return getattr(getattr(model, holder, None), name, default)


def _weight(layer: nn.Module) -> Callable[[], Tensor] | None:
    """Return how to read the matrix of a linear layer."""
    return (lambda: layer.weight) if isinstance(layer, nn.Linear) else None
