"""Attaching to a training run: two lines, after which every loop of every step is on disk.

    with loopscope.attach(model, "runs/a.h5") as probe:
        ...
        probe.step(loss=loss, grad_norm=norm, lr=lr)

The probe watches through hooks, keeps nothing in the model, draws no random number of the training stream and never
waits for the device. This file is its life: attach, step, flush, close. `loop_watch` measures the loop, `row_sender`
brings the rows off the device, `recorder` writes them.

Whatever fails costs as little as it can: one number, one step, or the loop. Where the loop is lost, the numbers that
training gives go on being recorded and judged, and the file says from which step on, and why (``probe_lost``).

Not covered: attaching to a model that has already run compiled as a whole. Its cached graphs do not hold the hooks; the
first step that leaves no loop behind says so.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..lazy import no_collection
from ..loops.call import Input
from ..loops.find import find_site
from ..loops.hooks import Off, hook_before
from ..loops.neutral import looking
from ..loops.site import LoopSite, unwrap
from ..rules.rule_files import stopping_on
from ..runfile.ending import PROBE_LOST
from ..runfile.layout import Event
from ..runfile.rank_names import rank_of, rank_path
from .loop_watch import LoopWatch, tap_on
from .measure.fixed_batch import FixedBatch
from .measure.group import PATIENCE_AT_END, Together
from .measure.internals import in_transform
from .mirrors import Mirror
from .notices import Notices, log, one_line
from .numbers import Numbers, accepted, wrong_names
from .recorder import Recorder
from .row_sender import LoopPart, RowSender
from .rules_of_run import project_rules, rules_for
from .run_info import device_of, rank_and_world_size, refuse_lazy, run_info, site_info
from .schedule import Preset, find_preset
from .seeker import Reasons, Seeker, Timeline, first_line, in_words, site_or_why_not
from .stopping import Stopping


@no_collection()
def attach(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    site: LoopSite | None = None,
    preset: str | Preset = "watch",
    config: Mapping[str, Any] | None = None,
    scalars: Sequence[str] = (),
    probe_batch: Input | None = None,
    rules: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    mirrors: Sequence[Mirror] = (),
    on_alert: Callable[[Event], None] | None = None,
    stop_on: Sequence[str] = (),
) -> Probe:
    """Attach a probe to a looped model and record its training to one HDF5 file.

    Args:
        model: The model to train, bare or inside DDP or ``torch.compile`` wrappers; attach before its first call. A
            model on the meta device is watched from the step on that finds it with values.
        path: The run file; its folder is made when missing. In a process group of ``torch.distributed``, call this on
            every rank with the same path: rank N > 0 records to ``a.rankN.h5`` beside it, and `open_run` gives all
            ranks as one run.
        site: Where the loop is, for a model that does not state it.
        preset: What is measured and when: ``watch``, ``inspect`` (the full loop's Jacobian too), ``study``
            (blocks, gradients and tokens too), or a `Preset`.
        config: Anything JSON can hold that belongs to the run, for the reader of the file.
        scalars: Names of further numbers that ``probe.step`` will be given. Names of what loopscope measures are taken.
        probe_batch: Fixed input for passes at depth 2·μ_rec (8 at least), of which two sequences are used: a tensor, or
            all arguments of the model as a tuple or a mapping; default: the beginnings of the first training batch's
            first sequences. Where the loop has to be found, it is found with this input too.
        rules: A rule file that changes or extends the shipped rules, as ``loopscope check --rules`` takes it; default:
            the project's, found from the working directory up. What a rule that fires in training does are its
            ``actions``: an event in the file, a line in the log, a flight recording (`flight`), ``on_alert``.
        resume: Continue the file where there is one.
        overwrite: Replace the file where there is one.
        mirrors: What every finished row is sent on to besides (`mirrors`); rank 0's only.
        on_alert: Called with each alert of this rank, by `Probe.step` and `Probe.close` on the training's thread. Where
            it raises, that is logged, and training goes on.
        stop_on: Rules (``LS020``) and severities (``error``) that stop the training: `Probe.step` raises `LoopUnstable`
            on all ranks. Rules whose ``actions`` hold ``stop`` do so, too.

    Returns:
        The probe; a context manager that detaches and seals the file. Without ``with``, call `Probe.close` at the end:
        a process that ends without it leaves a file that reads as interrupted.

    Raises:
        LoopSiteError: The loop cannot be located.
        FileExistsError: The file is there and neither ``resume`` nor ``overwrite`` was given.
        OSError: The file cannot be written.
        RuleError: The rule file is not valid, names a series that this run lacks, or ``stop_on`` names no rule.
        ValueError: A scalar has a name that is taken, or the model has lazy modules.

    Example:
        >>> import tempfile, torch
        >>> from loopscope.models import build
        >>> model = build("demo")
        >>> folder = tempfile.TemporaryDirectory()
        >>> with attach(model, folder.name + "/a.h5") as probe:
        ...     logits = model(torch.zeros(2, 32, dtype=torch.int64), num_loops=3)
        ...     probe.step(loss=logits.logsumexp(-1).mean())
        >>> from loopscope.probes import open_run
        >>> with open_run(folder.name + "/a.h5") as run:
        ...     int(run["depth"][0]), run.loops("state_norm").shape
        (3, (1, 4))
    """
    rank, world_size = rank_and_world_size(Path(path))
    return Probe(
        model,
        rank_path(Path(path), rank),
        world_size=world_size,
        site=site,
        preset=preset,
        config=config or {},
        scalars=scalars,
        probe_batch=probe_batch,
        rules=project_rules() if rules is None else Path(rules),
        resume=resume,
        overwrite=overwrite,
        mirrors=() if rank else mirrors,
        on_alert=on_alert,
        stop_on=stop_on,
    )


class Probe:
    """A probe on one model, made by `attach`."""

    def __init__(
        self,
        model: nn.Module,
        path: Path,
        *,
        world_size: int | None,
        site: LoopSite | None,
        preset: str | Preset,
        config: Mapping[str, Any],
        scalars: Sequence[str],
        probe_batch: Input | None,
        rules: Path | None,
        resume: bool,
        overwrite: bool,
        mirrors: Sequence[Mirror],
        on_alert: Callable[[Event], None] | None,
        stop_on: Sequence[str],
    ) -> None:
        if wrong := wrong_names(scalars):
            raise ValueError(wrong)
        # before anything that takes time
        alerts = stopping_on(rules_for(path if resume else None, rules, scalars), stop_on)
        own = unwrap(model)
        refuse_lazy(own)
        given = site
        known, why_not = site_or_why_not(own, site, probe_batch)
        self._preset = find_preset(preset)
        batch = None if known is None else FixedBatch(own, known, device_of(own), probe_batch)
        if path.exists() and not (resume or overwrite):
            raise FileExistsError(f"{path} exists: pass resume=True to continue it or overwrite=True to replace it")
        path.parent.mkdir(parents=True, exist_ok=True)
        info = run_info(own, known, self._preset, config) | {"rank": rank_of(path), "world_size": world_size}
        waits = _is_without_values(own)
        # A model that said where its loop is, is not run.
        if known is not None and known.a_bar is None and known.was_found and not known.variables and not waits:
            from ..loops.least_squares import linear_estimate

            info["linear_estimate"] = linear_estimate(own, known, probe_batch)
        self._recorder = Recorder(
            path, info=info, scalars=scalars, rules=alerts, resume=resume, overwrite=overwrite, mirrors=mirrors
        )
        self._step = self._recorder.next_step
        self._probed = -1  # the last step after which the fixed batch was run
        self._closed = False
        self._call: tuple[tuple[Any, ...], dict[str, Any]] | None = None  # the one that is looked at
        self._process = os.getpid()
        self._notices = Notices(self._recorder.say)
        self._reasons = Reasons(self._notices)
        self._on_alert = on_alert
        self._stopping = Stopping(alerts, path, self._notices)
        self._sender = RowSender(self._recorder, self._notices)
        self._own, self._given = own, probe_batch
        self._together = Together(own, path, self._notices)  # tells the other ranks that this one has attached
        self._capture: Off | None = None
        self._watch: LoopWatch | None = None
        self._seeker: Seeker | None = None
        self._awaited: Callable[[], None] | None = None  # begins to watch a model that has no values yet

        def begin() -> None:
            self._capture_first(model)
            self._begin(find_site(own, given, probe_batch))

        if waits:
            self._awaited = begin
            message = "the model is on the meta device: its loop is watched from the step on that finds it with values"
            self._notices.say(self._step, "loop_awaited", message, severity="note")
        else:
            self._capture_first(model)
            if known is not None:
                self._begin(known, batch)
            else:
                self._seeker = Seeker(own, self._loop_found, self._say_waiting)
                what = "no loop of %s is known yet: the first training forward is looked at (%s)"
                log.info("loopscope: " + what, type(own).__name__, first_line(why_not))
        atexit.register(self._at_exit)

    def _capture_first(self, model: nn.Module) -> None:
        """Hear of the first training forward."""
        # On the module as given: around torch.compile and DDP wrappers this hook runs outside of any graph.
        self._capture = hook_before(model, self._first_forward)

    def _begin(self, site: LoopSite, batch: FixedBatch | None = None) -> None:
        """Begin to watch a loop."""
        own = self._own
        for note in site.notes:
            log.warning("loopscope: the loop of %s, %s: %s", type(own).__name__, site.found, note)
        batch = batch or FixedBatch(own, site, device_of(own), self._given)
        tap = tap_on(own, site, device_of(own), self._tell)
        self._watch = LoopWatch(own, site, self._preset, batch, tap, self._together, self._notices)
        self._watch.prepare(self._step, 0)

    def _begin_awaited(self) -> None:
        """Begin to watch a model that was attached without values, where it has them now."""
        if self._awaited is None or _is_without_values(self._together.model):
            return
        begin, self._awaited = self._awaited, None
        try:
            begin()
        except Exception as error:
            message = f"the loop cannot be watched, now that the model has values: {one_line(error)}"
            self._notices.say(self._step, PROBE_LOST, message, severity="error", trace=error)

    @property
    def path(self) -> Path:
        """The run file of this process."""
        return self._recorder.path

    def __repr__(self) -> str:
        return f"Probe({str(self.path)!r}, {'closed' if self._closed else 'open'}, next step {self._step})"

    def step(
        self,
        *,
        step: int | None = None,
        loss: Tensor | float | None = None,
        grad_norm: Tensor | float | None = None,
        lr: float | Sequence[float] | None = None,
        tokens: float | None = None,
        **scalars: Tensor | float | None,
    ) -> None:
        """End one training step; call it once after ``optimizer.step()``.

        What is not one real number is refused by its name, in the log and in the file, and the rest is recorded.

        Args:
            step: Number of the step that was done, from 0. Default: one more than the last. Give it when a resumed run
                starts again from a checkpoint older than the file's last row.
            loss: Training loss of the step, nats. A tensor is copied, never waited for.
            grad_norm: Gradient norm as the trainer's clipping gives it.
            lr: Learning rate of the step; of a list, as ``scheduler.get_last_lr()`` returns it, the first.
            tokens: Tokens trained on so far.
            **scalars: Further numbers. Those declared to `attach` have a place; of others, the first 16 names.

        Raises:
            LoopUnstable: A rule that stops the training has fired, on this rank or another; the recording has ended.
        """
        if self._closed or os.getpid() != self._process:
            return
        began = time.perf_counter()
        try:
            if step is not None:
                self._step = int(step)
            trainers = {"loss": loss, "grad_norm": grad_norm, "lr": lr, "tokens": tokens}
            self._end_step({**trainers, **scalars}, began)
        except Exception as error:
            self._lose_loop(error)
            message = f"step {self._step - 1} is not recorded: {one_line(error)}"
            self._notices.say(self._step - 1, "step_lost", message, trace=error)
        self._call_back()
        if (stopped := self._stopping.check(self._step - 1, self._recorder.alerts.stop)) is not None:
            self._notices.say(self._step - 1, "stopped_by_rule", str(stopped), severity="error")
            self._end(str(stopped))
            raise stopped

    def flush(self) -> bool:
        """Wait until every step so far is in the file; call it before saving a checkpoint.

        A checkpoint then never holds steps that the file lacks. Waits for the device, and ten seconds for the disk.

        Returns:
            Whether every step since the last call that returned True is in the file. Not on a full disk, say.
        """
        if self._closed or os.getpid() != self._process:
            return False
        self._deliver_all()
        return self._recorder.flush()

    def close(self, *, finished: bool = True, reason: str = "") -> None:
        """Run the fixed batch a last time, detach and seal the file; a second call changes nothing.

        Args:
            finished: Whether the run has come to its end. Otherwise the file is left as it is, reads as interrupted,
                and waits to be resumed; so it does after an exception in the ``with`` block.
            reason: Why the run has not come to its end, for whoever reads the file.
        """
        if self._watch is not None and self._process == os.getpid() and self._probed < self._step - 1:
            self._deliver_all()  # no host is ahead of its device then, or of the other ranks
            self._together.group.patience = PATIENCE_AT_END
            self._run_fixed_batch(self._step - 1, last=True)
        self._end("" if finished else reason or "probe.close(finished=False) was called")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._end(one_line(error))

    def _at_exit(self) -> None:
        """End a run that nobody closed: what became of the training is not known here."""
        error = getattr(sys, "last_value", None)  # of the last exception that nobody caught
        said = f": {one_line(error)}" if error is not None else ""
        self._end(f"the process ended without probe.close(){said}")

    def _end(self, interrupted: str) -> None:
        """Detach, wait for what is on its way, and close the file.

        Args:
            interrupted: Why the run has not come to its end; empty when it has.
        """
        if self._process != os.getpid() or self._closed:  # a forked worker owns neither the hooks nor the file
            return
        self._closed = True
        atexit.unregister(self._at_exit)
        self._detach(f"closed its probe after step {self._step - 1}")
        self._deliver_all()
        self._recorder.close(interrupted=interrupted, step=self._step - 1)
        self._call_back()

    def _call_back(self) -> None:
        """Hand alerts to whoever asked for them; what goes wrong there is no matter of the training."""
        for event in self._recorder.alerts.heard():
            if self._on_alert is not None:
                try:
                    self._on_alert(event)
                except Exception as error:
                    message = f"on_alert failed and training goes on: {one_line(error)}"
                    self._notices.say(event.step, "callback_failed", message, trace=error)

    def _end_step(self, given: Mapping[str, Any], began: float) -> None:
        """Send the row of the step, run the fixed batch where it is due, and get ready for the next step."""
        step, self._step = self._step, self._step + 1
        forwards = self._watch.tap.forwards if self._watch is not None else 0
        self._together.begin(self._preset.name, step, forwards)
        numbers = accepted(self._together.whole(given, step, forwards), step, self._notices)
        if self._preset.rows(step):
            self._send(step, numbers, began)
        self._begin_awaited()
        if self._seeker is not None:
            self._seeker.end_step()
        if self._watch is not None:
            try:
                self._watch.prepare(self._step, self._sender.waiting)
            except Exception as error:
                self._lose_loop(error)
        if self._preset.probe_batch(step):
            self._run_fixed_batch(step)
        try:
            self._sender.deliver()
        except Exception as error:
            self._lose_loop(error)

    def _send(self, step: int, numbers: Numbers, began: float) -> None:
        """Send the row of a step, without its loop where that could not be recorded."""
        part: LoopPart | None = None
        try:
            part = None if self._watch is None else self._watch.part(step)
            self._sender.send_step(step, numbers, part, began)
        except Exception as error:
            self._lose_loop(error, step)
            self._sender.send_step(step, Numbers(numbers.here) if part is not None else numbers, None, began)

    def _deliver_all(self) -> None:
        """Wait for what is on its way; what does not arrive is dropped and counted."""
        try:
            self._sender.deliver_all()
        except Exception as error:
            self._lose_loop(error)

    def _loop_found(self, site: LoopSite, timeline: Timeline | None) -> None:
        """Begin to watch a loop that training has shown, with the forward that showed it."""
        try:
            self._begin(site)
            self._recorder.learn(self._step, site_info(self._own, site))
            self._notices.say(self._step, "loop_found", in_words(site, timeline), severity="note")
            assert self._watch is not None and self._call is not None
            self._watch.take_first(*self._call, self._step)
            if timeline is not None and timeline.lost:
                message = f"the loop of the forward that showed it is not recorded: {timeline.lost}"
                self._notices.say(self._step, "state_missing", message, severity="note")
                self._watch.explained = self._step
            elif timeline is not None:
                self._watch.tap.replay(timeline.moments)
        except Exception as error:
            self._lose_loop(error)
        finally:
            self._call, self._seeker = None, None
            if self._capture is not None:
                self._capture()

    def _say_waiting(self, why: str) -> None:
        """Say that there is no loop yet."""
        self._reasons.say(self._step, why)

    def _first_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Give the first training batch to the passes at fixed depth, then take its own hook off."""
        compiling = torch.compiler.is_compiling()
        if compiling or not module.training or not torch.is_grad_enabled() or looking() or in_transform():
            return  # in a transform tensors have no memory of their own: another forward will do
        if self._seeker is not None:
            self._call = args, kwargs
            self._seeker.begin(module, args, kwargs, self._step)
            return
        if self._capture is not None:
            self._capture()
        try:
            if self._watch is not None:
                self._watch.take_first(args, kwargs, self._step)
        except Exception as error:
            self._lose_loop(error)

    def _run_fixed_batch(self, step: int, *, last: bool = False) -> None:
        """Run the fixed batch and send its rows."""
        if self._watch is None:
            return
        try:
            if (done := self._watch.pass_of_fixed_batch(step, last=last)) is not None:
                self._probed = step
                self._sender.send_pass(step, done, partial(self._watch.compare_a_bar, step, last=last))
        except Exception as error:
            self._lose_loop(error)

    def _detach(self, why: str) -> None:
        """Take the hooks off, and let ranks that would wait for this one know."""
        self._awaited = None
        if self._capture is not None:
            self._capture()
        if self._seeker is not None:
            self._seeker.stop()
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.remove()
        self._together.leave(why)

    def _tell(self, kind: str, message: str, error: Exception | None) -> None:
        """Say what the hooks noticed about the loop."""
        self._notices.say(self._step, kind, message, severity="note" if error is None else "warning", trace=error)

    def _lose_loop(self, error: Exception, step: int | None = None) -> None:
        """Let go of the loop after a failure, and say so; the numbers that training gives go on being recorded.

        Args:
            error: What failed.
            step: The first step whose loop is lost; default: the one under way.
        """
        if self._watch is None:
            return
        step = self._step if step is None else step
        self._detach(f"lost its probe in step {step}: {error!r}")
        message = f"the probe failed in step {step} and watches the loop no more: {one_line(error)}"
        self._notices.say(step, PROBE_LOST, message, severity="error", trace=error)


def _is_without_values(model: nn.Module) -> bool:
    """Return whether a model is on the meta device: it has shapes, and memory comes later (``to_empty``)."""
    return any(parameter.is_meta for parameter in model.parameters())
