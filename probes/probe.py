"""Attaching to a training run: two lines, after which every loop of every step is on disk.

    with loopscope.attach(model, "runs/a.h5") as probe:
        ...
        probe.step(loss=loss, grad_norm=norm, lr=lr)

The probe watches through hooks, keeps nothing in the model, draws no random number of the training stream and never
waits for the device. If anything in it fails, it says so once and training goes on without it.

Not covered: attaching to a model that has already run compiled. Its cached graphs do not hold the hooks; the first step
that leaves no loop behind says so.
"""

from __future__ import annotations

import atexit
import logging
import os
import platform
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..loops.call import Input
from ..loops.find import find_site
from ..loops.hooks import Hook
from ..loops.least_squares import linear_estimate
from ..loops.site import LoopSite, unwrap
from ..rules.rules import load_rules
from ..runfile.flights import FlightStep
from ..runfile.layout import TOKEN_MAP, Event
from ..runfile.rank_names import rank_of, rank_path
from .measure.fastest import reduction_for
from .measure.fixed_batch import TOKEN_STEPS, FixedBatch
from .measure.full_loop import FullLoopProbe, Measured
from .measure.group import PATIENCE_AT_END, Group, is_sharded
from .measure.inside import InsideTap
from .measure.sums import LoopSums
from .measure.tap import LoopTap
from .measure.transfer import Transfer
from .mirrors import Mirror
from .random_states import random_states
from .recorder import Record, Recorder
from .schedule import Preset, every, find_preset, matrix_interval, never

log = logging.getLogger("loopscope")

LOOP_ROWS = 2048  # rows kept per step, e.g. 16 micro-batches of 127 loops: 40 KB, 6 MB in partial sums on CUDA
STEPS_PER_NORM = 10  # ‖B̅e‖, parameter norms, σ_max(B̅) and σ_max(C_out) move slowly and cost a pass or more each
TRANSFERS_UNDER_WAY = 64  # copies from the device waiting to arrive before new ones are dropped
CALL_UNSEEN = (
    "the call that training makes was not seen, because the model is compiled as a whole, or is not called through "
    "what attach() was given"
)
MATRICES_UNDER_WAY = 64 << 20  # bytes of dense A̅ on their way to the file before one is left out


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
) -> Probe:
    """Attaches a probe to a looped model and records its training to one HDF5 file.

    Args:
        model: The model to train, bare or inside DDP or ``torch.compile`` wrappers; attach before its first call.
        path: The run file; its folder is made when missing. In a process group of ``torch.distributed``, call this on
            every rank with the same path: rank N > 0 records to ``a.rankN.h5`` beside it, and `open_run` gives all
            ranks as one run.
        site: Where the loop is, for a model that does not state it.
        preset: What is measured and when: ``watch``, ``inspect`` (the full loop's Jacobian too), ``study``
            (blocks, gradients and tokens too), or a `Preset`.
        config: Anything JSON can hold that belongs to the run, for the reader of the file.
        scalars: Names of further numbers that ``probe.step`` will be given.
        probe_batch: Fixed input for passes at depth 2·μ_rec, of which two sequences are used: a tensor, or all
            arguments of the model as a tuple or a mapping; default: the beginnings of the first training batch's
            first sequences. Where the loop has to be found, it is found with this input too.
        rules: A rule file that changes or extends the shipped rules, as ``loopscope check --rules`` takes it. A rule
            that fires in training is an event in the file, a line in the log, and a flight recording (`flight`).
        resume: Continue the file where there is one.
        overwrite: Replace the file where there is one.
        mirrors: What every finished row is sent on to besides (`mirrors`); rank 0's only.

    Returns:
        The probe; a context manager that detaches and seals the file.

    Raises:
        LoopSiteError: The loop cannot be located.
        FileExistsError: The file is there and neither ``resume`` nor ``overwrite`` was given.
        OSError: The file cannot be written.
        RuleError: The rule file is not valid.

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
    rank, world_size = _rank_and_world_size(Path(path))
    return Probe(
        model,
        rank_path(Path(path), rank),
        world_size=world_size,
        site=site,
        preset=preset,
        config=config or {},
        scalars=scalars,
        probe_batch=probe_batch,
        rules=None if rules is None else Path(rules),
        resume=resume,
        overwrite=overwrite,
        mirrors=() if rank else mirrors,
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
    ) -> None:
        self._model = unwrap(model)
        alerts = load_rules(rules)  # before anything that takes time: a rule file may be wrong
        self._site = find_site(self._model, site, probe_batch)
        for note in self._site.notes:
            log.warning("loopscope: the loop of %s, %s: %s", type(self._model).__name__, self._site.found, note)
        self._preset = find_preset(preset)
        self._device = next((p.device for p in self._model.parameters()), torch.device("cpu"))
        self._fixed_batch = FixedBatch(self._model, self._site, self._device, probe_batch)
        if path.exists() and not (resume or overwrite):
            raise FileExistsError(f"{path} exists: pass resume=True to continue it or overwrite=True to replace it")
        path.parent.mkdir(parents=True, exist_ok=True)
        info = _run_info(self._model, self._site, self._preset, config)
        info |= {"rank": rank_of(path), "world_size": world_size}
        if self._site.a_bar is None and self._site.was_found:  # a model that said where its loop is, is not run
            info["linear_estimate"] = linear_estimate(self._model, self._site, probe_batch)
        self._recorder = Recorder(
            path, info=info, scalars=scalars, rules=alerts, resume=resume, overwrite=overwrite, mirrors=mirrors
        )
        self._step = self._recorder.next_step
        self._sharded: bool | None = None  # whether there is anything that takes all ranks; known after the first step
        self._said: list[Event] = []  # what readers of the file should know, on its way with the next row
        interval = _interval(self._site)
        self._matrices_due = every(interval)
        self._norms_due = every(STEPS_PER_NORM)
        self._decompositions_due = every(max(interval, STEPS_PER_NORM))  # of B̅ and C_out
        # Its structure does not change in training, and reading it in every step would cost more than the answer.
        self._a_bar_is_cheap = self._site.a_bar is None or self._site.a_bar().ndim < 2
        self._b_bar_is_cheap = self._site.b_bar is None or self._site.b_bar().ndim < 2
        self._full_loop = FullLoopProbe(self._model, self._site)
        self._arriving: deque[tuple[Transfer, Callable[[Transfer], Record]]] = deque()
        self._sums = LoopSums(LOOP_ROWS, self._device, reduction_for(self._device))
        self._compiled_before = _graphs_compiled() > 0
        self._told_empty = self._told_no_pass = False
        self._loops_seen = False
        self._tap: LoopTap | None = LoopTap(self._model, self._site, self._sums, self._give_up)
        self._inside = self._watch_inside(self._tap)
        # On the module as given: around torch.compile and DDP wrappers this hook runs outside of any graph.
        self._capture = model.register_forward_pre_hook(Hook(self._first_forward), with_kwargs=True)
        self._linear: dict[str, Tensor] = {}
        self._random: dict[str, Any] = {}
        self._prepare(self._tap)
        self._process = os.getpid()
        self._probed = -1  # the last step the probe batch was run after
        self._group = Group(path)  # last of all: it tells the other ranks that this one has attached
        atexit.register(self._end)

    def step(
        self,
        *,
        step: int | None = None,
        loss: Tensor | float | None = None,
        grad_norm: Tensor | float | None = None,
        lr: float | None = None,
        tokens: float | None = None,
        **scalars: Tensor | float,
    ) -> None:
        """Ends one training step; call it once after ``optimizer.step()``.

        Args:
            step: Number of the step that was done, from 0. Default: one more than the last. Give it when a resumed run
                starts again from a checkpoint older than the file's last row.
            loss: Training loss of the step, nats. A tensor is copied, never waited for.
            grad_norm: Gradient norm as the trainer's clipping gives it.
            lr: Learning rate of the step.
            tokens: Tokens trained on so far.
            **scalars: Further numbers, under names declared to `attach`.
        """
        if self._tap is None or os.getpid() != self._process:
            return
        began = time.perf_counter()
        try:
            if step is not None:
                self._step = int(step)
            named: dict[str, Tensor | float | None] = {"loss": loss, "grad_norm": grad_norm, "lr": lr, "tokens": tokens}
            given = {name: v for name, v in named.items() if v is not None} | scalars
            if self._sharded is None:
                self._begin_together()
            self._end_step(self._whole(given), began)
        except Exception as error:
            self._give_up(error)

    def flush(self) -> None:
        """Waits until every step so far is in the file; call it before saving a checkpoint.

        A checkpoint then never holds steps that the file does not have, whatever kills the run. Waits for copies from
        the device, and ten seconds at most for the disk.
        """
        if self._tap is None or os.getpid() != self._process:
            return
        try:
            self._deliver_all()
            self._recorder.flush()
        except Exception as error:
            self._give_up(error)

    def close(self, *, finished: bool = True) -> None:
        """Runs the probe batch a last time, detaches and seals the file; harmless the second time.

        Args:
            finished: Whether the run has come to its end. Otherwise the file is left as it is, reads as interrupted,
                and waits to be resumed; so it does after an exception in the ``with`` block.
        """
        if self._tap is not None and self._process == os.getpid() and self._probed < self._step - 1:
            try:
                self._deliver_all()  # no host is ahead of its device then, or of the other ranks
                self._group.patience = PATIENCE_AT_END
                self._run_probe_batch(self._step - 1)
            except Exception as error:
                self._give_up(error)
        self._end(finished)

    def _end(self, finished: bool = True) -> None:
        """Detaches, waits for what is on its way, and closes the file."""
        if self._process != os.getpid():  # a forked data-loader worker owns neither the hooks nor the file
            return
        atexit.unregister(self._end)
        self._detach(f"closed its probe after step {self._step - 1}")
        self._deliver_all()
        self._recorder.close(seal=finished)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._end(finished=False)

    def _end_step(self, numbers: dict[str, Tensor | float], began: float) -> None:
        step, tap = self._step, self._tap
        assert tap is not None
        self._step += 1
        if self._preset.rows(step):
            due = self._preset.full_loop(step)
            measured = self._full_loop.measure(self._fixed_batch.call, step) if due else Measured()
            self._send_row(step, {**numbers, **measured.values}, measured, began)
        self._prepare(tap)
        if self._preset.probe_batch(step):
            self._run_probe_batch(step)
            if self._fixed_batch.call is None and self._loops_seen:
                self._say_no_pass(step, CALL_UNSEEN)
        self._deliver()

    def _prepare(self, tap: LoopTap) -> None:
        """Makes ready for the next step: what is due in it, and its linear part as its forward will use it."""
        self._sums.reset()
        tap.enabled = self._preset.rows(self._step)
        tap.injects = self._b_bar_is_cheap or self._norms_due(self._step)
        if self._inside is not None:
            self._inside.enable(tap.enabled and self._preset.inside(self._step))
        self._linear = self._read_linear() if tap.enabled else {}
        self._random = random_states() if tap.enabled else {}

    def _watch_inside(self, tap: LoopTap) -> InsideTap | None:
        """The tap of blocks and gradients, for a preset that ever asks for it; hooks that never do are a cost."""
        if self._preset.inside is never:
            return None
        return InsideTap(self._site, tap, self._device)

    def _send_row(self, step: int, numbers: dict[str, Tensor | float], measured: Measured, began: float) -> None:
        """Starts the copies of a step and notes how to make its record of them."""
        assert self._tap is not None
        watched = self._tap.enabled
        tensors = {name: v for name, v in numbers.items() if isinstance(v, Tensor) and v.device.type != "cpu"}
        here = {
            name: float(v.detach() if isinstance(v, Tensor) else v)
            for name, v in numbers.items()
            if name not in tensors
        }
        now, events = time.time(), (*self._said, *([measured.event] if measured.event else []))
        self._said.clear()
        spectrum = self._preset.spectrum(step) and (self._a_bar_is_cheap or self._matrices_due(step))
        inside = self._inside if self._inside is not None and self._preset.inside(step) else None
        counts, cut = self._sums.counts, self._sums.rows_cut
        if watched and not len(counts):
            self._say_empty(step)
        self._loops_seen |= len(counts) > 0
        inner, random = None if inside is None else inside.counts, self._random
        transfer = Transfer(
            {f"value.{name}": value for name, value in tensors.items()}
            | {f"matrix.{name}": matrix for name, matrix in self._linear.items()}
            | self._sums.device_rows()
            | ({} if inside is None else inside.device_rows())
            | ({"norms": _parameter_norms(self._model)} if watched and self._norms_due(step) else {})
        )

        def record(arrived: Transfer) -> Record:
            found = arrived.arrays()
            values = here | {name: float(found[f"value.{name}"]) for name in tensors} | {"probe_seconds": spent}
            return Record(
                step,
                now,
                values,
                found["sums"],
                counts,
                matrices={name.removeprefix("matrix."): a for name, a in found.items() if name.startswith("matrix.")},
                spectrum=spectrum,
                arrays=measured.arrays | ({} if inner is None else inner.norms(found["inside"], found["gradients"])),
                flight=FlightStep(found.get("norms"), found["batches"], random),
                rows_cut=cut,
                events=events,
            )

        spent = time.perf_counter() - began
        self._queue(transfer, record)

    def _say_empty(self, step: int) -> None:
        """Says, once, why a step may have left no loop behind."""
        if self._told_empty:
            return
        self._told_empty = True
        if not self._model.training:
            why = "the model is in evaluation mode; call model.train() before the forward"
        elif self._compiled_before:
            why = (
                "attached after the first compiled call, it seems, and graphs that exist do not hold the hooks; "
                "call torch._dynamo.reset() now, or attach before the first call"
            )
        else:
            why = f"no forward of this model ran since the last step, or it did not call {self._site.body!r}"
        log.warning("loopscope: step %d recorded no loop: %s", step, why)

    def _queue(self, transfer: Transfer, record: Callable[[Transfer], Record]) -> None:
        if len(self._arriving) >= TRANSFERS_UNDER_WAY:
            self._recorder.dropped += 1
        else:
            self._arriving.append((transfer, record))

    def _deliver(self) -> None:
        """Hands over what has arrived, in order."""
        while self._arriving and self._arriving[0][0].ready():
            transfer, record = self._arriving.popleft()
            self._recorder.put(record(transfer))

    def _deliver_all(self) -> None:
        """Waits for what is under way and hands it over."""
        while self._arriving:
            self._arriving[0][0].wait()
            self._deliver()

    @torch.no_grad()
    def _read_linear(self) -> dict[str, Tensor]:
        """A̅, B̅ and C_out as the next step's forward will use them; B̅ and C_out every tenth step at most.

        A dense A̅ is copied to the host in every step (1024 wide: 4 MB, about 0.2 ms of the stream on CUDA, a few
        milliseconds on the CPU) and tracked there by the recorder's thread. Tracking on the device would cost the
        training thread some hundred small kernels and a wait for each. Where the recorder is behind, or the matrix is
        sharded and each reading a collective, A̅ is read when it is due only.
        """
        a_bar_due = self._matrices_due(self._step) or self._a_bar_is_affordable()
        due = {"a_bar": a_bar_due, **dict.fromkeys(("b_bar", "c_out"), self._decompositions_due(self._step))}
        reads = {name: read for name in due if due[name] and (read := getattr(self._site, name)) is not None}
        if self._sharded and reads and not self._agree(f"read {', '.join(reads)}"):
            return {}
        found = {name: _gathered(read()) if self._sharded else read() for name, read in reads.items()}
        # A probe that was attached to sharded parameters cannot read them before the first step.
        here = {name: matrix for name, matrix in found.items() if not hasattr(matrix, "full_tensor")}
        return {name: matrix.detach().float().clone() for name, matrix in here.items()}

    def _whole(self, numbers: Mapping[str, Tensor | float]) -> dict[str, Tensor | float]:
        """Numbers with sharded ones (a gradient norm under FSDP2) made whole, or left out where ranks are apart."""
        sharded = sorted(name for name, number in numbers.items() if hasattr(number, "full_tensor"))
        if not sharded or self._agree(f"read {', '.join(sharded)}"):
            return {name: _gathered(number) for name, number in numbers.items()}
        return {name: number for name, number in numbers.items() if name not in sharded}

    def _begin_together(self) -> None:
        """Lets ranks that differ from the start find out now, not when something is due on one of them only."""
        self._sharded = is_sharded(self._model)
        if self._sharded:
            self._agree(f"begin with preset {self._preset.name!r}")

    def _agree(self, what: str) -> bool:
        """Whether to do now what takes all ranks where parameters are sharded; why not any more is said once."""
        if not self._sharded or self._group.apart or self._tap is None:
            return self._sharded is False
        if self._group.agree(f"{what} (step {self._step}, forward {self._tap.forwards})"):
            return True
        message = f"neither sharded A̅ nor the fixed batch is measured any more: {self._group.apart}"
        log.warning("loopscope: %s", message)
        self._said.append(Event(self._step, time.time(), "ranks_apart", "warning", message=message))
        return False

    def _a_bar_is_affordable(self) -> bool:
        """Whether A̅ can be read between the steps in which it is due."""
        if self._a_bar_is_cheap or self._site.a_bar is None:
            return True
        if self._sharded:
            return False
        under_way = (len(self._arriving) + self._recorder.waiting) * self._site.a_bar().numel() * 4
        return under_way < MATRICES_UNDER_WAY

    def _first_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keeps the first training batch for the passes at fixed depth, then takes its own hook off.

        Weights may have been loaded and seeds set since attaching, so what the first step begins with is read again.
        """
        if not module.training or torch.compiler.is_compiling():
            return
        self._capture.remove()
        try:
            self._linear, self._random = self._read_linear(), random_states()
            self._fixed_batch.take(args, kwargs)
        except Exception as error:
            self._give_up(error)

    def _run_probe_batch(self, step: int) -> None:
        """Runs the fixed batch and sends its rows; where a forward takes all ranks, if they agree to."""
        if self._tap is None or self._sharded is None:
            return
        together = partial(self._agree, "run the fixed batch") if self._sharded else None
        found = self._fixed_batch.run(self._tap, token_steps=self._preset.token_map(step), together=together)
        if found is None:
            self._say_no_pass(step, self._fixed_batch.failed)
            return
        self._probed, now = step, time.time()

        def record(arrived: Transfer) -> Record:
            rows = arrived.arrays()
            maps = {TOKEN_MAP: rows[TOKEN_STEPS]} if TOKEN_STEPS in rows else {}
            return Record(
                step, now, sums=rows["sums"], counts=found.counts, arrays=maps, is_probe=True, rows_cut=found.rows_cut
            )

        self._queue(Transfer(found.rows), record)

    def _say_no_pass(self, step: int, why: str) -> None:
        """Says, once, why the fixed batch is not run, if there is a reason; everything else goes on."""
        if not why or self._told_no_pass:
            return
        self._told_no_pass = True
        message = (
            f"the fixed batch is not run in this run: {why}; give attach() a probe_batch that the model accepts: "
            "a tensor, a tuple of arguments, or a mapping of them by name"
        )
        log.warning("loopscope: %s", message)
        self._said.append(Event(step, time.time(), "fixed_batch", "warning", message=message))
        if self._sharded:
            self._group.leave(f"cannot run the fixed batch: {why}")

    def _detach(self, why: str) -> None:
        """Takes the hooks off, and lets ranks that would wait for this one know."""
        self._capture.remove()
        if self._tap is not None:
            self._tap.remove()
            self._tap = None
        if self._sharded is not False:
            self._group.leave(why)

    def _give_up(self, error: Exception) -> None:
        """Says once that the probe failed and leaves training alone from then on."""
        if self._tap is not None:
            log.error("loopscope: the probe failed and is off, training goes on: %r", error, exc_info=error)
        self._detach(f"lost its probe in step {self._step}: {error!r}")


def _gathered(value: Any) -> Any:
    """The full tensor of a sharded one, which takes all ranks; anything else as it is."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


@torch.no_grad()
def _parameter_norms(model: nn.Module) -> Tensor:
    """‖p‖₂ of every parameter ``(P,)``; of a sharded one, of this rank's shard, which takes no collective."""
    own = [p.to_local() if hasattr(p, "to_local") else p.detach() for p in _with_norm(model).values()]
    norms = torch._foreach_norm(own) if own else []
    return torch.stack([norm.float().to(norms[0].device) for norm in norms]) if own else torch.empty(0)


def _with_norm(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that have a norm: quantised ones have none."""
    kinds = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    return {name: p for name, p in model.named_parameters() if p.dtype in kinds}


def _graphs_compiled() -> int:
    """How many frames Dynamo has compiled in this process."""
    from torch._dynamo.utils import counters

    return int(counters["frames"]["ok"])


def _interval(site: LoopSite) -> int:
    """Steps between exact spectra of this loop's matrices."""
    for read in (site.a_bar, site.b_bar, site.c_out):
        if read is not None and read().ndim:
            return matrix_interval(read().shape[0])
    return 1


def _rank_and_world_size(path: Path) -> tuple[int, int | None]:
    """This process among those of ``torch.distributed``; without it, the rank that the path names and no number."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return rank_of(path), None


def _run_info(model: nn.Module, site: LoopSite, preset: Preset, config: Mapping[str, Any]) -> dict[str, Any]:
    """What is true of the whole run."""
    a_bar = site.a_bar() if site.a_bar is not None else None
    structure = {0: "scaled identity", 1: "diagonal", 2: "dense"}
    return {
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameter_names": list(_with_norm(model)),
        "site": site.describe(),
        "a_bar_structure": None if a_bar is None else structure[a_bar.ndim],
        # A fixed A̅ is marginal (or not) by design; only a learned one can become unstable in training.
        "a_bar_learned": None if a_bar is None else a_bar.requires_grad,
        "preset": preset.name,
        "config": dict(config),
        "command": sys.argv,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(next((p.device for p in model.parameters()), "cpu")),
        "host": platform.node(),
        "started": time.time(),
    }
