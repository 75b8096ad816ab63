"""What is measured of the loop: everything of a probe that can be lost while the training's own numbers go on.

A `LoopWatch` holds the hooks and all that hangs on them: the sums of the states, the matrices, the blocks inside, the
fixed batch and the full loop. It raises what goes wrong; the probe then lets go of it as a whole.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..loops.injection import EXACT, verified
from ..loops.site import BY_HAND, LoopSite
from ..runfile.layout import EVALUATED
from .measure.acting_in_training import SeenInTraining
from .measure.evaluations import said_of_evaluation
from .measure.fastest import reduction_for
from .measure.fixed_batch import FixedBatch, Pass
from .measure.group import Together
from .measure.inside import InsideTap
from .measure.internals import graphs_compiled
from .measure.matrices import STEPS_PER_NORM, MatrixReader
from .measure.sums import LoopSums
from .measure.tap import LoopTap, Report
from .measure.variable_tap import VariableTap
from .notices import Notices
from .random_states import RandomReader
from .row_sender import LoopPart
from .run_info import parameter_norms
from .schedule import Preset, every, never

if TYPE_CHECKING:
    from .measure.full_loop import FullLoopProbe

LOOP_ROWS: Final = 2048  # rows kept per step, e.g. 16 micro-batches of 127 loops: 40 KB, 6 MB in partial sums on CUDA
CALL_UNSEEN: Final = (
    "the call that training makes was not seen, because it is made inside of a compiled graph, or not through what "
    "attach() was given"
)


class LoopWatch:
    """Watches the loop of one model.

    Args:
        model: The user's module, unwrapped.
        site: Where its loop is.
        preset: What is measured and when.
        batch: The fixed batch.
        tap: The hooks.
        together: What asks the other ranks.
        notices: Takes messages.
    """

    def __init__(
        self,
        model: nn.Module,
        site: LoopSite,
        preset: Preset,
        batch: FixedBatch,
        tap: LoopTap,
        together: Together,
        notices: Notices,
    ) -> None:
        self.tap, self.batch = tap, batch
        self._model, self._site, self._preset = model, site, preset
        self._together, self._notices = together, notices
        self._reader = MatrixReader(site, together)
        self._full_loop = None if preset.full_loop is never else _full_loop_probe(model, site)
        # Hooks inside that never measure are a cost.
        self._inside = None if preset.inside is never else InsideTap(site, tap, tap.sums.device)
        self._norms_due = every(STEPS_PER_NORM)
        self._matrices: dict[Any, Tensor] = {}
        self._generators = RandomReader()
        self._random: dict[str, NDArray[Any]] = {}
        self._agreed_at: int | None = None  # the last step after which the injection was seen to act like A̅
        self._compare_due = False  # with A̅, in training: no pass has done so since that was due
        self._in_training: SeenInTraining | None = None  # while the step under way is looked at
        self._distrusted = False  # A̅ of sharded parameters that the injection does not act like
        self._compiled_before = graphs_compiled() > 0
        self._forwards = 0  # of the model, when the last step ended
        self._loops_seen = False
        self._step = 0  # the one that is under way
        self.explained: int | None = None  # a step without loops whose reason the log tells

    def remove(self) -> None:
        """Take all hooks off the model, and say what no row comes for any more."""
        self.tap.remove()
        seen = self.tap.evaluations.take()
        if "eval_depth" in seen:
            said, most = said_of_evaluation(seen), seen["eval_depth_max"]
            self._notices.say(max(0, self._step - 1), EVALUATED, said, severity="note", value=most)
        if self._in_training is not None:
            self._in_training.end()

    def prepare(self, step: int, records_waiting: int) -> None:
        """Make ready for a step: what is due in it, and its linear part as its forward will use it."""
        self._step = step
        self.tap.sums.reset()
        self._follow(step)
        self.tap.enabled = self._preset.rows(step)
        self.tap.injects = self._reader.injection_due(step)
        if self._inside is not None:
            self._inside.enable(self.tap.enabled and self._preset.inside(step))
        self._matrices, self._random = {}, {}
        if self.tap.enabled:
            self._read(step, records_waiting)
            if self._compare_due and "a_bar" in self._matrices and not self.tap.compiled:
                spread = self._matrices["a_bar"] if self._together.sharded else None
                self._in_training = SeenInTraining(self._model, self._site, spread)
                self._in_training.begin()

    def _follow(self, step: int) -> None:
        """Go on with the modules that training has put in the place of those that were watched."""
        if roles := self.tap.follow():
            names = self._site.modules
            changed = [repr(names[role]) for role in roles]
            had, what = self._site.a_bar is not None, ""
            if had and not self._is_by_hand_alone() and not self._together.sharded:
                self._use(self._verified_again())
            if had:
                what = (
                    ", and its A̅ is measured"
                    if self._site.a_bar is not None
                    else "; A̅ is missing, for it acts like none"
                )
            message = f"{', '.join(changed)} is another module now: it is watched instead{what}"
            self._notices.say(step, "module_exchanged", message, cause=tuple(changed))

    def take_first(self, args: tuple[Any, ...], kwargs: dict[str, Any], step: int) -> None:
        """Take the first training batch for the passes at fixed depth.

        Weights may have been loaded and seeds set since attaching, so what the first step begins with is read again.
        """
        self._read(step, 0)
        self.batch.take(args, kwargs)

    def part(self, step: int) -> LoopPart:
        """Return what was seen of the loop in the step that ends now."""
        sums, inside = self.tap.sums, self._inside
        full_loop = None
        if self._full_loop is not None and self._preset.full_loop(step):
            full_loop = self._full_loop.measure(self.batch.call, step)
            self._notices.pass_on(full_loop.event)
        if self.tap.enabled and not len(sums.counts) and step != self.explained:
            self._say_empty(step)
        self._forwards, self.tap.missed = self.tap.forwards, False
        self._loops_seen |= len(sums.counts) > 0
        rows = sums.device_rows()
        inner = inside.device_rows() if inside is not None and self._preset.inside(step) else None
        return LoopPart(
            sums=rows["sums"],
            counts=sums.counts,
            rows_cut=sums.rows_cut,
            batches=rows["batches"],
            matrices=self._matrices,
            spectrum=self._preset.spectrum(step) and self._reader.spectrum_due(step),
            norms=parameter_norms(self._model) if self.tap.enabled and self._norms_due(step) else None,
            inside=None if inner is None else (inner["inside"], inner["gradients"]),
            inside_counts=None if inner is None or inside is None else inside.counts,
            random=self._random,
            values=self.tap.evaluations.take()
            | self.tap.backward.take()
            | ({} if full_loop is None else full_loop.values),
            arrays={} if full_loop is None else full_loop.arrays,
            variables=self.tap.variables.part() if isinstance(self.tap, VariableTap) and self.tap.enabled else (),
            disagreement=self._seen_in_training(step),
            learn=partial(self.compare_a_bar, step),
        )

    def _seen_in_training(self, step: int) -> Tensor | None:
        """Return how far the injection was from A̅ in the step that ends, where that was looked at."""
        seen, self._in_training = self._in_training, None
        if seen is None:
            return None
        seen.end()
        apart = seen.disagreement()
        self._compare_due = apart is None
        if seen.why_not:
            self._say_unchecked(step, seen.why_not)
        return apart

    def pass_of_fixed_batch(self, step: int, *, last: bool) -> Pass | None:
        """Run the fixed batch after a step and return its rows; where a forward takes all ranks, if they agree to.

        Args:
            step: The step that is over.
            last: Whether it is the run's last step: then no message explains how to get a pass.
        """
        self._compare_due = self._site.a_bar is not None
        if self._together.sharded is None:
            return None

        def agree() -> bool:
            return self._together.agree("run the fixed batch", step, self.tap.forwards)

        done = self.batch.run(
            self.tap,
            token_steps=self._preset.token_map(step),
            together=agree if self._together.sharded else None,
        )
        self._site = self.batch.site  # the first pass may have shown what sets the depth
        if done is None and self.batch.failed:
            self._say_no_pass(step, self.batch.failed)
        elif done is None and self.batch.unsteady:
            message = f"the fixed batch is not run: {self.batch.shallow}, and {self.batch.unsteady}"
            self._notices.say(step, "fixed_batch", message, severity="note", cause="unsteady")
        elif done is not None and self.batch.shallow:
            message = f"the fixed batch runs as deep as training does and no deeper: {self.batch.shallow}"
            self._notices.say(step, "fixed_batch", message, severity="note")
        elif done is not None and self.batch.shown:
            message = f"the fixed batch runs {self.batch.depth} loops: {self.batch.shown!r} sets the depth"
            self._notices.say(step, "fixed_batch", message, severity="note")
        elif self.batch.call is None and self._loops_seen and not last:
            self._say_no_pass(step, CALL_UNSEEN)
        if done is not None and done.disagreement is not None:
            self._compare_due = False
        elif self._compare_due and self.tap.compiled:
            self._say_unchecked(step, "no pass of the fixed batch shows it, and the model is compiled")
        return done

    def compare_a_bar(self, step: int, disagreement: float, *, last: bool = False) -> None:
        """Take note of whether the injection acted like A̅ in the pass after a step, or in its forward.

        Where it did not, A̅ is measured from what the module does, or is missing where that is no matrix.

        Args:
            step: The step.
            disagreement: In units of what rounding explains (`SeenInjection`, `SeenInTraining`).
            last: Whether the run is over.
        """
        if disagreement <= 1:
            self._agreed_at = step
        elif math.isnan(disagreement):
            self._say_unchecked(step, "its calls in one forward differ in more than the state, or are not finite")
        if not disagreement > 1 or self._site.a_bar is None:
            return
        body = repr(self._site.body)
        if self._is_by_hand_alone():
            message = f"{body} does not act like the A̅ given by hand, which is recorded all the same"
            self._notices.say(step, "a_bar_differs", message)
            return
        if self._together.sharded:  # nothing can be called without the other ranks, and they read A̅ together
            if not self._distrusted:
                message = f"{body} does not act like A̅ in the forward of step {step}; A̅ is missing from here on"
                self._notices.say(step, "a_bar_differs", message)
            self._distrusted = True
            return
        recorded, site = self._site, self._verified_again()
        if site.a_bar is not None and _same_matrix(site, recorded):  # in the loop it acts otherwise than by itself
            site = replace(site, a_bar=None, b_bar=None)
        since = "before it was first compared" if self._agreed_at is None else f"after step {self._agreed_at}"
        what = "is missing" if site.a_bar is None else "is measured from what it does"
        message = f"{body} does not act like the recorded A̅ since a step {since}; from step {step + 1} on A̅ {what}"
        self._notices.say(step, "a_bar_differs", message, cause=step)
        self._use(site)
        if not last:
            self._matrices = dict(self._reader.read(step + 1, 0, self.tap.forwards))

    def _is_by_hand_alone(self) -> bool:
        """Return whether a user answers for A̅, and the injection was never seen to act like it."""
        return self._site.found == BY_HAND and self._agreed_at is None

    def _verified_again(self) -> LoopSite:
        """Return the site with the A̅ that the injection acts like now; without one where there is none."""
        site = replace(verified(self._model, replace(self._site, found="")), found=self._site.found)
        try:
            with torch.no_grad():
                _ = None if site.a_bar is None else site.a_bar()
        except Exception:  # what it was read from is gone
            return replace(site, a_bar=None, b_bar=None)
        return site

    def _use(self, site: LoopSite) -> None:
        """Go on with what is known of the loop's matrices now."""
        self._site = self.batch.site = site
        self._reader.use(site)
        self.tap.use(site)

    def _read(self, step: int, records_waiting: int) -> None:
        """Read what the next forward begins with."""
        self._matrices = dict(self._reader.read(step, records_waiting, self.tap.forwards))
        if self._distrusted:
            self._matrices.pop("a_bar", None)
        self._random = self._generators.read()

    def _say_empty(self, step: int) -> None:
        """Say why a step may have left no loop behind."""
        site, begun = self._site, self.tap.forwards > self._forwards
        names = [v.output or v.name for v in site.variables] or [site.output or site.body]
        place = ", ".join(repr(name) for name in dict.fromkeys(names))
        if not self._model.training:
            why = "the model is in evaluation mode; call model.train() before the forward"
        elif self.tap.missed:
            why = "the states of its loop could not be read: an earlier message names the error"
        elif self._compiled_before:
            why = (
                "attached after the first compiled call, it seems, and graphs that exist do not hold the hooks; "
                "call torch._dynamo.reset() now, or attach before the first call"
            )
        elif begun:
            why = f"the forward of this model did not come to {place}, or not where that can be seen"
        else:
            why = "no forward of this model ran since the last step"
        self._notices.say(step, "no_loop", f"step {step} recorded no loop: {why}")

    def _say_unchecked(self, step: int, why: str) -> None:
        """Say that A̅ is recorded without having been compared with what the injection does."""
        message = f"what {self._site.body!r} does in step {step} could not be compared with the recorded A̅: {why}"
        self._notices.say(step, "a_bar_unchecked", message, severity="note", cause=why)

    def _say_no_pass(self, step: int, why: str) -> None:
        """Say why the fixed batch is not run; everything else goes on."""
        message = (
            f"the fixed batch is not run in this run: {why}; give attach() a probe_batch that the model accepts: "
            "a tensor, a tuple of arguments, or a mapping of them by name"
        )
        self._notices.say(step, "fixed_batch", message)
        if self._together.sharded:
            self._together.leave(f"cannot run the fixed batch: {why}")


def sums_on(device: torch.device) -> LoopSums:
    """Return the sums of a step's forwards, empty."""
    return LoopSums(LOOP_ROWS, device, reduction_for(device))


def tap_on(model: nn.Module, site: LoopSite, device: torch.device, report: Report) -> LoopTap:
    """Return the hooks that fit a site, with sums where the model computes."""
    if site.variables:
        return VariableTap(model, site, lambda: sums_on(device), report)
    return LoopTap(model, site, sums_on(device), report)


@torch.no_grad()
def _same_matrix(one: LoopSite, other: LoopSite) -> bool:
    """Return whether the A̅ of two sites is the same now, but for rounding."""
    if one.a_bar is None or other.a_bar is None:
        return one.a_bar is other.a_bar
    a, b = one.a_bar().float(), other.a_bar().float()
    return a.shape == b.shape and bool((a - b).norm() <= EXACT * (a.norm() + b.norm()))


def _full_loop_probe(model: nn.Module, site: LoopSite) -> FullLoopProbe:
    """Return what measures the full loop; its mathematics is loaded for presets that use it."""
    from .measure.full_loop import FullLoopProbe

    return FullLoopProbe(model, site)
