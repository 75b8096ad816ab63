"""The ``selfcheck`` command: does a probe change anything in training on this machine?

Trains one of our models with a probe and without, and then the small models of `loopscope.models.acting`, whose modules
act when somebody looks at them.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..loops.same_state import differences
from ..models import build
from ..models.acting import ACTING, Looped, loss_of, made, tokens_of
from ..models.presets import preset as build_config
from ..probes.probe import attach
from ..probes.random_states import random_states
from ..probes.schedule import every, find_preset
from ..probes.selfcheck import LOOKS_EVERY
from ..probes.selfcheck import selfcheck as check_training
from ..runfile.open import open_run
from .output import say
from .training import one_device

LONGEST = 256  # tokens of a sequence
TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2}  # of the recorded norms against those computed plainly


def selfcheck(
    preset: str, *, device: str, compile_what: str, checkpointing: str, precision: str, batch: int, as_json: bool
) -> int:
    """Train the same few steps with and without a probe, print what differs, and return the exit code.

    Args:
        preset: Model preset.
        device: As torch names it, or ``auto``.
        compile_what: ``none``, ``body`` or ``whole``.
        checkpointing: Activation checkpointing, as the model's configuration names it.
        precision: ``fp32``, or ``bf16`` for autocast.
        batch: Sequences in a batch.
        as_json: Print one JSON object.
    """
    kind = one_device(device)
    config = build_config(preset)
    length = min(config.max_length, LONGEST)
    # A whole-model graph holds one depth; drawing one per step would compile until Dynamo gives up, probe or not.
    depth = {"num_loops": config.mean_depth} if compile_what == "whole" else {}

    def make_model() -> Any:
        model = build(preset, activation_checkpointing=checkpointing).to(kind)
        if compile_what == "body":
            model.compile_loop()
        return torch.compile(model) if compile_what == "whole" else model

    def make_batch(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        return torch.randint(config.vocab_size, (batch, length + 1), generator=generator).to(kind)

    def loss(model: nn.Module, tokens: Tensor) -> Tensor:
        with torch.autocast(kind.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = model(tokens[:, :-1], **depth)
            return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    outcome = check_training(make_model, make_batch, loss, tolerance=TOLERANCE[precision])
    log = logging.getLogger("loopscope")
    level = log.level
    log.setLevel(logging.ERROR)  # notes on loops that are odd on purpose
    try:
        acting = check_acting_models()
    finally:
        log.setLevel(level)
    changed = [check for check in acting if check.differing or not check.looks]
    if as_json:
        say(json.dumps(outcome.as_dict() | {"acting_models": [asdict(check) for check in acting]}, indent=2))
    else:
        say(outcome.text())
        same = len(acting) - len(changed)
        say(f"models that act when looked at (mergers, swaps, counters, noise, ...): {same} of {len(acting)} the same")
        for check in changed:
            say(f"  {check.name}: {', '.join(check.differing) or 'was not looked at'}")
    return 0 if outcome.passed and not changed else 1


@dataclass(frozen=True, slots=True)
class ActingCheck:
    """What training with a probe left of one of the models that act when they are looked at.

    Args:
        name: Its class.
        steps: Training steps compared.
        looks: Passes of the fixed batch and measurements of the full loop beside them.
        differing: Names of what differs from training without a probe; empty when all is well.
    """

    name: str
    steps: int
    looks: int
    differing: tuple[str, ...]


def check_acting_models(
    kinds: Sequence[type[Looped]] = ACTING, *, steps: int = 12, preset: str = "study"
) -> list[ActingCheck]:
    """Train small models whose modules act when they are looked at, with a probe and without, and compare what is left.

    Args:
        kinds: The models.
        steps: Training steps of each.
        preset: What the probe measures.

    >>> check_acting_models(ACTING[4:6], steps=3)[1].differing
    ()
    """
    return [_check_acting_model(kind, steps, preset) for kind in kinds]


def _check_acting_model(kind: type[Looped], steps: int, preset: str) -> ActingCheck:
    """Train one such model twice."""
    often = replace(find_preset(preset), probe_batch=every(LOOKS_EVERY), full_loop=every(2 * LOOKS_EVERY))
    left: list[tuple[Any, nn.Module]] = []
    looks = 0
    with tempfile.TemporaryDirectory() as folder:
        for path in (None, Path(folder) / "acting.h5"):
            model = made(kind)
            optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02, momentum=0.5)
            probe = None if path is None else attach(model, path, preset=often)
            losses = []
            for step in range(steps):
                loss = loss_of(model, tokens_of(step))
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                losses.append(loss.detach())
                if probe is not None:
                    probe.step(loss=loss)
            left.append(({"losses": losses, "random states": random_states()}, model))
            if probe is not None and path is not None:
                probe.close()
                with open_run(path) as run:
                    looks = len(run.probe_steps) + int(np.isfinite(run["full_loop_seconds"]).sum())
    (plain, one), (watched, other) = left
    return ActingCheck(kind.__name__, steps, looks, (*differences(plain, watched), *differences(one, other)))
