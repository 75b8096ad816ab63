"""Looking for the loop in the user's own training: the first training forward is written down as it runs.

Nothing is run besides: the forward computes what it always does, and its result is used as it is. What its modules were
given and returned is kept until it is over, up to `MOST_BYTES`, so that the loop of the first step is recorded too.

Where a forward shows no loop, the probe waits. It looks again when the number of module calls per training forward
changes, as it does when a loop is switched on, and besides at the 2nd, 4th, 8th, … training forward.

Parts that are compiled cannot be followed as they run; then a small part of the batch is run on the side.

Not covered: compiled functions that a forward makes by itself.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn

from ..loops.call import Call, Input
from ..loops.find import find_site
from ..loops.hooks import Hook
from ..loops.marked import MarkWatcher
from ..loops.nested import changed, tensors_in
from ..loops.neutral import LookError
from ..loops.site import LoopSite, LoopSiteError
from ..loops.trace import Moment, Recorder
from ..runfile.layout import Event
from .measure.internals import graphs_made
from .notices import Notices, log, one_line

MOST_REASONS = 8  # that are given
MOST_BYTES = 256 << 20  # of tensors that are kept until a forward is over

UNSEEN = (
    "A part of it was compiled as it ran (torch.compile, torch.while_loop, torch.scan inside of a forward): what loops "
    "in such a part cannot be seen."
)
OnLoop = Callable[[LoopSite, "Timeline | None"], None]


class Timeline:
    """The moments of one forward, with their tensors.

    Attributes:
        moments: In the order in which they came.
        lost: Why they are not kept; empty where they are.
        late: That an earlier forward ran the loop already, and in which step; empty where none did.
    """

    def __init__(self, late: str = "") -> None:
        self.moments: list[Moment] = []
        self.lost, self.late = "", late
        self._versions: dict[int, tuple[Tensor, int]] = {}
        self._bytes = 0

    def add(self, moment: Moment) -> None:
        """Keep a moment, while there is room."""
        if self.lost:
            return
        if moment.kind == "mark":  # a solver writes its next states over the last ones
            given = moment.kwargs["input"]
            copies = {"input": None if given is None else given.detach().clone()}
            moment = moment._replace(args=(moment.args[0].detach().clone(),), kwargs=copies)
        args, kwargs, output = changed((moment.args, moment.kwargs, moment.output), lambda tensor: tensor)
        moment = moment._replace(args=args, kwargs=kwargs, output=output)  # what holds them may hold others later
        self.moments.append(moment)
        for tensor in tensors_in([moment.args, moment.kwargs, moment.output]):
            if id(tensor) not in self._versions:
                self._versions[id(tensor)] = tensor, tensor._version
                self._bytes += tensor.numel() * tensor.element_size()
        if self._bytes > MOST_BYTES:
            self.lost = f"its states take more than {MOST_BYTES >> 20} MB"
            self.moments.clear()
            self._versions.clear()

    def check(self, site: LoopSite) -> None:
        """Let go of the moments where a tensor was written to since that the loop is recorded from."""
        watched = {("enter", ""), *((kind, name) for name in site.modules.values() for kind in ("enter", "leave"))}
        seen = [
            (moment.args, moment.kwargs, moment.output)
            for moment in self.moments
            if (moment.kind, moment.name) in watched
        ]
        if any(tensor._version != self._versions[id(tensor)][1] for tensor in tensors_in(seen)):
            self.lost = "its states were overwritten in place"
            self.moments.clear()


class Reasons:
    """Why there is no loop yet: each reason goes to the log whole, and into the file in short, at its first occurrence.

    Args:
        notices: Hands events on.
    """

    def __init__(self, notices: Notices) -> None:
        self._notices = notices
        self._given = set[str]()

    def say(self, step: int, why: str) -> None:
        """Give a reason."""
        short = in_short(why)
        if short in self._given or len(self._given) == MOST_REASONS:
            return
        self._given.add(short)
        log.warning("loopscope: no loop is recorded yet, and the probe waits for one: %s", why)
        message = f"no loop is recorded yet: {short}"
        self._notices.pass_on(Event(step, time.time(), "loop_awaited", "note", message=message))


class Seeker:
    """Finds the loop of a model while it trains.

    Args:
        model: The user's module, unwrapped.
        on_loop: Called once, behind the forward that showed the loop.
        waits: Called with why there is no loop yet.
    """

    def __init__(self, model: nn.Module, on_loop: OnLoop, waits: Callable[[str], None]) -> None:
        self._model, self._on_loop, self._waits = model, on_loop, waits
        self._forwards = 0
        self._calls = self._calls_then = 0
        self._step_then = 0  # of the forward before
        self._recorder: Recorder | None = None
        self._timeline = Timeline()
        self._graphs = 0  # that Dynamo had made when the forward under way began
        self._outside = ""  # a mark that was made outside of the model's forward
        self._done = False
        self._compiled = _is_compiled(model)
        self._handles = [] if self._compiled else [
            module.register_forward_pre_hook(Hook(self._count)) for module in model.modules() if not _holds(module)
        ]  # fmt: skip
        self._watcher = None if self._compiled else MarkWatcher(self._hear)
        self._ran: dict[str, nn.Module] = {}  # the model itself and its direct parts, as they first run
        parts = [] if self._compiled else [("", model), *model.named_children()]
        self._handles += [part.register_forward_pre_hook(Hook(self._note(name))) for name, part in parts]

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], step: int) -> None:
        """Look at the training forward that begins now, where that is due."""
        try:
            self._begin(module, args, kwargs, step)
        except Exception as error:
            self.stop()
            self._waits(f"the loop cannot be looked for: {one_line(error)}")

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], step: int) -> None:
        """As `begin`, and raises."""
        self._abandon()
        self._forwards += 1
        changed = self._calls != self._calls_then
        late = f"; a forward of step {self._step_then} ran it already and is not recorded" if changed else ""
        self._calls_then, self._calls, self._step_then = self._calls, 0, step
        if self._done or not (changed or self._forwards & (self._forwards - 1) == 0):
            return
        if self._compiled or _is_compiled(module):
            self._look_aside(module, args, kwargs)
            return
        self._timeline = Timeline(late if self._forwards > 2 else "")
        self._graphs = graphs_made()
        self._recorder = Recorder(self._model, self._see)
        self._recorder.__enter__()
        if module is self._model:  # its own hooks are being called already
            self._recorder.entering("")(module, args, kwargs)

    def end_step(self) -> None:
        """Say so where training calls parts of the model and never its own forward, as a wrapper's own method does."""
        if self._outside and not self._done and "" in self._ran:
            self._waits(
                f"the state {self._outside!r} is marked outside of the forward of {type(self._model).__name__}, where "
                "nobody hears of it: put the loop that marks it into the forward of a module, and attach to that one"
            )
        if self._done or "" in self._ran or not self._ran:
            return
        parts = ", ".join(f"model.{name} ({type(part).__name__})" for name, part in self._ran.items())
        self._waits(
            f"in a whole step no forward of {type(self._model).__name__} itself ran, only of its parts: attach the "
            f"probe to the module that training calls and whose forward holds the loop, of {parts}; a loop in the "
            "training's own code has to be put into the forward of a module first"
        )

    def stop(self) -> None:
        """Look no more."""
        self._done = True
        if self._watcher is not None:
            self._watcher.close()
        self._abandon()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _count(self, module: nn.Module, args: Any) -> None:
        self._calls += self._model.training  # an evaluation in between tells nothing about the training's forwards

    def _note(self, name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any) -> None:
            self._ran.setdefault(name, module)

        return note

    def _hear(self, name: str, state: Tensor, given: Tensor | None) -> None:
        """Take note of a mark that is made while no forward of the model is under way."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and not self._outside:
            if frame.f_code.co_name == "_call_impl" and frame.f_locals.get("self") is self._model:
                return
            frame = frame.f_back
        self._outside = self._outside or name

    def _see(self, moment: Moment) -> None:
        """Take note of a moment; the last one is that of the model itself."""
        self._timeline.add(moment)
        if moment.kind == "leave" and moment.module is self._model:
            raised = moment.output is None and sys.exc_info()[1] is not None
            recorder, self._recorder = self._recorder, None
            if recorder is None:
                return
            recorder.__exit__(None, None, None)
            if not raised:
                self._settle(recorder)

    def _settle(self, recorder: Recorder) -> None:
        """Say what a forward has shown."""
        from ..loops.discovery import site_of_trace  # a model that says where its loop is loads none of it

        timeline, self._timeline = self._timeline, Timeline()
        try:
            site = site_of_trace(self._model, recorder.root.children[0], "a training forward")
        except Exception as error:  # of the search: training goes on
            unseen = f" {UNSEEN}" if graphs_made() > self._graphs else ""
            self._waits(f"{error}{unseen}")
            return
        self.stop()
        timeline.check(site)
        self._on_loop(site, timeline)

    def _look_aside(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run a part of the batch on the side, where compiled parts run as they were written."""
        from ..loops.discovery import discover

        try:
            site = discover(self._model, Call(args, kwargs).cut(2).kept())
        except (LoopSiteError, LookError) as error:
            self._waits(str(error))
            return
        self.stop()
        entered: Timeline | None = None
        if module is self._model:  # the forward under way is recorded too: its own hooks are being called already
            entered = Timeline()
            entered.add(Moment("enter", "", module, args, kwargs, None))
        self._on_loop(site, entered)

    def _abandon(self) -> None:
        """Let go of a forward that was broken off."""
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.__exit__(None, None, None)


def _holds(module: nn.Module) -> bool:
    """Return whether a module has others inside."""
    return any(True for _ in module.children())


def _is_compiled(model: nn.Module) -> bool:
    """Return whether a model, a part of it, or a function that its forward may call is compiled."""
    plain: set[type] = set()
    for module in model.modules():
        if getattr(module, "_compiled_call_impl", None) is not None or "_orig_mod" in module._modules:
            return True
        kind = type(module)
        if kind.__module__.split(".")[0] == "torch":
            continue
        if _reaches_compiled(kind, list(vars(module).values())):
            return True
        if kind not in plain and _reaches_compiled(kind, [getattr(kind, "forward", None), *vars(kind).values()], kind):
            return True
        plain.add(kind)
    return isinstance(model, torch.jit.ScriptModule)


def _reaches_compiled(kind: type, held: list[Any], owner: type | None = None) -> bool:
    """Return whether something held is a compiled function, or calls one by a name in its code.

    Of what an owner holds only its forward is followed: its other methods run where a name leads to them. So an
    optimizer in the file of a model, whose steps are compiled, does not make a compiled model of it.
    """
    waiting: list[tuple[Any, type]] = []
    for each in held:
        if _compiled_function(each):
            return True
        if owner is None or each is getattr(owner, "forward", None):
            waiting.append((each, kind))
    seen: set[Any] = set()
    while waiting:
        each, kind = waiting.pop()
        if _compiled_function(each):
            return True
        if isinstance(each, type) and not issubclass(each, nn.Module) and each not in seen:
            seen.add(each)
            own = not each.__module__.startswith(("torch", "builtins"))
            waiting += [(function, each) for function in vars(each).values() if own]
        each = getattr(each, "fget", None) or getattr(each, "__func__", each)  # of a property, of a bound method
        code, around = getattr(each, "__code__", None), getattr(each, "__globals__", None)
        if code is None or code in seen or not isinstance(around, dict) or _of_torch(each):
            continue
        seen.add(code)
        for name in _names(code):
            waiting += [(named, kind) for named in (around.get(name), _in_class(kind, name)) if named is not None]
        waiting += [(cell.cell_contents, kind) for cell in each.__closure__ or () if _filled(cell)]
    return False


def _compiled_function(each: Any) -> bool:
    return "_torchdynamo_orig_callable" in getattr(each, "__dict__", ())


def _of_torch(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).split(".")[0] == "torch"


def _names(code: CodeType) -> set[str]:
    """Return all names in a function's code and in the functions written inside of it."""
    inside = [each for each in code.co_consts if isinstance(each, CodeType)]
    return set(code.co_names).union(*(_names(each) for each in inside))


def _in_class(kind: type, name: str) -> Any:
    """Return what a class or one of its bases holds by a name, as it was written there."""
    return next((vars(each)[name] for each in kind.__mro__ if name in vars(each)), None)


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # not assigned yet
        return False


def site_or_why_not(model: nn.Module, site: LoopSite | None, example: Input | None) -> tuple[LoopSite | None, str]:
    """Return where the loop is; where nobody has said so and nothing shows it, why not.

    Raises:
        LoopSiteError: A site or an example was given that does not fit.
    """
    try:
        return find_site(model, site, example), ""
    except LoopSiteError as error:
        if site is not None or example is not None or callable(getattr(model, "loop_site", None)):
            raise
        return None, str(error)
    except Exception as error:  # a fault of the search costs no training
        if site is not None or example is not None:
            raise LoopSiteError(f"the loop cannot be looked for: {one_line(error)}") from error
        return None, f"the loop cannot be looked for: {one_line(error)}"


def in_words(site: LoopSite, timeline: Timeline | None) -> str:
    """Return what of a loop is recorded, and what is not of the forwards so far."""
    named = [f"{v.name} ({v.source})" for v in site.variables]
    where = f"{site.body!r} receives" if site.output is None else f"{site.output!r} returns"
    late = timeline.late if timeline is not None else ""
    return f"a loop, {site.found}: {', '.join(named) or f'the state that {where}'}{late}"


def first_line(text: str) -> str:
    """Return the beginning of what may be a long explanation."""
    return (text.strip().splitlines() or [""])[0][:200]


def in_short(text: str) -> str:
    r"""Return the first sentence of an explanation, and where the rest of it is.

    >>> in_short("several loops were seen:\n  1. enc\n  2. dec"), in_short("A model loops nowhere. Say where.")
    ('several loops were seen; the log says which, and how to name it', 'A model loops nowhere.')
    """
    lines = text.strip().splitlines() or [""]
    if len(lines) > 1:
        return f"{lines[0][:150].rstrip(':')}; the log says which, and how to name it"
    sentence, *rest = lines[0].split(". ")
    return f"{sentence}." if rest else sentence
