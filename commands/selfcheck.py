"""The ``selfcheck`` command: does a probe change anything in training on this machine?"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from ..models import build
from ..models.presets import preset as build_config
from ..probes.selfcheck import selfcheck as check_training
from .output import say
from .training import checked_device

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
    where = checked_device(device)
    kind = torch.device("cuda" if where == "auto" and torch.cuda.is_available() else where.replace("auto", "cpu"))
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
    say(json.dumps(outcome.as_dict(), indent=2) if as_json else outcome.text())
    return 0 if outcome.passed else 1
