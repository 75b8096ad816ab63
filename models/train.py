"""One training run: batches in, checkpoints and progress out, an observer told about every step.

All randomness of a step (depths, initial states) is drawn from torch's generators, seeded by the run's seed and the
number of the micro-batch. A resumed run is therefore the uninterrupted one, and splitting a batch over accumulation
or over ranks changes nothing but the order of additions.

Not covered: mixed-precision with loss scaling (float16), pipeline or tensor parallelism.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checkpoint
from .data import Data, stream_seed
from .looped import LoopedTransformer
from .optimizers import build_optimizer, learning_rate


class Observer(Protocol):
    """What the trainer tells about a run; a probe is one."""

    def step(self, *, step: int, loss: Tensor, grad_norm: Tensor, lr: float, tokens: int) -> None:
        """Called once after every optimizer step.

        Args:
            step: Number of the step that was done, from 0; a resumed run goes on counting from its checkpoint.
            loss: Mean next-token loss of the step in nats, 0-d, on the model's device.
            grad_norm: Norm of the gradient before clipping, 0-d, on the model's device.
            lr: Learning rate of the step.
            tokens: Tokens trained on so far, this step included, over all ranks.
        """
        ...


class NullObserver:
    """Watches nothing."""

    def step(self, *, step: int, loss: Tensor, grad_norm: Tensor, lr: float, tokens: int) -> None:
        """Does nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Everything that defines a training run beside the model and the data; checked when it is built.

    Args:
        steps: Optimizer steps.
        batch_size: Sequences in a micro-batch on one rank.
        accumulation: Micro-batches per optimizer step on one rank.
        lr: Peak learning rate.
        betas: Decay rates of AdamW's two moments.
        eps: AdamW's ε.
        weight_decay: Of matrices and embeddings; none on norms, A, Δ, B and the read-out.
        warmup_steps: Steps of linear warm-up.
        cooldown: Fraction of the steps over which the rate falls linearly to zero at the end.
        clip: Largest gradient norm; larger gradients are scaled down to it.
        seed: Of depths and initial states. Weights and data have their own.
        precision: ``"fp32"``, or ``"bf16"`` for autocast with float32 weights.
        compile: Compile the loop body.
        checkpoint_every: Steps between checkpoints; 0 keeps only the last one.

    Raises:
        ValueError: A field is out of range; the message names it.

    >>> TrainConfig(steps=0)
    Traceback (most recent call last):
    ValueError: steps: expected at least 1, found 0
    """

    steps: int = 200
    batch_size: int = 8
    accumulation: int = 1
    lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    warmup_steps: int = 10
    cooldown: float = 0.0
    clip: float = 1.0
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    checkpoint_every: int = 0

    def __post_init__(self) -> None:
        """Checks every field."""
        object.__setattr__(self, "betas", tuple(self.betas))
        for name, least in (
            ("steps", 1),
            ("batch_size", 1),
            ("accumulation", 1),
            ("warmup_steps", 0),
            ("checkpoint_every", 0),
        ):
            self._expect(name, getattr(self, name) >= least, f"at least {least}")
        for name in ("lr", "eps", "clip"):
            self._expect(name, getattr(self, name) > 0, "a positive number")
        self._expect("weight_decay", self.weight_decay >= 0, "at least 0")
        self._expect("cooldown", 0 <= self.cooldown <= 1, "a fraction from 0 to 1")
        self._expect("betas", len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "two numbers in [0, 1)")
        self._expect("precision", self.precision in ("fp32", "bf16"), "fp32 or bf16")

    def _expect(self, name: str, fine: bool, expected: str) -> None:
        """The one place where a bad field is reported."""
        if not fine:
            raise ValueError(f"{name}: expected {expected}, found {getattr(self, name)!r}")


@dataclass(frozen=True, slots=True)
class Progress:
    """A step that has been done, for a progress bar."""

    step: int
    steps: int
    loss: float
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class TrainResult:
    """How a run ended: steps done, last loss (nats), tokens seen, seconds of this session, cut short or not."""

    step: int
    loss: float
    tokens: int
    seconds: float
    interrupted: bool


def train(
    model: LoopedTransformer,
    data: Data,
    config: TrainConfig,
    *,
    observer: Observer | None = None,
    checkpoint_path: str | os.PathLike[str] | None = None,
    resume: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainResult:
    """Trains a model on the device where it is.

    Ctrl-C or SIGTERM finishes the step at hand, writes a checkpoint and returns with ``interrupted=True``; a second
    Ctrl-C stops at once.

    Args:
        model: Left in training mode with its final weights.
        data: Batches by number; see `loopscope.models.data`.
        config: The run.
        observer: Told about every step, after the optimizer's.
        checkpoint_path: Folder for checkpoints; none are written without it.
        resume: Continue from the newest checkpoint in ``checkpoint_path``; starts afresh when there is none.
        on_progress: Called about ten times a second at most, and after the last step. It may raise KeyboardInterrupt.

    Returns:
        The end of the run.

    Raises:
        ValueError: ``resume`` without ``checkpoint_path``, or a checkpoint with another model or config.

    >>> from loopscope.models import build, standard_library
    >>> run = TrainConfig(steps=2, batch_size=2)
    >>> train(build("demo"), standard_library(sequence_length=16), run).step
    2
    """
    if resume and checkpoint_path is None:
        raise ValueError("resume: expected a checkpoint_path to resume from, found None")
    run = _Run(model, data, config, observer or NullObserver())
    if resume and checkpoint_path is not None and checkpoint.exists(checkpoint_path):
        run.restore(checkpoint_path)
    report = on_progress or (lambda progress: None)
    began, reported = time.monotonic(), 0.0
    with _stop_signals() as stop:
        while run.step < config.steps and not stop.is_set():
            run.advance()
            elapsed = time.monotonic() - began
            last = run.step == config.steps
            try:
                if last or elapsed - reported > 0.1:
                    reported = elapsed
                    report(Progress(run.step, config.steps, float(run.loss), run.tokens, elapsed))
            except KeyboardInterrupt:
                stop.set()
            due = config.checkpoint_every and run.step % config.checkpoint_every == 0
            if checkpoint_path is not None and (due or last or stop.is_set()):
                run.save(checkpoint_path)
    return TrainResult(run.step, float(run.loss), run.tokens, time.monotonic() - began, run.step < config.steps)


class _Run:
    """The state of a run and its three verbs: advance by one step, save, restore."""

    def __init__(self, model: LoopedTransformer, data: Data, config: TrainConfig, observer: Observer) -> None:
        self.model, self.data, self.config, self.observer = model.train(), data, config, observer
        self.device = next(model.parameters()).device
        self.optimizer = build_optimizer(model, config)
        self.step = 0
        self.tokens = 0
        self.loss = torch.tensor(math.nan)
        if config.compile:
            model.compile_loop()

    def advance(self) -> None:
        """One optimizer step."""
        config = self.config
        lr = learning_rate(self.step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        losses = [self._micro_batch(self.step * config.accumulation + i) for i in range(config.accumulation)]
        self.loss = torch.stack(losses).sum()
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimizer.step()
        self.step += 1
        self.observer.step(step=self.step - 1, loss=self.loss, grad_norm=grad_norm, lr=lr, tokens=self.tokens)

    def _micro_batch(self, index: int) -> Tensor:
        """Forward and backward of one micro-batch; returns its share of the step's loss."""
        tokens = self.data.batch(index, self.config.batch_size).to(self.device, non_blocking=True)
        torch.manual_seed(stream_seed(self.config.seed, "draws", index))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            logits = self.model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()) / self.config.accumulation
        torch.autograd.backward(loss)
        self.tokens += tokens[:, 1:].numel()
        return loss.detach()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes a checkpoint."""
        state = checkpoint.TrainState(
            step=self.step,
            tokens=self.tokens,
            optimizer=self.optimizer.state_dict(),
            rng=[torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [])],
            config={**asdict(self.config), "betas": list(self.config.betas)},
        )
        checkpoint.save(folder, self.model.state_dict(), self.model.config, state)

    def restore(self, folder: str | os.PathLike[str]) -> None:
        """Continues where the newest checkpoint stopped."""
        weights, model_config, state = checkpoint.load(folder)
        changed = _first_difference(asdict(self.model.config), asdict(model_config))
        # A run may be made longer or saved more often; anything else would be another run.
        free = {"steps": None, "checkpoint_every": None, "betas": list(self.config.betas)}
        changed = changed or _first_difference(
            {**asdict(self.config), **free}, {**state["config"], **free, "betas": state["config"]["betas"]}
        )
        if changed:
            raise ValueError(f"{folder}: {changed}; resume with the same settings or give another checkpoint_path")
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.tokens = state["step"], state["tokens"]
        torch.set_rng_state(state["rng"][0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state_all(state["rng"][1:])


def _first_difference(here: dict[str, Any], there: dict[str, Any]) -> str:
    """The first field in which a run and its checkpoint differ, as words; empty when they agree."""
    for name in here:
        if here[name] != there.get(name):
            return f"{name} was {there.get(name)!r} in the checkpoint and is {here[name]!r} now"
    return ""


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event set by Ctrl-C or SIGTERM, so that a step is never cut in half; the usual handlers return afterwards."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
