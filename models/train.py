"""One training run: batches in, checkpoints and progress out, an observer told about every step.

All randomness of a step (depths, initial states) is drawn from torch's generators, seeded by the run's seed and the
number of the micro-batch. A resumed run is therefore the uninterrupted one, and splitting a batch over accumulation
or over ranks changes nothing but the order of additions.

Not covered: mixed-precision with loss scaling (float16), pipeline or tensor parallelism.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checkpoint, distributed
from .data import Data, stream_seed
from .depth import loss_at_depths
from .flops import utilisation
from .looped import LoopedTransformer
from .optimizers import build_optimizers, set_rates
from .train_config import FREE_ON_RESUME, TrainConfig

log = logging.getLogger("loopscope")

__all__ = ["NullObserver", "Observer", "Progress", "TrainConfig", "TrainResult", "Training", "train"]


class Observer(Protocol):
    """What the trainer tells about a run; a probe is one."""

    def step(self, *, step: int, loss: Tensor, grad_norm: Tensor, lr: float, tokens: int) -> None:
        """Take a step that has been done; called once after every optimizer step.

        Args:
            step: Number of the step that was done, from 0; a resumed run goes on counting from its checkpoint.
            loss: Mean next-token loss of the step in nats, 0-d, on the model's device.
            grad_norm: Norm of the gradient before clipping, 0-d, on the model's device.
            lr: Learning rate of the step.
            tokens: Tokens trained on so far, this step included, over all ranks.
        """
        ...

    def flush(self) -> bool:
        """Make safe what was recorded so far; called before a checkpoint is written.

        Otherwise a kill right after the checkpoint would leave steps that are in the weights and in no record.

        Returns:
            Whether all of it is safe.
        """
        ...


class NullObserver:
    """Watches nothing."""

    def step(self, *, step: int, loss: Tensor, grad_norm: Tensor, lr: float, tokens: int) -> None:
        """Do nothing."""

    def flush(self) -> bool:
        """Do nothing: there is no record that could lack a step."""
        return True


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
        stopped_by: What stopped it, ``"Ctrl-C"`` or ``"SIGTERM"``; empty where another rank was stopped.
        unrecorded: Steps done at the newest checkpoint that holds steps the observer could not keep safe; 0 for none.
        evaluations: Held-out loss by depth for every evaluated step of this session.
    """

    step: int
    loss: float
    tokens: int
    seconds: float
    interrupted: bool
    evaluations: Mapping[int, Mapping[int, float]] = field(default_factory=dict)
    stopped_by: str = ""
    unrecorded: int = 0


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
    """Train a model on the device where it is.

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
    run = Training(model, data, config, observer or NullObserver())
    if resume and checkpoint_path is not None and checkpoint.exists(checkpoint_path):
        run.restore(checkpoint_path)
    report = _Reports(run, on_progress or (lambda progress: None))
    evaluations: dict[int, dict[int, float]] = {}
    stopped, unrecorded, held_back = False, 0, False
    with _stop_signals() as stop:
        while run.step < config.steps and not stopped:
            run.advance()
            if config.eval_every and (run.step % config.eval_every == 0 or run.step == config.steps):
                evaluations[run.step] = run.evaluate()
            try:
                report(evaluations.get(run.step, {}))
            except KeyboardInterrupt:
                stop.by(signal.SIGINT)
            # Ranks must stop at the same step; asking costs a synchronisation, so several processes ask now and then.
            asked = distributed.world_size() == 1 or run.step % 10 == 0
            stopped = asked and distributed.any_rank(stop.is_set(), run.device)
            due = config.checkpoint_every and run.step % config.checkpoint_every == 0
            if checkpoint_path is not None and (due or stopped or run.step == config.steps):
                lacks = distributed.any_rank(run.observer.flush() is False, run.device)
                held_back = lacks and not held_back and not stopped and run.step < config.steps
                if not held_back:
                    unrecorded = run.step if lacks else 0
                if lacks:
                    said = "is left out, because" if held_back else "is written all the same, but"
                    log.warning("the checkpoint of step %d %s the run file lacks steps before it", run.step, said)
                if not held_back:
                    run.save(checkpoint_path)
    return TrainResult(
        run.step,
        float(run.loss),
        run.tokens,
        report.seconds(),
        interrupted=run.step < config.steps,
        evaluations=evaluations,
        stopped_by=stop.signal,
        unrecorded=unrecorded,
    )


class _Stop(threading.Event):
    """An event that knows which signal set it."""

    signal = ""

    def by(self, number: int) -> None:
        """Set the event for a signal."""
        self.signal = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        self.set()


class _Reports:
    """Tells about progress now and then, with rates since the last time."""

    def __init__(self, run: Training, tell: Callable[[Progress], None]) -> None:
        self.run, self.tell = run, tell
        self.began = self.last = time.monotonic()
        self.tokens = run.tokens

    def seconds(self) -> float:
        """Return the seconds since the session began."""
        return time.monotonic() - self.began

    def __call__(self, evaluation: Mapping[int, float]) -> None:
        """Tell about the step just done when it is time."""
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


class Training:
    """The state of a run and its verbs: advance by one step, evaluate, save, restore.

    `train` is what runs it to its end; whoever wants single steps, to run them again or otherwise, takes them here.

    Args:
        model: Put into training mode.
        data: Batches by number.
        config: The run.
        observer: Told about every step.
    """

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
        """Take one optimizer step."""
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
        self.update_weights()
        self.tokens += config.batch_size * self.data.sequence_length * self._micro_batches()
        self.observer.step(step=self.step, loss=self.loss, grad_norm=grad_norm, lr=lr, tokens=self.tokens)
        self.step += 1

    def update_weights(self) -> None:
        """Let the optimizers use the gradients."""
        for optimizer in self.optimizers:
            optimizer.step()

    def _micro_batches(self) -> int:
        """Return the number of micro-batches of a step over all ranks."""
        return self.config.accumulation * distributed.world_size()

    def _micro_batch(self, number: int) -> Tensor:
        """Run one of this rank's micro-batches forward and backward; return its share of the rank's loss."""
        index = self.step * self._micro_batches() + number * distributed.world_size() + distributed.rank()
        tokens = self.data.batch(index, self.config.batch_size).to(self.device, non_blocking=True)
        torch.manual_seed(stream_seed(self.config.seed, "draws", index))
        with self._autocast():
            logits = self.callable(tokens[:, :-1])
        loss = self.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()) / self.config.accumulation
        torch.autograd.backward(loss)
        return loss.detach()

    def _autocast(self) -> torch.autocast:
        """Return the run's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def evaluate(self) -> dict[int, float]:
        """Return the held-out loss at the configured depths; every rank evaluates the same text."""
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
        """Write a checkpoint; all ranks take part, the first one writes."""
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
            checkpoint.save(folder, weights, self.model.config, state, keep=self.config.keep_checkpoints)
        distributed.wait()

    def restore(self, folder: str | os.PathLike[str], *, same: bool = True) -> None:
        """Continue where a checkpoint stopped, the newest one in a run's folder.

        Args:
            folder: A run's checkpoint folder, or one step inside it.
            same: Refuse a checkpoint of another run; without, its weights and moments must only fit.

        Raises:
            ValueError: The checkpoint is of another run.
        """
        weights, model_config, state = checkpoint.load(folder)
        changed = _first_difference(asdict(self.model.config), asdict(model_config))
        changed = changed or _first_difference(self._identity(), state["config"])
        if changed and same:
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
        """Return what makes this run this run, as plain values."""
        fields = {name: value for name, value in asdict(self.config).items() if name not in FREE_ON_RESUME}
        return {**fields, "betas": list(self.config.betas), "micro_batches": self._micro_batches()}


def _first_difference(here: dict[str, Any], there: dict[str, Any]) -> str:
    """Return the first field in which a run and its checkpoint differ, as words; empty when they agree."""
    for name in here:
        if here[name] != there.get(name):
            return f"{name} was {there.get(name)!r} in the checkpoint and is {here[name]!r} now"
    return ""


@contextlib.contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """Yield an event set by Ctrl-C or SIGTERM, so that a step is never cut in half; then restore the usual handlers."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        stop.by(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
