"""Runs of ``loopscope train`` run again: everything random in them is a function of the seed and the step.

Each change is an `Intervention` on a run that is otherwise the recorded one. Changes to the architecture start from
the first step, because the weights of a checkpoint were made for another model; the others start from the newest
checkpoint that is old enough, or from the first step where there is none.

Not covered: runs of several ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MethodType
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from ..models import checkpoint
from ..models.data import Data
from ..models.looped import ConcatenationInjection, LoopedTransformer
from ..models.run_config import RunConfig
from ..models.train import Observer, Training
from ..probes.probe import Probe, attach
from ..rules.rule_files import load_rules
from ..runfile.run import Run
from .experiment import ONSET
from .replayable import Change

HELD_RADIUS: Final = 0.95  # what ρ(A̅) is held at
FRESH: Final = 10**9  # added to a batch's number: a batch that the run never sees
OTHER_DRAWS: Final = 7919  # added to the seed of depths and initial states

Update = Callable[[LoopedTransformer, int], None]


@dataclass(frozen=True, slots=True)
class Intervention:
    """What is done to a run that is run again.

    Attributes:
        config: The configuration -> the changed one.
        batch: Number of a batch and the batch -> what is trained on instead.
        model: Done once to the model before the first step.
        before: Done to the model before each step of the optimizers, with the number of the step.
        update: Done to the model after each step of the optimizers, with the number of the step.
        architecture: Whether another model is trained, so that checkpoints do not fit.
    """

    config: Callable[[RunConfig], RunConfig] = lambda config: config
    batch: Callable[[Data, int, Tensor], Tensor] = lambda data, index, batch: batch
    model: Callable[[LoopedTransformer], None] = lambda model: None
    before: Update = lambda model, step: None
    update: Update = lambda model, step: None
    architecture: bool = False


class TrainedRun:
    """A run of ``loopscope train`` whose steps can be run again.

    Args:
        run: Its recording.
        alert: Step of the alert; the batches before it are the suspects.
        device: Where to run; the recorded one gives the same numbers.
        always: Interventions that belong to the run itself, as a fault that was planted.

    Raises:
        ValueError: The run was not recorded by ``loopscope train``, or its text is another one here.
    """

    def __init__(self, run: Run, alert: int, *, device: str = "cpu", always: Sequence[Intervention] = ()) -> None:
        self._config = recorded_config(run)
        self._data = self._config.open_data()
        text = run.info["config"].get("text")
        recorded = text.get("sha256") if isinstance(text, dict) else None
        if recorded != self._data.describe().get("sha256"):
            raise ValueError(
                f"{self._config.data_config().source}: the text of this run is not what it was when it was recorded, "
                "so that its batches are others; put the recorded text back"
            )
        self._preset = str(run.info.get("preset", "inspect"))
        self._checkpoints = checkpoint.steps(Path(run.path).with_suffix(".checkpoint"))
        self._device, self._always = device, tuple(always)
        self._interventions, self.changes = self._changes(alert)
        self._training: Training | None = None
        self._probe: Probe | None = None

    def load(self, step: int, change: str, out: Path) -> int:
        """Put the run back to before a step, with one thing changed; see `Replayable.load`."""
        acts = [*self._always, *([self._interventions[change]] if change else [])]
        config = self._config
        for act in acts:
            config = act.config(config)
        with torch.device(self._device):
            model = config.build_model()
        for act in acts:
            act.model(model)
        data = ChangedBatches(self._data, [act.batch for act in acts])
        self._probe = attach(
            model, out, preset=self._preset, config=config.describe(), rules=quiet_rules(out.parent), overwrite=True
        )
        self._training = ChangedTraining(model, data, config, self._probe, acts)
        start = 0 if any(act.architecture for act in acts) else self.first_step(step)
        if start:
            self._training.restore(self._checkpoints[start], same=False)
        return self._training.step

    def first_step(self, step: int) -> int:
        """Return the step of the newest checkpoint at or before a step; 0, the beginning, where there is none."""
        return max((at for at in self._checkpoints if at <= step), default=0)

    def step(self) -> None:
        """Run one training step."""
        assert self._training is not None, "load comes first"
        self._training.advance()

    def close(self) -> None:
        """Seal the recording of the replay."""
        if self._probe is not None:
            self._probe.close()
        self._training = self._probe = None

    def _changes(self, alert: int) -> tuple[dict[str, Intervention], dict[str, Change]]:
        """Return what can be changed in this run, and what that is in words."""
        looped, train = self._config.looped, self._config.train_config()
        first = max(alert - ONSET + 1, 0)
        choices: dict[str, tuple[bool, str, Intervention]] = {
            "a_bar_radius": (
                looped.injection == "concatenation",
                f"ρ(A̅) held at {HELD_RADIUS}",
                Intervention(model=held_injection),
            ),
            "a_bar_precision": (
                train.precision == "bf16",
                "A̅ in float32",
                Intervention(model=precise_injection),
            ),
            "rate": (True, "the learning rate halved", Intervention(config=_rate_halved)),
            "batch": (
                True,
                f"the batches of steps {first} to {alert} replaced",
                Intervention(batch=_other_batches(range(first, alert + 1), self._micro_batches())),
            ),
            "clip": (True, "gradients clipped ten times tighter", Intervention(config=_clip_tighter)),
            "depth": (
                looped.depth_distribution != "fixed",
                "the depth fixed at its mean",
                Intervention(config=lambda c: c.updated(model={"depth_distribution": "fixed"})),
            ),
            "sandwich_norm": (
                looped.norm == "pre",
                "sandwich norm in the loop",
                Intervention(
                    config=lambda c: c.updated(model={"norm": "sandwich"}), model=pre_norm_outside, architecture=True
                ),
            ),
            "prelude_norm": (
                not looped.prelude_norm,
                "prelude norm",
                Intervention(config=lambda c: c.updated(model={"prelude_norm": True}), architecture=True),
            ),
            "draws": (True, "other random depths and initial states", Intervention(config=_other_draws)),
        }
        chosen = {name: (words, act) for name, (possible, words, act) in choices.items() if possible}
        changes = {name: Change(words, act.architecture) for name, (words, act) in chosen.items()}
        return {name: act for name, (_, act) in chosen.items()}, changes

    def _micro_batches(self) -> int:
        """Micro-batches of a step."""
        return self._config.train_config().accumulation


def recorded_config(run: Run) -> RunConfig:
    """Return the configuration that a run of ``loopscope train`` has written into its file.

    Raises:
        ValueError: There is none.
    """
    recorded = run.info.get("config", {})
    if not isinstance(recorded, dict) or not {"preset", "seed", "model", "data", "train"} <= recorded.keys():
        raise ValueError(
            "this run was not recorded by loopscope train, so that its steps cannot be run again from its file; "
            "see loopscope.causes.replayable.Replayable"
        )
    if int(run.info.get("world_size") or 1) > 1:
        raise ValueError("this run was trained by several ranks, which cannot be run again here")
    try:
        return RunConfig(**{name: recorded[name] for name in ("preset", "seed", "model", "data", "train")})
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"the configuration in this run's file cannot be used ({error}); explain it with the version that wrote it"
        ) from error


def quiet_rules(folder: Path) -> Path:
    """Write a rule file in which no rule does anything while a replay trains, and return it.

    Otherwise the alerts of the replays would be told as if they were news, and a rule of the project that stops a
    training would stop them.
    """
    path = folder / "quiet.toml"
    path.write_text("".join(f'[[rule]]\nid = "{rule.id}"\nactions = []\n\n' for rule in load_rules()))
    return path


@torch.no_grad()
def hold_radius(model: LoopedTransformer, step: int = 0) -> None:
    """Scale the A̅ of a concatenation back to where its spectral radius is `HELD_RADIUS`, when it is larger."""
    injection = model.injection
    assert isinstance(injection, ConcatenationInjection)
    radius = radius_of(injection.a_bar())
    if radius > HELD_RADIUS:
        injection.adapter.weight[:, : injection.width] *= HELD_RADIUS / radius


def held_injection(model: LoopedTransformer) -> None:
    """Use the A̅ of a concatenation scaled to where its spectral radius is `HELD_RADIUS`, when it is larger.

    The weights themselves are left to the optimizer. Scaled back after every step, they would be so small beside the
    steps of a rate that is far too hot that A̅ turns round from one step to the next: another fault than the run's.
    """
    injection = model.injection
    assert isinstance(injection, ConcatenationInjection)
    kind, known = type(injection), {"version": -1, "scale": 1.0}

    def scale(self: ConcatenationInjection) -> float:
        weight = self.adapter.weight
        if weight._version != known["version"]:  # once after every step of the optimizer
            radius = radius_of(kind.a_bar(self))
            known.update(version=weight._version, scale=min(1.0, HELD_RADIUS / radius) if radius else 1.0)
        return known["scale"]

    vars(injection)["forward"] = MethodType(lambda self, h, e: kind.forward(self, scale(self) * h, e), injection)
    vars(injection)["a_bar"] = MethodType(lambda self: scale(self) * kind.a_bar(self), injection)


def radius_of(a_bar: Tensor) -> float:
    """Return the spectral radius of a matrix, or 0 where it has numbers that are not finite."""
    matrix = a_bar.detach().double().cpu().numpy()
    return float(np.abs(np.linalg.eigvals(matrix)).max()) if np.isfinite(matrix).all() else 0.0


def pre_norm_outside(model: LoopedTransformer) -> None:
    """Take the second norms out of the blocks before and after the loop.

    Those of the prelude would normalise the loop's input: that is what prelude norm does, and another change.
    """
    for block in (*model.prelude, *model.coda):
        block.attention_post_norm = block.mlp_post_norm = nn.Identity()


def precise_injection(model: LoopedTransformer) -> None:
    """Run the injection in float32 whatever the precision around it, with A̅ as its class computes it."""
    injection: nn.Module = model.injection
    vars(injection).pop("a_bar", None)
    forward = type(injection).forward

    def precise(self: nn.Module, h: Tensor, e: Tensor) -> Any:
        with torch.autocast(h.device.type, enabled=False):
            return forward(self, h.float(), e.float())

    injection.forward = MethodType(precise, injection)


def _rate_halved(config: RunConfig) -> RunConfig:
    train = config.train_config()
    return config.updated(train={"lr": train.lr / 2, "muon_lr": train.muon_lr / 2})


def _clip_tighter(config: RunConfig) -> RunConfig:
    return config.updated(train={"clip": config.train_config().clip / 10})


def _other_draws(config: RunConfig) -> RunConfig:
    return config.updated(train={"seed": config.train_config().seed + OTHER_DRAWS})


def _other_batches(steps: range, micro_batches: int) -> Callable[[Data, int, Tensor], Tensor]:
    """Batches that the run never sees, in place of those of some steps."""

    def other(data: Data, index: int, batch: Tensor) -> Tensor:
        return data.batch(index + FRESH, len(batch)) if index // micro_batches in steps else batch

    return other


@dataclass(slots=True)
class ChangedBatches:
    """A run's data, some batches of which are other ones."""

    data: Data
    changes: Sequence[Callable[[Data, int, Tensor], Tensor]]
    sequence_length: int = field(init=False)
    vocab_size: int = field(init=False)

    def __post_init__(self) -> None:
        self.sequence_length, self.vocab_size = self.data.sequence_length, self.data.vocab_size

    def batch(self, index: int, batch_size: int) -> Tensor:
        """Return the batch of that number, after all changes."""
        tokens = self.data.batch(index, batch_size)
        for change in self.changes:
            tokens = change(self.data, index, tokens)
        return tokens

    def held_out(self, batch_size: int) -> Any:
        """As the run has them."""
        return self.data.held_out(batch_size)

    def describe(self) -> Mapping[str, object]:
        """As the run says."""
        return self.data.describe()


class ChangedTraining(Training):
    """A training whose weights are changed around each step of the optimizers, in the order of the interventions.

    What a fault does to the optimizers' step comes first, and never sees what a later intervention does to the weights.
    """

    def __init__(
        self,
        model: LoopedTransformer,
        data: Any,
        config: RunConfig,
        probe: Observer,
        interventions: Sequence[Intervention],
    ) -> None:
        super().__init__(model, data, replace(config.train_config(), checkpoint_every=0), probe)
        self._interventions = interventions

    def update_weights(self) -> None:
        """Let the optimizers use the gradients, between what every intervention does before and after."""
        for act in self._interventions:
            act.before(self.model, self.step)
        super().update_weights()
        for act in self._interventions:
            act.update(self.model, self.step)
