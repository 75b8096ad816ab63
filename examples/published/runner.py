"""Train published looped models without loopscope, with `watch` and with `inspect`, and say whether anything differs.

    python examples/published/runner.py ~/checkouts                  # every model whose code is there
    python examples/published/runner.py ~/checkouts --only parcae --out parcae.json

Every model is trained three times from the same seed, in a process of its own, for checkouts hold packages of the same
name. Losses, parameters, buffers, whatever the modules hold in Python, the optimizer and the random states are
compared bit for bit, and the norms of the last step with those of hooks set by hand. Then `loopscope check` judges the
recordings, and `linearize` the trained model. Exit code 1: something differed, a norm by more than 1e-6, or a training
failed with a probe that did not fail without. Exit code 2: none of these, but a model could not be compared, for its
training fails by itself or was not done in time. What is not checked out or not installed is skipped, and said.

A file in this folder that defines ``MODELS``, a list of `Published`, is found by itself; it imports what is checked out
inside ``make`` only.
"""

import argparse
import contextlib
import importlib.machinery
import importlib.util
import io
import itertools
import json
import linecache
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import loopscope
import numpy as np
import torch
from loopscope.gate.check import check_runs
from loopscope.loops.same_state import differences
from loopscope.probes.random_states import random_states
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
STEPS = 15
PRESETS = ("watch", "inspect")
MOST_APART = 1e-6  # of a recorded norm from one by hand, relative
LIMIT = 900  # seconds for all trainings of one model


@dataclass
class Training:
    """One training of a model, as its `Published.make` begins it. The seeds are set before that.

    Attributes:
        model: What is given to `attach`.
        loss: Called with the model and the number of the step; returns the loss, from which the runner goes backward
            before the optimizer steps. The model is handed over since it may be compiled.
        optimizer: AdamW at 1e-3 where None.
        own_steps: Whether ``loss`` goes backward and steps by itself.
        call: What `linearize` is given; None leaves it out.
        budget: Seconds for `linearize`.
        attach: Further arguments of `attach`.
        numbers: Numbers of the user's own for `probe.step`.
        by_hand: Sets hooks on the model and returns the list that they fill with the states of a step, in order: of a
            variable's name (None: the state itself) the states, the last of which is the last one recorded. See
            `received` and `returned`. Called in a training of its own.
    """

    model: nn.Module
    loss: Callable[[nn.Module, int], Tensor]
    optimizer: Any = None
    own_steps: bool = False
    call: Any = None
    budget: float = 60.0
    attach: dict[str, Any] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    by_hand: Callable[[], dict[str | None, list[Tensor]]] | None = None


@dataclass(frozen=True)
class Published:
    """A model that somebody has published.

    Attributes:
        name: As the table of docs/models.md has it.
        repository: ``owner/name``, or the package.
        commit: The commit, or the version of the package.
        make: Begins a training; is given the folder of the checkout.
        folder: Name of the checkout's folder; the repository's own name where None, no checkout where empty.
    """

    name: str
    repository: str
    commit: str
    make: Callable[[Path], Training]
    folder: str | None = None

    def checkout(self, checkouts: Path) -> Path:
        """Where its code has to be."""
        return checkouts / (self.repository.rpartition("/")[2] if self.folder is None else self.folder)


@dataclass
class Outcome:
    """What came out; one line of the table."""

    name: str
    repository: str
    commit: str
    skipped: str = ""
    unjudged: str = ""
    failed: str = ""
    differing: dict[str, list[str]] = field(default_factory=dict)
    recorded: dict[str, Any] = field(default_factory=dict)
    by_hand: float | None = None
    check: dict[str, str] = field(default_factory=dict)
    linearized: str = ""
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def wrong(self) -> bool:
        """Whether this is something to look at before anything else is believed."""
        return bool(self.failed) or any(self.differing.values()) or (self.by_hand or 0.0) > MOST_APART

    def line(self) -> str:
        """One row for docs/models.md."""
        if self.skipped:
            return f"skipped: {self.name}: {self.skipped}"
        if self.unjudged:
            return f"NOT COMPARED: {self.name}: {self.unjudged}"
        said = self.failed or "; ".join(f"{k}: {', '.join(v[:4])}" for k, v in self.differing.items() if v)
        if not said and self.wrong:
            said = f"a recorded norm is {self.by_hand:.1e} from the one by hand"
        same = f"DIFFERS ({said})" if self.wrong else "bit for bit"
        hand = "" if self.by_hand is None else f"{self.by_hand:.0e}".replace("e-0", "e-")
        codes = " · ".join(self.check.values())
        shown = "; ".join(f"{k} {v}" for k, v in self.recorded.items() if k != "inspect")
        return f"| {self.name} | {same} | {shown} | {hand} | {codes} | {self.linearized} |"


def received(module: nn.Module, argument: int = 0) -> list[Tensor]:
    """What a module is given at every call, from now on: h_0, h_1, … where it begins the loop."""
    states: list[Tensor] = []
    module.register_forward_pre_hook(lambda _, given: states.append(given[argument].detach().clone()))
    return states


def returned(module: nn.Module) -> list[Tensor]:
    """What a module returns at every call, from now on; the first of a tuple."""
    states: list[Tensor] = []

    def keep(_: nn.Module, __: Any, out: Any) -> None:
        states.append((out[0] if isinstance(out, tuple) else out).detach().clone())

    module.register_forward_hook(keep)
    return states


def visited(model: nn.Module, first: nn.Module, last: nn.Module, part: slice = slice(None)) -> list[Tensor]:
    """What ``first`` is given at every call, or a part of its width, and at the end what ``last`` returned last."""
    states: list[Tensor] = []
    final: list[Tensor] = []

    def keep(_: nn.Module, __: Any, out: Any) -> None:
        final[:] = [(out[0] if isinstance(out, tuple) else out).detach().clone()]

    first.register_forward_pre_hook(lambda _, given: states.append(given[0][..., part].detach().clone()))
    last.register_forward_hook(keep)
    model.register_forward_hook(lambda *_: states.extend(final))
    return states


def importable(checkout: Path) -> None:
    """Make what a checkout holds come first when something is imported."""
    if sys.path[0] != str(checkout):
        sys.path.insert(0, str(checkout))


def stand_in(name: str, path: Path | None = None, **held: Any) -> None:
    """Put a module of our own where a published one imports ``name``; with a path an empty package over its files."""
    if name not in sys.modules:
        module = sys.modules[name] = types.ModuleType(name)
        module.__dict__.update(held)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=path is not None)
        if path is not None:
            module.__path__ = [str(path)]


def edited(name: str, path: Path, changes: dict[str, str]) -> Any:
    """Import a published file as the module ``name`` with lines replaced, every one of them found: marks, say."""
    if name in sys.modules and hasattr(sys.modules[name], "_edited"):
        return sys.modules[name]
    text = path.read_text(encoding="utf-8")
    for old, new in changes.items():
        if text.count(old) != 1:
            raise LookupError(f"{path.name} has {old!r} {text.count(old)} times")
        text = text.replace(old, new)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_text(text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, copy)
        assert spec is not None and spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        linecache.cache[str(copy)] = (len(text), None, text.splitlines(keepends=True), str(copy))
    module._edited = True
    return module


def seed_all(seed: int = 0) -> None:
    """Set every generator that a training may draw from."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


def tokens(number: int, batch: int = 4, length: int = 17, vocabulary: int = 64) -> Tensor:
    """The batch of a step, from a generator of its own."""
    generator = torch.Generator().manual_seed(1000 + number)
    return torch.randint(0, vocabulary, (batch, length), generator=generator)


def pair(number: int, batch: int = 4, length: int = 16, vocabulary: int = 64) -> tuple[Tensor, Tensor]:
    """The inputs of a step and the tokens that come next."""
    drawn = tokens(number, batch, length + 1, vocabulary)
    return drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous()


@dataclass
class _Trained:
    training: Training
    losses: list[Tensor]
    random: dict[str, Any]
    states: dict[str | None, list[Tensor]]


def _train(
    published: Published,
    checkout: Path,
    steps: int,
    how: "How",
    path: Path | None = None,
    preset: str = "",
    by_hand=False,
) -> _Trained:
    """One training from the seed, with a probe where there is a path."""
    seed_all()
    training = published.make(checkout)
    if how.dtype:
        training.model.to(getattr(torch, how.dtype))
    optimizer = training.optimizer
    if optimizer is None and not training.own_steps:
        optimizer = training.optimizer = torch.optim.AdamW(training.model.parameters(), lr=1e-3)
    called: Any = training.model
    if how.compile:
        torch._dynamo.reset()
        called = torch.compile(training.model, backend=how.compile)
    states = training.by_hand() if by_hand and training.by_hand else {}
    probe = None
    if path is not None:
        probe = loopscope.attach(called, path, preset=preset, **training.attach)
    losses = []
    try:
        for number in range(steps):
            for kept in states.values():
                kept.clear()
            loss = training.loss(called, number)
            if not training.own_steps:
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.detach().clone())
            if probe is not None:
                probe.step(loss=loss, **training.numbers)
        state = random_states()
    finally:
        if probe is not None:
            probe.close()
    return _Trained(training, losses, state, states)


def _compare(bare: _Trained, other: _Trained) -> list[str]:
    """Names of what is not the same to the last bit."""
    found = differences({"losses": bare.losses}, {"losses": other.losses})
    found += [f"random state of {k}" for k, v in bare.random.items() if not np.array_equal(v, other.random[k], True)]
    found += differences(bare.training.model, other.training.model)
    if bare.training.optimizer is not None:
        one, two = bare.training.optimizer.state_dict(), other.training.optimizer.state_dict()
        found += [f"optimizer {name}" for name in differences(one, two)]
    return found


def _recorded(path: Path) -> dict[str, Any]:
    """What a recording holds."""
    with loopscope.open_run(path) as run:
        names = [name for name in ("a_bar_radius", "a_bar_norm", "input_norm") if np.isfinite(run[name]).any()]
        found: dict[str, Any] = {
            "by": run.info["site"]["found"] if run.info.get("site") else "no loop",
            "depth": _range(run["depth"]),
            "steps with loops": int(np.isfinite(run["depth"]).sum()),
        }
        for variable in run.variables or ("",):
            norms = run.loops("state_norm", variable=variable) if variable else run.loops("state_norm")
            last = norms[-1]
            seen = np.isfinite(last)
            first = "with" if seen.size and seen[0] else "without"
            found[variable or "states"] = f"{int(seen.sum())} in the last step, {first} h_0"
        found["numbers"] = ", ".join(names) or "none"
        found["fixed batch"] = f"{len(run.probe_steps)} times"
        found["full loop"] = f"{int(np.isfinite(run['full_loop_seconds']).sum())} times"
        found["events"] = sorted({f"{event.kind}: {event.message}"[:300] for event in run.events})
    return found


def _range(values: Any) -> str:
    """The smallest and the largest of what is finite."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return "none"
    low, high = finite.min(), finite.max()
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _norms(states: list[Tensor]) -> Any:
    """The mean norm of every state over the tokens that move in the loop behind it, or over all where none does."""
    moved = [(one != other).any(-1) for one, other in itertools.pairwise(states)]
    moved += [torch.ones_like(state[..., 0], dtype=torch.bool) for state in states[-1:]]
    norms = [state.double().norm(dim=-1) for state in states]
    return np.array([float((n[at] if at.any() else n).mean()) for n, at in zip(norms, moved, strict=True)])


def _apart(path: Path, states: dict[str | None, list[Tensor]]) -> float | None:
    """Largest relative difference of a recorded norm of the last step from that of the states seen by hand."""
    worst = None
    with loopscope.open_run(path) as run:
        for variable, seen in states.items():
            norms = run.loops("state_norm") if variable is None else run.loops("state_norm", variable=variable)
            row = norms[-1][np.isfinite(norms[-1])]
            plain = _norms(seen)
            count = min(len(row), len(plain))
            if not count:
                continue
            row, plain = row[-count:], plain[-count:]
            apart = float(np.max(np.abs(row - plain) / np.maximum(np.abs(plain), 1e-30)))
            worst = apart if worst is None else max(worst, apart)
    return worst


def _check(path: Path, steps: int) -> str:
    """The exit code of `loopscope check --min-steps`, and the warnings beside it."""
    result = check_runs([path], min_steps=steps)
    rules = sorted({f.rule for run in result.runs for f in run.by_weight if f.severity != "note"})
    return f"{result.exit_code}" + (f" ({', '.join(rules)})" if rules else "")


def _linearize(training: Training) -> str:
    """The verdict of `linearize` in short, or its refusal."""
    if training.call is None:
        return "not tried"
    try:
        result = loopscope.linearize(training.model, training.call, budget=training.budget)
    except loopscope.LoopSiteError as error:
        return f"refused: {' '.join(str(error).split())}"
    share = result.loop.unstable_share
    text = result.verdict + (f" | unstable for {share:.0%} of tokens" if share > 0 else "")
    if result.linear is not None:
        text += f" | ρ(A̅) {result.linear.radius.value:.3g}, {result.linear.certificate}"
    return text + (f" | left out: {', '.join(result.skipped)}" if result.skipped else "")


@dataclass(frozen=True)
class How:
    """How models are trained: as they are, compiled, in another format, for how many steps."""

    steps: int = STEPS
    compile: str = ""
    dtype: str = ""

    def words(self) -> list[str]:
        """The same as options of the command line."""
        words = ["--steps", str(self.steps)]
        words += ["--compile", self.compile] if self.compile else []
        return words + (["--dtype", self.dtype] if self.dtype else [])


def _said(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def run_one(published: Published, checkouts: Path, folder: Path, how: How) -> Outcome:
    """Train one model three times, in this process, and compare."""
    outcome = Outcome(published.name, published.repository, published.commit)
    checkout = published.checkout(checkouts)
    began = time.perf_counter()
    try:
        bare = _train(published, checkout, how.steps, how)
    except ModuleNotFoundError as error:
        outcome.skipped = f"a package is not installed: {error}"
        return outcome
    except Exception as error:
        outcome.unjudged = f"its own training fails, without a probe: {_said(error)}"
        return outcome
    last = bare
    for preset in PRESETS:
        path = folder / f"{preset}.h5"
        try:
            last = _train(published, checkout, how.steps, how, path, preset)
        except Exception as error:
            outcome.failed = f"{preset}: {_said(error)}"
            return outcome
        outcome.differing[preset] = _compare(bare, last)
        outcome.check[preset] = _check(path, how.steps)
    outcome.recorded = _recorded(folder / "watch.h5") | {"inspect": _recorded(folder / "inspect.h5")}
    if not all(bool(torch.isfinite(loss).all()) for loss in bare.losses):
        outcome.notes.append("the loss is not finite, without a probe either")
    if bare.training.by_hand is not None and not how.compile:
        states = _train(published, checkout, how.steps, how, by_hand=True).states
        outcome.by_hand = _apart(folder / "watch.h5", states)
    if not how.compile and not how.dtype:
        outcome.linearized = _linearize(last.training)
    outcome.seconds = time.perf_counter() - began
    return outcome


def adapters(folder: Path) -> Iterator[Published]:
    """All models of the files of a folder, in order of the files' names."""
    sys.modules.setdefault("runner", sys.modules[__name__])  # what the files import
    for path in sorted(folder.glob("*.py")):
        if path.name != Path(__file__).name:
            spec = importlib.util.spec_from_file_location(f"published_{path.stem}", path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
            yield from getattr(module, "MODELS", ())


def run_apart(published: Published, options: argparse.Namespace, how: How) -> Outcome:
    """Train one model in a process of its own."""
    outcome = Outcome(published.name, published.repository, published.commit)
    checkout = published.checkout(options.checkouts)
    if published.folder != "" and not checkout.is_dir():
        outcome.skipped = f"no folder {checkout.name}: {published.repository} at {published.commit} is not checked out"
        return outcome
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) if options.keep is None else options.keep / published.name.replace("/", "-")
        kept.mkdir(parents=True, exist_ok=True)
        for old in kept.glob("*.h5"):
            old.unlink()
        result = Path(folder) / "outcome.json"
        words = [sys.executable, __file__, str(options.checkouts), "--adapters", str(options.adapters), *how.words()]
        words += ["--one", published.name, "--out", str(result), "--keep", str(kept)]
        environment = {"OMP_NUM_THREADS": "1"} | os.environ
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=options.limit, env=environment)
        except subprocess.TimeoutExpired:
            outcome.unjudged = f"not done after {options.limit:g} seconds (--limit gives it more)"
            return outcome
        if result.is_file():
            return Outcome(**json.loads(result.read_text(encoding="utf-8")))
        outcome.failed = f"its process ended with {done.returncode}: {done.stderr[-800:]}"
    return outcome


def main(words: list[str] | None = None) -> int:
    """Run what is asked for and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", type=Path, help="folder of the checkouts")
    parser.add_argument("--only", nargs="+", default=[], help="parts of names; all models without it")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--compile", default="", help="backend of torch.compile for the whole model: aot_eager, say")
    parser.add_argument("--dtype", default="", help="format of the parameters: bfloat16, say")
    parser.add_argument("--out", type=Path, help="JSON file for the outcomes")
    parser.add_argument("--keep", type=Path, help="folder for the recordings; they are removed without it")
    parser.add_argument("--adapters", type=Path, default=HERE, help="folder of files that define MODELS")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for one model")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    options.checkouts, options.adapters = options.checkouts.resolve(), options.adapters.resolve()
    how = How(options.steps, options.compile, options.dtype)
    models = list(adapters(options.adapters))
    if options.one:
        torch.set_num_threads(1)
        logging.getLogger("loopscope").setLevel(logging.ERROR)
        (published,) = (model for model in models if model.name == options.one)
        with contextlib.redirect_stdout(io.StringIO()):  # what the published code prints
            outcome = run_one(published, options.checkouts, options.keep, how)
        options.out.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
        return int(outcome.wrong)
    outcomes = []
    for published in models:
        if not options.only or any(part.lower() in published.name.lower() for part in options.only):
            outcomes.append(run_apart(published, options, how))
            print(outcomes[-1].line(), flush=True)
            if options.out is not None:
                text = json.dumps([asdict(outcome) for outcome in outcomes], indent=2, ensure_ascii=False)
                options.out.write_text(text + "\n", encoding="utf-8")
    wrong = [outcome.name for outcome in outcomes if outcome.wrong]
    unjudged = [outcome.name for outcome in outcomes if outcome.unjudged]
    skipped = sum(bool(outcome.skipped) for outcome in outcomes)
    print(
        f"{len(outcomes) - skipped - len(unjudged)} compared, {skipped} skipped; not the same with a probe: "
        f"{', '.join(wrong) or 'none'}; not compared: {', '.join(unjudged) or 'none'}"
    )
    return 1 if wrong else 2 if unjudged else 0


if __name__ == "__main__":
    sys.exit(main())
