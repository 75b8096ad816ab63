"""Parameter groups and schedules of the paper's two set-ups: AdamW for everything, or Muon for the blocks' matrices."""

from __future__ import annotations

import torch
from torch import nn

from .looped import LoopedTransformer
from .muon import Muon
from .train_config import TrainConfig


def schedule(step: int, config: TrainConfig) -> float:
    """Return the share of the peak rate in step ``0 .. steps-1``: linear warm-up, constant, linear cool-down."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    cooldown_steps = config.cooldown * config.steps
    cold = min(1.0, (config.steps - step) / cooldown_steps) if cooldown_steps else 1.0
    return min(warm, cold)


def set_rates(optimizers: list[torch.optim.Optimizer], step: int, config: TrainConfig) -> float:
    """Set every group's rate, and Muon's weight decay, for a step; return AdamW's rate."""
    share = schedule(step, config)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if isinstance(optimizer, Muon):
                group["lr"] = config.muon_lr * share
                group["weight_decay"] = config.muon_weight_decay * (1 - step / config.steps)
            else:
                group["lr"] = config.lr * share
    return config.lr * share


def build_optimizers(model: LoopedTransformer, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Return the optimizers of a run.

    ``"adamw"``: one AdamW, with weight decay on embeddings and matrices, none on norms and other 1-D parameters, on A,
    Δ, B and on the read-out. ``"muon"``: Muon for the matrices of attention and MLP, AdamW for the rest.

    Args:
        model: The model, sharded or not.
        config: Rates, decays and the choice.
    """
    hidden = block_matrices(model)
    muon = config.optimizer == "muon"
    groups = _groups(model, config.weight_decay, leave_out={id(p) for p in hidden} if muon else set())
    adamw = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=_fused(model))
    if not muon:
        return [adamw]
    decay = config.muon_weight_decay
    return [adamw, Muon(hidden, lr=config.muon_lr, momentum=config.muon_momentum, weight_decay=decay)]


def block_matrices(model: LoopedTransformer) -> list[nn.Parameter]:
    """Return the matrices of attention and MLP in all blocks."""
    blocks = [*model.prelude, *model.core, *model.coda]
    return [parameter for block in blocks for parameter in block.parameters() if parameter.ndim == 2]


def _groups(model: LoopedTransformer, decay: float, leave_out: set[int]) -> list[dict[str, object]]:
    """Return AdamW's groups: decayed and not."""
    injection = model.injection.parameters() if model.config.injection == "parcae" else iter(())
    exempt = {id(p) for p in (*injection, *model.read_out.parameters())}
    taken = [p for p in model.parameters() if p.requires_grad and id(p) not in leave_out]
    plain = [p for p in taken if p.ndim < 2 or id(p) in exempt]
    decayed = [p for p in taken if p.ndim >= 2 and id(p) not in exempt]
    groups: list[dict[str, object]] = [
        {"params": decayed, "weight_decay": decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _fused(model: nn.Module) -> bool | None:
    """Choose fused kernels on CUDA; the default elsewhere."""
    return True if next(model.parameters()).is_cuda else None
