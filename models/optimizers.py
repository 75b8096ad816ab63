"""Parameter groups and learning-rate schedules of the paper's two set-ups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from .looped import ParcaeInjection

if TYPE_CHECKING:
    from .train import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Rate of step ``0 .. steps-1``: linear warm-up, constant, linear cool-down to zero over the last part."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    cooldown_steps = config.cooldown * config.steps
    cold = min(1.0, (config.steps - step) / cooldown_steps) if cooldown_steps else 1.0
    return config.lr * min(warm, cold)


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW; no weight decay on norms and other 1-D parameters, on A, Δ, B and on the read-out."""
    exempt = {id(p) for p in undecayed(model)}
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if id(p) not in exempt], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if id(p) in exempt], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.lr, betas=config.betas, eps=config.eps
    )


def undecayed(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that weight decay would bias: 1-D ones, the diagonal injection's and the read-out's."""
    found = [p for p in model.parameters() if p.ndim < 2]
    for name, module in model.named_modules():
        if isinstance(module, ParcaeInjection) or name.split(".")[-1] == "read_out":
            found += list(module.parameters())
    return found
