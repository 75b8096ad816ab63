"""Callbacks: `attach` for trainings whose loop belongs to a trainer.

    Trainer(..., callbacks=[LoopscopeCallback("runs/a.h5")])                  # Hugging Face transformers
    lightning.Trainer(..., callbacks=[LoopscopeLightningCallback("runs/a.h5")])

Both attach when training starts, give every optimizer step a row under the trainer's own step number, bring the file up
to date before each checkpoint, go on in the same file when the trainer resumes from one, and close it at the end. They
only translate: `Recording` does the work, and the libraries are imported when their callback is first asked for.

Not covered: Accelerate and loops of your own, where ``attach`` is already the whole integration; fully sharded training
through a trainer (FSDP, DeepSpeed), which is not tested; Lightning's manual optimization with several optimizers, whose
steps Lightning counts one by one.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import torch
from torch import Tensor, nn

from ..loops.hooks import hook_behind
from ..loops.neutral import looking
from ..runfile.rank_names import rank_path
from .notices import one_line
from .probe import Probe, attach

log = logging.getLogger("loopscope")


class Recording:
    """What all callbacks do: attach at the start of a training, one row per step, flush, close.

    Args:
        path: The run file. Processes other than the first of a distributed training write ``<path>.rankN.h5``.
        submodule: Dotted name of the looped model inside the module that is trained; default: the module itself.
        **options: Everything else that `attach` takes, except ``resume``, which the trainer decides.

    Raises:
        TypeError: `attach` has no such option.

    A training that ends with an exception closes the file too, which then reads as interrupted and says why. Hugging
    Face's trainer does not tell its callbacks about one: there use the callback in ``with``, or the file only says that
    the process ended before the training did.

    >>> import tempfile
    >>> from loopscope.models import build
    >>> from loopscope.probes import open_run
    >>> folder = tempfile.TemporaryDirectory()
    >>> model = build("demo")
    >>> with Recording(folder.name + "/a.h5", preset="watch") as recording:
    ...     recording.begin(model, steps_done=0)
    ...     logits = model(torch.zeros(2, 32, dtype=torch.int64), num_loops=3)
    ...     recording.end_step(0, loss=2.5)
    >>> with open_run(folder.name + "/a.h5") as run:
    ...     run["loss"].tolist(), run["depth"].tolist()
    ([2.5], [3.0])
    """

    def __init__(self, path: str | os.PathLike[str], *, submodule: str = "", **options: Any) -> None:
        inspect.signature(attach).bind_partial(nn.Module(), path, resume=False, **options)
        self._path, self._submodule, self._options = Path(path), submodule, options
        self._probe: Probe | None = None
        self._unanswered: set[str] = set()

    @property
    def probe(self) -> Probe | None:
        """The probe while a training is on, else None."""
        return self._probe

    def begin(self, model: nn.Module, *, steps_done: int, rank: int = 0) -> None:
        """Attach to the model of a training.

        Args:
            model: What the trainer trains.
            steps_done: Optimizer steps before this training; more than 0 continues the run file.
            rank: This process among those of a distributed training.

        Raises:
            FileExistsError: The training starts at step 0 and the file is there.
            LoopSiteError, OSError: As `attach`.
        """
        died = self._probe is not None  # a training that was broken off and is now tried again
        self.close(finished=False)
        path = rank_path(self._path, rank)
        resume = steps_done > 0 or died
        if path.exists() and not resume and not self._options.get("overwrite"):
            raise FileExistsError(
                f"{path} exists and this training starts at step 0: resume it from a checkpoint, or pass overwrite=True"
            )
        self._probe = attach(model.get_submodule(self._submodule), path, resume=resume, **self._options)

    def end_step(self, step: int, **numbers: Tensor | float | None) -> None:
        """End an optimizer step: like ``probe.step``, with the number of the step, from 0."""
        if self._probe is not None:
            given: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}
            self._probe.step(step=step, **given)

    def flush(self) -> None:
        """Bring the file up to date, for a checkpoint."""
        if self._probe is not None:
            self._probe.flush()

    def close(self, *, finished: bool = True, reason: str = "") -> None:
        """Detach and close the file; a second call changes nothing.

        Args:
            finished: Whether training ended as it should.
            reason: Why it did not.
        """
        probe, self._probe = self._probe, None
        if probe is None:
            return
        if finished:
            probe.close()
        else:
            probe.close(finished=False, reason=reason or "the trainer did not say that training ended")

    def _ask(self, what: str, question: Callable[[], Any]) -> Any:
        """Return a trainer's answer to a question; None, logged once, where it has none: training must go on."""
        try:
            return question()
        except Exception as error:
            if what not in self._unanswered:
                self._unanswered.add(what)
                log.warning("loopscope: %s is not recorded: %r", what, error)
            return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(finished=error is None, reason="" if error is None else one_line(error))


class TransformersEvents(Recording):
    """A `Recording` that listens to Hugging Face's ``Trainer``; use it as ``LoopscopeCallback``.

    Recorded per optimizer step:

    - ``loss``: what the model returned, as the trainer adds it up over micro-batches. It is read at the model, on the
      device, because the trainer tells callbacks a loss only where it logs, averaged over steps and with NaN filtered
      out. Where the model returns none (label smoothing, ``compute_loss_func``), the logged loss of steps that are
      logged one by one; a ``compute_loss`` of your own that changes the model's loss is not seen.
    - ``grad_norm``: before clipping, in steps that the trainer logs (all of them with ``logging_steps=1``): there is
      no other place where it can be read.
    - ``lr``: of the first parameter group, as the step used it.
    - ``tokens``: ``num_input_tokens_seen``, where the trainer counts it.
    """

    _loss: _ReturnedLoss | None = None
    _lr: float | None = None
    _waiting: tuple[int, dict[str, Any]] | None = None  # a step that ended and whose log is about to come
    _last_logged = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Attach; the trainer has wrapped its model and read its checkpoint by now."""
        self.begin(model, steps_done=state.global_step, rank=args.process_index)
        self._loss = _ReturnedLoss(model)
        self._waiting, self._last_logged = None, state.global_step

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Note the learning rate before the scheduler moves on."""
        self._lr = self._ask("lr", lambda: float(optimizer.param_groups[0]["lr"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the step, at once or after its log."""
        ranks = args.world_size if getattr(args, "average_tokens_across_devices", False) else 1
        loss = None if self._loss is None else self._loss.take(ranks)
        counted = getattr(args, "include_num_input_tokens_seen", "no") not in ("no", False)
        tokens = state.num_input_tokens_seen if counted else None
        self._waiting = state.global_step - 1, {"loss": loss, "lr": self._lr, "tokens": tokens}
        if not control.should_log:
            self._settle({})
        if control.should_save and not control.should_log:
            self.flush()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """End the step that was waiting for its gradient norm."""
        if not logs or "loss" not in logs:
            return
        steps, self._last_logged = state.global_step - self._last_logged, state.global_step
        self._settle({"grad_norm": logs.get("grad_norm")} | ({"loss": logs["loss"]} if steps == 1 else {}))
        if control.should_save:
            self.flush()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Bring the file up to date with a checkpoint that was decided on late."""
        self._settle({})
        self.flush()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the file."""
        self._settle({})
        self.close()

    def close(self, *, finished: bool = True, reason: str = "") -> None:
        """Detach and close the file; a second call changes nothing."""
        self._settle({})
        if self._loss is not None:
            self._loss.remove()
            self._loss = None
        super().close(finished=finished, reason=reason)

    def _settle(self, logged: dict[str, Any]) -> None:
        """End the step that waits, if one does; what the model said goes before what was logged."""
        if self._waiting is not None:
            (step, numbers), self._waiting = self._waiting, None
            self.end_step(step, **logged | {name: value for name, value in numbers.items() if value is not None})


class LightningEvents(Recording):
    """A `Recording` that listens to Lightning's ``Trainer``; use it as ``LoopscopeLightningCallback``.

    Recorded per optimizer step: ``loss`` as ``training_step`` returned it, summed over accumulated micro-batches as
    Lightning weighs them; ``grad_norm`` of all parameters before clipping, computed here (one pass over the
    gradients) because Lightning computes none; ``lr`` of the first parameter group as the step used it. Tokens are not
    counted by Lightning.

    Lightning calls ``training_step`` and not ``forward``: name the looped model inside your module by ``submodule``.
    """

    _steps = 0  # optimizer steps done
    _loss: Tensor | float | None = None
    _grad_norm: Tensor | None = None
    _lr: float | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach; the checkpoint, if any, has been read by now."""
        self._steps = trainer.global_step
        self._loss = self._grad_norm = self._lr = None
        self.begin(pl_module, steps_done=trainer.global_step, rank=trainer.global_rank)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Measure the gradients; clipping comes after this and unscaling came before."""
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm
        self._grad_norm = self._ask("grad_norm", lambda: norm(gradients)) if gradients else None
        self._lr = self._ask("lr", lambda: float(optimizer.param_groups[0]["lr"]))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add up the loss and end the step when this micro-batch was its last."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is not None:
            loss = loss.detach() if isinstance(loss, Tensor) else float(loss)
            self._loss = loss if self._loss is None else self._loss + loss
        if trainer.global_step > self._steps:
            self._steps = trainer.global_step
            self.end_step(self._steps - 1, loss=self._loss, grad_norm=self._grad_norm, lr=self._lr)
            self._loss = self._grad_norm = self._lr = None

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        """Bring the file up to date before the checkpoint is written."""
        self.flush()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the file of a training that was broken off."""
        self.close(finished=False, reason=one_line(exception))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the file."""
        self.close()


class _ReturnedLoss:
    """Adds up, on the device, the losses that a model returns in training; works in eager mode and in a graph."""

    def __init__(self, model: nn.Module) -> None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self._sum, self._parts = torch.zeros((), device=device), torch.zeros((), device=device)
        self._seen = self._by_items = False
        self._off = hook_behind(model, self._add)

    def take(self, ranks: int) -> Tensor | None:
        """Return the loss since the last call; None when the model returned none.

        Args:
            ranks: By how many processes the trainer multiplies a loss that was divided by the items of all of them.
        """
        seen, self._seen = self._seen, False
        loss = self._sum / self._parts * (ranks if self._by_items else 1) if seen else None
        self._sum.zero_()
        self._parts.zero_()
        return loss

    def remove(self) -> None:
        """Take the hook off."""
        self._off()

    @torch.no_grad()
    def _add(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Add the loss that a training forward returned."""
        loss = output.get("loss") if isinstance(output, dict) else output[0] if isinstance(output, tuple) else None
        if not module.training or looking() or not isinstance(loss, Tensor) or loss.ndim != 0:
            return
        self._seen = True
        self._sum.add_(loss.detach().to(self._sum.device, torch.float32))
        # Losses already divided by the items of all micro-batches add up; others are means, to be averaged.
        self._by_items = kwargs.get("num_items_in_batch") is not None
        if self._by_items:
            self._parts.fill_(1)
        else:
            self._parts.add_(1)


# Name -> what listens, the module and the class it must descend from, the extra that installs them.
_CALLBACKS: Final = {
    "LoopscopeCallback": (TransformersEvents, "transformers", "TrainerCallback", "transformers"),
    "LoopscopeLightningCallback": (LightningEvents, "lightning.pytorch", "Callback", "lightning"),
}

if TYPE_CHECKING:
    LoopscopeCallback = TransformersEvents
    LoopscopeLightningCallback = LightningEvents


def __getattr__(name: str) -> Any:
    """Make a callback class when it is first asked for, so that no trainer is imported before."""
    if name not in _CALLBACKS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    events, module, base, extra = _CALLBACKS[name]
    try:
        parent = getattr(import_module(module), base)
    except ImportError as error:
        raise ImportError(f"{name} needs {extra}: pip install 'loopscope[{extra}]'") from error
    made = type(name, (events, parent), {"__module__": __name__, "__doc__": events.__doc__})
    return globals().setdefault(name, made)
