"""The promise that a probe changes nothing, checked on the user's own model, machine and way of training.

Runs the same few training steps three times from the same seed: without a probe, with one that runs the fixed batch
again and again, and (in eager mode, with hooks that count) a third time to know how many loops there were. What the two
models hold afterwards is compared: parameters, buffers, everything in Python, random states. Then times steps with and
without the probe in turns.

Not covered: several processes (run it on one), optimizers other than AdamW, and the cost of the `inspect` and `study`
presets. The check resets Dynamo, so it belongs in a process of its own or before training.
"""

from __future__ import annotations

import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..loops.find import find_site
from ..loops.hooks import LoopHooks
from ..loops.same_state import differences
from ..loops.site import LoopSite, argument, unwrap
from ..runfile.open import open_run
from .probe import Probe, attach
from .random_states import random_states
from .schedule import Preset, every

NORM_TOLERANCE = 1e-5  # float32 sums against float64 ones, over up to 10⁵ tokens
LOOKS_EVERY = 2  # compared steps between two passes of the fixed batch


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """What a self-check found.

    Args:
        steps: Training steps compared.
        compiled: Whether Dynamo compiled anything; losses and parameters need not be equal bit by bit then.
        same_losses: Losses of all steps are bitwise equal with and without the probe.
        same_parameters: So are the parameters after the last step.
        same_random: So are the random states of torch, CUDA, numpy and Python after the last step.
        differing: Names of what else the models hold that differs: buffers, attributes, lists, counters, generators.
        looks: Passes of the fixed batch that were run beside the compared steps.
        difference: Largest relative difference of a loss, or of the whole parameter vector in Euclidean norm.
        tolerance: Largest ``difference`` that passes when compiled.
        loops_run: Loops counted, the deepest forward of each step, summed over steps.
        loops_recorded: The same from the run file.
        norm_error: Largest relative difference of a recorded state norm from a direct computation; NaN where the
            states are not received by a module.
        graph_breaks: Graph breaks without and with the probe.
        graphs: Graphs compiled without and with the probe.
        step_seconds: Median step without the probe, seconds.
        overhead: Median over pairs of steps of (time with) / (time without) - 1; NaN where a timed step recorded
            no loop.
        overhead_quartiles: Lower and upper quartile of the same.
    """

    steps: int
    compiled: bool
    same_losses: bool
    same_parameters: bool
    same_random: bool
    differing: tuple[str, ...]
    looks: int
    difference: float
    tolerance: float
    loops_run: int
    loops_recorded: int
    norm_error: float
    graph_breaks: tuple[int, int]
    graphs: tuple[int, int]
    step_seconds: float
    overhead: float
    overhead_quartiles: tuple[float, float]

    @property
    def problems(self) -> list[str]:
        """What a user should know before trusting the probe here, in sentences; empty when all is well."""
        limit = self.tolerance if self.compiled else 0.0
        equal = self.same_losses and self.same_parameters
        sentences = {
            f"training differs by {self.difference:.1e} with the probe": not equal and not self.difference <= limit,
            "the random state differs with the probe": not self.same_random,
            f"the model is left with another {', '.join(self.differing[:5])} with the probe": bool(self.differing),
            f"{self.loops_recorded} loops recorded where {self.loops_run} ran": self.loops_recorded != self.loops_run,
            f"recorded norms are off by {self.norm_error:.1e}": self.norm_error > max(limit, NORM_TOLERANCE),
            f"the probe adds {self.graph_breaks[1] - self.graph_breaks[0]} graph breaks": self.graph_breaks[1]
            > self.graph_breaks[0],
        }
        return [sentence for sentence, wrong in sentences.items() if wrong]

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong. The overhead is shown, not judged: on a busy machine it says little."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; NaN becomes None."""
        values = asdict(self) | {"passed": self.passed, "problems": self.problems}
        values["overhead_quartiles"] = [None if math.isnan(v) else v for v in self.overhead_quartiles]
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}

    def text(self) -> str:
        """Return the result for a person."""
        same = "the same, bit for bit"
        training = same if self.same_losses and self.same_parameters else f"differs by {self.difference:.1e} at most"
        norms = "" if math.isnan(self.norm_error) else f", norms within {self.norm_error:.0e} of a direct computation"
        low, high = self.overhead_quartiles
        lines = [
            f"losses and parameters after {self.steps} steps: {training}",
            f"random states: {same if self.same_random else 'different'}",
            f"buffers and all that the model holds in Python, {self.looks} looks at it in between: "
            f"{', '.join(self.differing) + ' differ' if self.differing else same}",
            f"loops: {self.loops_recorded} recorded, {self.loops_run} ran{norms}",
            "overhead: not measured, for a timed step recorded no loop"
            if math.isnan(self.overhead)
            else f"overhead: {self.overhead:+.1%} of a step of {1e3 * self.step_seconds:.1f} ms "
            f"(middle half of the pairs {low:+.1%} to {high:+.1%})",
        ]
        if self.compiled:
            breaks, graphs = self.graph_breaks, self.graphs
            lines.insert(
                3, f"graph breaks: {breaks[1]} (without {breaks[0]}); graphs: {graphs[1]} (without {graphs[0]})"
            )
        verdict = "PASS" if self.passed else "FAIL: " + "; ".join(self.problems)
        return "\n".join([*lines, verdict])


def selfcheck(
    make_model: Callable[[], nn.Module],
    make_batch: Callable[[int], Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    site: LoopSite | None = None,
    steps: int = 6,
    timed: int = 20,
    tolerance: float = 1e-3,
) -> SelfCheck:
    """Check whether the probe leaves training as it is here and records every loop, and what it costs.

    Costs ``3 * steps + 2 * timed`` training steps and, where the model is compiled, three compilations.

    Args:
        make_model: Returns a new model on its device, as it is trained: wrapped in ``torch.compile`` or not. Called
            three times under the same seed.
        make_batch: The batch of a step, the same at every call.
        loss: Runs the forward (or several) and returns the loss to differentiate; autocast belongs here.
        site: Where the loop is, for a model whose loop is not found.
        steps: Training steps compared.
        timed: Pairs of steps timed.
        tolerance: Relative difference that passes when something is compiled. A reader of the state in a graph may
            change how operations are fused and rounded (2^-24 each in float32), and steps of training amplify that.

    Returns:
        What was found; ``passed`` is the verdict.

    Raises:
        LoopSiteError: The loop cannot be located.
        ValueError: ``steps`` or ``timed`` is below 1.

    Example:
        >>> from loopscope.models import build
        >>> result = selfcheck(
        ...     lambda: build("demo"),
        ...     lambda step: torch.full((2, 8), step),
        ...     lambda model, tokens: model(tokens).logsumexp(-1).mean(),
        ...     steps=2, timed=1,
        ... )
        >>> result.same_losses, result.same_parameters, result.loops_recorded == result.loops_run, result.passed
        (True, True, True, True)
    """
    if min(steps, timed) < 1:
        raise ValueError(f"steps and timed: expected at least 1, found {steps} and {timed}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "selfcheck.h5"
        torch._dynamo.reset()
        plain = _Training(make_model, make_batch, loss)
        plain.run(steps)
        torch._dynamo.reset()
        watched = _Training(make_model, make_batch, loss)
        looks = Preset(
            "selfcheck",
            rows=every(1),
            spectrum=every(10),
            probe_batch=lambda step: step < steps and every(LOOKS_EVERY)(step),
        )
        watched.probe = attach(watched.model, path, site=site, preset=looks)
        watched.run(steps)
        compiled = plain.graphs > 0
        differing = differences(unwrap(plain.model), unwrap(watched.model), tolerance=tolerance if compiled else 0.0)
        seconds = _time_in_turns(plain, watched, steps, timed)
        watched.probe.close()
        counted = _count_loops(make_model, make_batch, loss, site, steps)
        with open_run(path) as run:
            depth, norms = run["depth_max"][:steps], run.loops("state_norm", rows=slice(0, steps))
            passes = len(run.probe_steps[run.probe_steps < steps])
            was_watched = bool(np.isfinite(run["depth_max"][steps:]).all())
    ratios = [b / a - 1 if was_watched else math.nan for a, b in seconds]
    quartiles = np.quantile(ratios, [0.25, 0.75])
    return SelfCheck(
        steps=steps,
        compiled=compiled,
        same_losses=torch.equal(plain.losses, watched.losses),
        same_parameters=all(torch.equal(a, b) for a, b in zip(plain.after, watched.after, strict=True)),
        same_random=plain.random == watched.random,
        differing=tuple(name for name in differing if name not in plain.names),
        looks=passes,
        difference=_difference(plain, watched),
        tolerance=tolerance,
        loops_run=sum(len(of_step) for of_step in counted),
        loops_recorded=int(np.nan_to_num(depth).sum()),
        norm_error=_norm_error(counted, norms),
        graph_breaks=(plain.breaks, watched.breaks),
        graphs=(plain.graphs, watched.graphs),
        step_seconds=statistics.median(a for a, _ in seconds),
        overhead=statistics.median(ratios),
        overhead_quartiles=(float(quartiles[0]), float(quartiles[1])),
    )


class _Training:
    """One model in training, and what it left behind after the compared steps."""

    def __init__(
        self,
        make_model: Callable[[], nn.Module],
        make_batch: Callable[[int], Any],
        loss: Callable[[nn.Module, Any], Tensor],
    ) -> None:
        _seed(0)
        self.model = make_model().train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.probe: Probe | None = None
        self._make_batch, self._loss = make_batch, loss

    def step(self, step: int) -> Tensor:
        """Take one training step, with the probe's part of it where there is one."""
        self.optimizer.zero_grad()
        loss = self._loss(self.model, self._make_batch(step))
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        if self.probe is not None:
            self.probe.step(loss=loss, grad_norm=norm, lr=1e-3)
        return loss.detach()

    def run(self, steps: int) -> None:
        """Return the steps that are compared."""
        from torch._dynamo.utils import counters

        def counts() -> tuple[int, int]:
            return int(sum(counters["graph_break"].values())), int(counters["stats"]["unique_graphs"])

        _seed(1)
        breaks, graphs = counts()
        self.losses = torch.stack([self.step(step) for step in range(steps)]).cpu()
        self.breaks, self.graphs = (after - before for after, before in zip(counts(), (breaks, graphs), strict=True))
        self.random = _random_states()
        self.after = [parameter.detach().clone() for parameter in self.model.parameters()]
        self.names = {name for name, _ in unwrap(self.model).named_parameters()}

    def seconds(self, step: int) -> float:
        """Time of one more step, the device's work included."""
        _seed(step)  # the same depths for both
        _wait(self.losses_device)
        began = time.perf_counter()
        self.step(step)
        _wait(self.losses_device)
        return time.perf_counter() - began

    @property
    def losses_device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters()).device


def _time_in_turns(plain: _Training, watched: _Training, steps: int, timed: int) -> list[tuple[float, float]]:
    """Return seconds of steps without and with the probe, side by side, first one and then the other in front."""
    import torch._dynamo.config as dynamo

    # The two models share their code: each needs graphs of its own, told apart by their hooks, and all have to fit.
    torch._dynamo.reset()
    with dynamo.patch(recompile_limit=64, skip_nnmodule_hook_guards=False):
        for step in range(steps, steps + 2):  # compiles
            plain.seconds(step)
            watched.seconds(step)
        pairs = []
        for i in range(timed):
            order = (plain, watched) if i % 2 else (watched, plain)
            took = {id(one): one.seconds(steps + 2 + i) for one in order}
            pairs.append((took[id(plain)], took[id(watched)]))
    return pairs


def _count_loops(
    make_model: Callable[[], nn.Module],
    make_batch: Callable[[int], Any],
    loss: Callable[[nn.Module, Any], Tensor],
    site: LoopSite | None,
    steps: int,
) -> list[list[float]]:
    """Mean state norm of every loop of every step, in eager mode with plain hooks; NaN where no module sees a state."""
    training = _Training(make_model, make_batch, loss)
    model = unwrap(training.model)
    located = find_site(model, site)
    sums: list[list[list[float]]] = []  # of each step, of each loop: sum of norms, tokens
    loop = -1  # -1 outside of a forward, where checkpoints recompute

    def begin(*_: Any) -> None:
        nonlocal loop
        loop = 0

    def end(*_: Any) -> None:
        nonlocal loop
        loop = -1

    def note(state: Tensor | None) -> None:
        """Add the norms of a state to its loop."""
        nonlocal loop
        if loop < 0:
            return
        if loop == len(sums[-1]):
            sums[-1].append([0.0, 0.0])
        norm = torch.full((1,), math.nan) if state is None else state.detach().double().norm(dim=-1)
        sums[-1][loop][0] += float(norm.sum())
        sums[-1][loop][1] += norm.numel()
        loop += 1

    def received(module: nn.Module, args: Any, kwargs: Any) -> None:
        place = located.state_argument
        note(None if place is None or located.output is not None else argument(args, kwargs, place))

    LoopHooks(model, replace(located, body=located.output or located.body), begin=begin, enter=received, end=end)
    _seed(1)
    with torch.compiler.set_stance("force_eager"):
        for step in range(steps):
            sums.append([])
            training.step(step)
    return [[total / count for total, count in of_step] for of_step in sums]


def _norm_error(counted: list[list[float]], norms: np.ndarray[Any, Any]) -> float:
    """Return the largest relative difference of recorded state norms; infinite where a computed one is missing."""
    errors = [
        abs(norms[step, t] - right) / right if t < norms.shape[1] and np.isfinite(norms[step, t]) else math.inf
        for step, of_step in enumerate(counted)
        for t, right in enumerate(of_step)
        if step < len(norms) and right > 0  # false for NaN
    ]
    return float(max(errors, default=math.nan))


def _difference(plain: _Training, watched: _Training) -> float:
    """Return the largest relative difference of the losses, and of all parameters as one vector."""
    losses = ((plain.losses - watched.losses).abs() / plain.losses.abs().clamp(min=1e-30)).max()
    off = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(plain.after, watched.after, strict=True))
    whole = sum(float(a.double().square().sum()) for a in plain.after)
    return max(float(losses), math.sqrt(off / whole))


def _seed(seed: int) -> None:
    """Start every random stream that training may draw from."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global stream is what users' code draws from


def _random_states() -> dict[str, bytes]:
    """Return all random states as values that compare with ``==``."""
    return {name: state.tobytes() for name, state in random_states().items()}


def _wait(device: torch.device) -> None:
    """Wait for the device's queue, for timing only."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
