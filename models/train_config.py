"""Everything that defines a training run beside the model and the data, in one checked dataclass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

# A resumed run may be made longer, saved or evaluated otherwise, or split over other ranks; the rest makes it that run.
FREE_ON_RESUME = frozenset(
    (
        "steps",
        "accumulation",
        "checkpoint_every",
        "keep_checkpoints",
        "parallelism",
        "compile",
        "eval_every",
        "eval_depths",
        "eval_batches",
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Everything that defines a training run beside the model and the data; checked when it is built.

    Args:
        steps: Optimizer steps.
        batch_size: Sequences in a micro-batch on one rank.
        accumulation: Micro-batches per optimizer step on one rank.
        optimizer: ``"adamw"``, or ``"muon"`` for the matrices of attention and MLP with AdamW for the rest.
        lr: Peak learning rate of AdamW.
        betas: Decay rates of AdamW's two moments.
        eps: AdamW's ε.
        weight_decay: AdamW's, of matrices and embeddings; none on norms, A, Δ, B and the read-out.
        muon_lr: Peak learning rate of Muon.
        muon_momentum: Decay of Muon's momentum.
        muon_weight_decay: Muon's, falling linearly to zero over the run.
        warmup_steps: Steps of linear warm-up.
        cooldown: Fraction of the steps over which the rate falls linearly to zero at the end.
        clip: Largest gradient norm; larger gradients are scaled down to it.
        seed: Of depths and initial states. Weights and data have their own.
        precision: ``"fp32"``, or ``"bf16"`` for autocast with float32 weights.
        compile: Compile the loop body, the other blocks and the loss.
        parallelism: Under ``torchrun``: ``"ddp"`` (a copy on each rank) or ``"fsdp"`` (sharded).
        eval_every: Steps between evaluations on held-out text; 0 for none.
        eval_depths: Test-time depths to evaluate; empty means the model's mean depth.
        eval_batches: Held-out batches per evaluation.
        checkpoint_every: Steps between checkpoints; 0 keeps only the last one.
        keep_checkpoints: How many of the newest are kept, at least 2; 0 for all, so that any stretch can be run again.

    Raises:
        ValueError: A field is out of range; the message names it.

    >>> TrainConfig(steps=0)
    Traceback (most recent call last):
    ValueError: steps: expected a whole number from 1, found 0
    """

    steps: int = 200
    batch_size: int = 8
    accumulation: int = 1
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    muon_lr: float = 8e-3
    muon_momentum: float = 0.95
    muon_weight_decay: float = 0.2
    warmup_steps: int = 10
    cooldown: float = 0.0
    clip: float = 1.0
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    parallelism: Literal["ddp", "fsdp"] = "ddp"
    eval_every: int = 0
    eval_depths: tuple[int, ...] = ()
    eval_batches: int = 8
    checkpoint_every: int = 0
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("betas", "eval_depths"):
            self._expect(name, isinstance(getattr(self, name), tuple | list), "a list of numbers")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("steps", "batch_size", "accumulation", "eval_batches"):
            self._expect(name, _is_whole(getattr(self, name)) and getattr(self, name) >= 1, "a whole number from 1")
        for name in ("warmup_steps", "checkpoint_every", "keep_checkpoints", "eval_every", "seed"):
            self._expect(name, _is_whole(getattr(self, name)) and getattr(self, name) >= 0, "a whole number from 0")
        for name in ("lr", "eps", "clip", "muon_lr"):
            self._expect(name, _is_number(getattr(self, name)) and getattr(self, name) > 0, "a positive number")
        for name in ("weight_decay", "muon_weight_decay"):
            self._expect(name, _is_number(getattr(self, name)) and getattr(self, name) >= 0, "a number from 0")
        self._expect("keep_checkpoints", self.keep_checkpoints != 1, "0 for all, or at least 2")
        self._expect("cooldown", _is_number(self.cooldown) and 0 <= self.cooldown <= 1, "a fraction from 0 to 1")
        momentum = self.muon_momentum
        self._expect("muon_momentum", _is_number(momentum) and 0 <= momentum < 1, "a number in [0, 1)")
        fine = len(self.betas) == 2 and all(_is_number(b) and 0 <= b < 1 for b in self.betas)
        self._expect("betas", fine, "two numbers in [0, 1)")
        self._expect("eval_depths", all(_is_whole(d) and d >= 1 for d in self.eval_depths), "whole numbers from 1")
        self._expect("compile", isinstance(self.compile, bool), "true or false")
        choices = {"optimizer": ("adamw", "muon"), "precision": ("fp32", "bf16"), "parallelism": ("ddp", "fsdp")}
        for name, (one, other) in choices.items():
            self._expect(name, getattr(self, name) in (one, other), f"{one} or {other}")

    def _expect(self, name: str, fine: bool, expected: str) -> None:
        """Report a bad field; the one place that does."""
        if not fine:
            raise ValueError(f"{name}: expected {expected}, found {getattr(self, name)!r}")


def _is_whole(value: object) -> bool:
    """Return whether a value from a file is an integer (``True`` is not)."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    """Return whether a value from a file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
