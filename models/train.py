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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checkpoint, distributed
from .data import Data, stream_seed
from .depth import loss_at_depths
from .flops import utilisation
from .looped import LoopedTransformer
from .optimizers import build_optimizers, set_rates

# A resumed run may be made longer, saved or evaluated otherwise, or split over other ranks; the rest makes it that run.
FREE_ON_RESUME = frozenset(
    ("steps", "accumulation", "checkpoint_every", "parallelism", "compile", "eval_every", "eval_depths", "eval_batches")
)


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

    def flush(self) -> None:
        """Called before a checkpoint is written: what was told so far must be safe when this returns.

        Otherwise a kill right after the checkpoint would leave steps that are in the weights and in no record.
        """
        ...


class NullObserver:
    """Watches nothing."""

    def step(self, *, step: int, loss: Tensor, grad_norm: Tensor, lr: float, tokens: int) -> None:
        """Does nothing."""

    def flush(self) -> None:
        """Does nothing."""


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
    parallelism: distributed.Parallelism = "ddp"
    eval_every: int = 0
    eval_depths: tuple[int, ...] = ()
    eval_batches: int = 8
    checkpoint_every: int = 0

    def __post_init__(self) -> None:
        """Checks every field."""
        for name in ("betas", "eval_depths"):
            self._expect(name, isinstance(getattr(self, name), tuple | list), "a list of numbers")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("steps", "batch_size", "accumulation", "eval_batches"):
            self._expect(name, _is_whole(getattr(self, name)) and getattr(self, name) >= 1, "a whole number from 1")
        for name in ("warmup_steps", "checkpoint_every", "eval_every", "seed"):
            self._expect(name, _is_whole(getattr(self, name)) and getattr(self, name) >= 0, "a whole number from 0")
        for name in ("lr", "eps", "clip", "muon_lr"):
            self._expect(name, _is_number(getattr(self, name)) and getattr(self, name) > 0, "a positive number")
        for name in ("weight_decay", "muon_weight_decay"):
            self._expect(name, _is_number(getattr(self, name)) and getattr(self, name) >= 0, "a number from 0")
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
        """The one place where a bad field is reported."""
        if not fine:
            raise ValueError(f"{name}: expected {expected}, found {getattr(self, name)!r}")


def _is_whole(value: object) -> bool:
    """Whether a value from a file is an integer (``True`` is not)."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    """Whether a value from a file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, slots=True)
class Progress:
    """A step that has been done.

    Args:
        step: Steps done, over resumes.
        steps: Steps of the whole run.
        loss: Of this step, nats.
        tokens: Trained on so far, over all ranks.
        seconds: Since this session began.
        tokens_per_second: Over all ranks, since the last report.
        utilisation: Share of the devices' bfloat16 peak by the paper's FLOPs formula; NaN where the peak is not known.
        evaluation: Held-out loss by depth when this step was evaluated, else empty.
    """

    step: int
    steps: int
    loss: float
    tokens: int
    seconds: float
    tokens_per_second: float
    utilisation: float
    evaluation: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """How a run ended.

    Args:
        step: Steps done, over resumes.
        loss: Of the last step, nats.
        tokens: Trained on, over all ranks and resumes.
        seconds: Of this session.
        interrupted: Stopped before the last step.
        evaluations: Held-out loss by depth for every evaluated step of this session.
    """

    step: int
    loss: float
    tokens: int
    seconds: float
    interrupted: bool
    evaluations: Mapping[int, Mapping[int, float]] = field(default_factory=dict)


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
    Ctrl-C stops at once. Under ``torchrun``, call it on all ranks inside `loopscope.models.distributed.started`.

    Args:
        model: Left in training mode with its final weights.
        data: Batches by number; see `loopscope.models.data`.
        config: The run.
        observer: Told about every step, after the optimizer's.
        checkpoint_path: Folder for checkpoints; none are written without it.
        resume: Continue from the newest checkpoint in ``checkpoint_path``; starts afresh when there is none.
        on_progress: Called about ten times a second at most, after evaluations and after the last step. It may raise
            KeyboardInterrupt.

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
    report = _Reports(run, on_progress or (lambda progress: None))
    evaluations: dict[int, dict[int, float]] = {}
    stopped = False
    with _stop_signals() as stop:
        while run.step < config.steps and not stopped:
            run.advance()
            if config.eval_every and (run.step % config.eval_every == 0 or run.step == config.steps):
                evaluations[run.step] = run.evaluate()
            try:
                report(evaluations.get(run.step, {}))
            except KeyboardInterrupt:
                stop.set()
            # Ranks must stop at the same step; asking costs a synchronisation, so several processes ask now and then.
            asked = distributed.world_size() == 1 or run.step % 10 == 0
            stopped = asked and distributed.any_rank(stop.is_set(), run.device)
            due = config.checkpoint_every and run.step % config.checkpoint_every == 0
            if checkpoint_path is not None and (due or stopped or run.step == config.steps):
                run.observer.flush()
                run.save(checkpoint_path)
    return TrainResult(
        run.step, float(run.loss), run.tokens, report.seconds(), run.step < config.steps, evaluations=evaluations
    )


class _Reports:
    """Tells about progress now and then, with rates since the last time."""

    def __init__(self, run: _Run, tell: Callable[[Progress], None]) -> None:
        self.run, self.tell = run, tell
        self.began = self.last = time.monotonic()
        self.tokens = run.tokens

    def seconds(self) -> float:
        """Since the session began."""
        return time.monotonic() - self.began

    def __call__(self, evaluation: Mapping[int, float]) -> None:
        """Tells about the step just done when it is time."""
        run, steps = self.run, self.run.config.steps
        if run.step < steps and not evaluation and time.monotonic() - self.last < 0.1:
            return
        loss = float(run.loss)  # waits for the device, so that the time below is that of work done
        now = time.monotonic()
        rate = (run.tokens - self.tokens) / max(now - self.last, 1e-9)
        per_device = rate / distributed.world_size()
        used = utilisation(run.model.config, run.data.sequence_length, per_device, run.device)
        self.last, self.tokens = now, run.tokens
        self.tell(Progress(run.step, steps, loss, run.tokens, now - self.began, rate, used, evaluation))


class _Run:
    """The state of a run and its verbs: advance by one step, evaluate, save, restore."""

    def __init__(self, model: LoopedTransformer, data: Data, config: TrainConfig, observer: Observer) -> None:
        self.model, self.data, self.config, self.observer = model.train(), data, config, observer
        self.device = next(model.parameters()).device
        self.cross_entropy = F.cross_entropy
        if config.compile:
            model.compile_loop()
            self.cross_entropy = torch.compile(F.cross_entropy)
        self.callable = distributed.parallel(model, config.parallelism)
        self.optimizers = build_optimizers(model, config)
        self.step = 0
        self.tokens = 0
        self.loss = torch.tensor(math.nan)

    def advance(self) -> None:
        """One optimizer step."""
        config = self.config
        lr = set_rates(self.optimizers, self.step, config)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        losses = []
        for i in range(config.accumulation):
            with distributed.accumulating(self.callable, last=i == config.accumulation - 1):
                losses.append(self._micro_batch(i))
        self.loss = distributed.mean(torch.stack(losses).sum())
        grad_norm = distributed.whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip))
        for optimizer in self.optimizers:
            optimizer.step()
        self.tokens += config.batch_size * self.data.sequence_length * self._micro_batches()
        self.observer.step(step=self.step, loss=self.loss, grad_norm=grad_norm, lr=lr, tokens=self.tokens)
        self.step += 1

    def _micro_batches(self) -> int:
        """Micro-batches of a step over all ranks."""
        return self.config.accumulation * distributed.world_size()

    def _micro_batch(self, number: int) -> Tensor:
        """Forward and backward of one of this rank's micro-batches; returns its share of the rank's loss."""
        index = self.step * self._micro_batches() + number * distributed.world_size() + distributed.rank()
        tokens = self.data.batch(index, self.config.batch_size).to(self.device, non_blocking=True)
        torch.manual_seed(stream_seed(self.config.seed, "draws", index))
        with self._autocast():
            logits = self.callable(tokens[:, :-1])
        loss = self.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()) / self.config.accumulation
        torch.autograd.backward(loss)
        return loss.detach()

    def _autocast(self) -> torch.autocast:
        """The run's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def evaluate(self) -> dict[int, float]:
        """Held-out loss at the configured depths; every rank evaluates the same text."""
        config = self.config
        depths = config.eval_depths or (self.model.config.mean_depth,)
        with self._autocast():
            return loss_at_depths(
                self.model,
                self.data,
                depths,
                batches=config.eval_batches,
                batch_size=config.batch_size,
                seed=config.seed,
            )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes a checkpoint; all ranks take part, the first one writes."""
        weights = {name: distributed.whole(tensor) for name, tensor in self.model.state_dict().items()}
        state = checkpoint.TrainState(
            step=self.step,
            tokens=self.tokens,
            loss=float(self.loss),
            optimizers=[checkpoint.gathered(optimizer) for optimizer in self.optimizers],
            rng=[torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [])],
            config=self._identity(),
        )
        if distributed.rank() == 0:
            checkpoint.save(folder, weights, self.model.config, state)
        distributed.wait()

    def restore(self, folder: str | os.PathLike[str]) -> None:
        """Continues where the newest checkpoint stopped."""
        weights, model_config, state = checkpoint.load(folder)
        changed = _first_difference(asdict(self.model.config), asdict(model_config))
        changed = changed or _first_difference(self._identity(), state["config"])
        if changed:
            raise ValueError(f"{folder}: {changed}; resume with the same settings or give another checkpoint_path")
        layout = self.model.state_dict()
        self.model.load_state_dict({name: distributed.shard_like(t, layout[name]) for name, t in weights.items()})
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            checkpoint.scatter(optimizer, saved)
        self.step, self.tokens, self.loss = state["step"], state["tokens"], torch.tensor(state["loss"])
        torch.set_rng_state(state["rng"][0])
        if self.device.type == "cuda" and len(state["rng"]) == 1 + torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["rng"][1:])

    def _identity(self) -> dict[str, Any]:
        """What makes this run this run, as plain values."""
        fields = {name: value for name, value in asdict(self.config).items() if name not in FREE_ON_RESUME}
        return {**fields, "betas": list(self.config.betas), "micro_batches": self._micro_batches()}


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
