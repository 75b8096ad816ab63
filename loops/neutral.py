"""Running a model beside its training without leaving a trace in it: the one way in which a model is looked at.

A look begins with a note of what the model holds in Python (`PythonState`) and of all random states; while it lasts,
whatever is written into a tensor is copied first (`Writes`); in the end all of that is put back, bit for bit. Weights
that nobody writes to are not copied. Training flags are set without calling the user's ``train()`` and ``eval()``,
which may merge or swap weights: a module that overrides them, and so may act on them, is looked at in its own mode.

Not covered: what a forward changes outside of the model and of torch's sight (a list that a function has closed over,
a file, another process). Where it is known that something could not be put back, there is no look: `LookError`.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import wraps
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn

from .python_state import LookError, PythonState
from .writes import Fingerprint, Writes, memory_of

_looks_under_way = 0
_tried: WeakSet[Callable[[], Tensor]] = WeakSet()  # readings known to be quiet, or made so


def looking() -> bool:
    """Return whether a model is being run on the side now, so that its forward is no part of the training.

    >>> looking()
    False
    """
    return _looks_under_way > 0


def eagerly() -> AbstractContextManager[object]:
    """Run compiled code as it was written: nothing is compiled for a run on the side, and every graph stays.

    >>> with eagerly():
    ...     pass
    """
    compiles = "torch._dynamo" in sys.modules  # nothing is compiled where that was never imported
    return torch.compiler.set_stance("force_eager") if compiles else nullcontext()


@dataclass(frozen=True, slots=True)
class Look:
    """What a look has noted so far.

    Args:
        state: What the model held in Python.
        writes: What was overwritten since.
    """

    state: PythonState
    writes: Writes

    def rewind(self) -> bool:
        """Put the model back to where the look began; return whether anything had changed."""
        wrote = self.writes.changed
        self.writes.undo()
        return self.state.rewind() or wrote


@contextmanager
def on_the_side(
    model: nn.Module, *, seed: int | None = 0, evaluating: bool = True, verify: bool = True
) -> Iterator[Look]:
    """Return a block in which a model may be run or read, and after which it is as it was before.

    Inside: evaluation mode for all modules that do not override ``train()`` or ``eval()``, no gradients, nothing
    compiled, and a random stream of its own. Afterwards parameters, buffers, gradients, training flags, attributes,
    lists and counters of the modules, the model's own generators and the random states of torch, numpy and Python are
    bit for bit as before. Parameters that a forward gathered (FSDP2) are sharded again.

    Costs a walk over the attributes of all modules (about 20 µs each), and some microseconds per operation inside.

    Args:
        model: The user's module, unwrapped.
        seed: Start of the random stream inside, so that each look sees the same draws; None goes on with the stream.
        evaluating: Whether modules are put into evaluation mode; otherwise each stays in its own.
        verify: Whether the bits of all parameters and buffers are compared in the end, which reads them twice and
            waits for the device.

    Raises:
        LookError: The model cannot be left as it was. Raised before anything is run where that is known before.

    >>> model = nn.BatchNorm1d(2)
    >>> with on_the_side(model):
    ...     _, model.calls = model.running_mean.fill_(3.0), 1
    ...     inside = model.training
    >>> inside, model.training, model.running_mean, hasattr(model, "calls")
    (False, True, tensor([0., 0.]), False)
    """
    global _looks_under_way
    state = PythonState([model])
    sharded = _fsdp_modules(model)
    before = Fingerprint(model) if verify and not sharded else None
    # Gathering writes whole parameters into memory that sharding frees again: only what is the model's own is watched.
    writes = Writes(memory_of(state.tensors) if sharded else None)
    look = Look(state, writes)
    failed = False
    with ExitStack() as stack:
        stack.enter_context(_own_random_stream(model, seed))
        stack.enter_context(eagerly())
        stack.enter_context(_no_autocast_cache())
        stack.enter_context(torch.no_grad())
        _looks_under_way += 1
        try:
            if evaluating:
                _evaluate(model)
            with writes:
                yield look
        except BaseException:
            failed = True
            _forget_forward(sharded)
            raise
        finally:
            _looks_under_way -= 1
            for module in sharded:  # FSDP2 keeps those of its root until a backward pass, which none follows here
                module.reshard()
            look.rewind()
            _verify(model, before, failed=failed)


def undisturbed(model: nn.Module, device: torch.device, seed: int = 0) -> AbstractContextManager[Look]:
    """Return the older name of `on_the_side`, for code that uses it; the device is found out now."""
    return on_the_side(model, seed=seed)


def quietly(model: nn.Module, read: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return a way to read a matrix that leaves the model as it is, even where reading acts.

    ``layer.weight`` of a parametrised layer is computed when it is read: spectral norm moves its vectors on, a noisy
    weight draws. It is tried out once, in either mode; a reading that changes nothing is used as it is afterwards.

    >>> layer = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
    >>> read, before = quietly(layer, lambda: layer.weight), layer.parametrizations.weight[0]._u.clone()
    >>> _ = read(), read()
    >>> torch.equal(layer.parametrizations.weight[0]._u, before)
    True
    """
    if read in _tried:
        return read
    _remember(read)
    if not _reading_acts(model, [read]):
        return read

    @wraps(read)
    def quiet() -> Tensor:
        with on_the_side(model, seed=None, evaluating=False, verify=False), torch.enable_grad():
            matrix = read()
            return matrix.detach().clone().requires_grad_(matrix.requires_grad)

    _tried.add(quiet)
    return quiet


def all_quietly(model: nn.Module, reads: Mapping[str, Callable[[], Tensor]]) -> dict[str, Callable[[], Tensor]]:
    """Return what `quietly` does for several readings; they are tried out together, since most change nothing.

    >>> layer = nn.Linear(3, 3)
    >>> reads = {"a_bar": lambda: layer.weight, "b_bar": lambda: layer.bias}
    >>> all_quietly(layer, reads) == reads
    True
    """
    new = [read for read in reads.values() if read not in _tried]
    if len(new) > 1 and not _reading_acts(model, new):
        for read in new:
            _remember(read)
    return {name: quietly(model, read) for name, read in reads.items()}


def _remember(read: Callable[[], Tensor]) -> None:
    """Note that a reading was tried out; one of a kind that cannot be noted is tried again next time."""
    with suppress(TypeError):
        _tried.add(read)


def _reading_acts(model: nn.Module, reads: Iterable[Callable[[], Tensor]]) -> bool:
    """Return whether reading changes a tensor, a random state or something in Python; not whether it works."""
    acts = False
    for training in (True, False):
        with suppress(Exception), on_the_side(model, seed=0, evaluating=False, verify=False) as look:
            _set_flags(model, training)
            flags = PythonState([model])
            streams = random_states(model)
            for read in reads:
                with suppress(Exception):
                    read()
            acts |= look.writes.changed or flags.rewind() or streams != random_states(model)
    return acts


def _evaluate(model: nn.Module) -> None:
    """Put the modules into evaluation mode that cannot act on it by themselves."""
    _set_flags(model, training=False)


def _set_flags(model: nn.Module, training: bool) -> None:
    """Set training flags past the user's methods; those of modules that may act on them stay."""
    for module in model.modules():
        if _may_act(module):
            continue
        if "training" in vars(module):
            vars(module)["training"] = training
        else:  # of a scripted module
            module.training = training


def _may_act(module: nn.Module) -> bool:
    """Return whether a module has a ``train()`` or ``eval()`` of its own."""
    for name in ("train", "eval"):
        own = getattr(type(module), name)
        if name in vars(module) or not getattr(own, "__module__", "").startswith("torch."):
            return True
    return False


def _verify(model: nn.Module, before: Fingerprint | None, *, failed: bool) -> None:
    """Compare what is cheap to compare; an error of the look itself is not replaced by another one."""
    changed = [] if before is None else before.changed()
    if not changed or failed:
        return
    assert before is not None
    lost = before.lost(changed)
    done = f"{', '.join(lost)} could not be put back" if lost else "it was put back"
    raise LookError(
        f"a forward of {type(model).__name__} changes {', '.join(changed)} in a way that torch does not see (numpy, or "
        f"a kernel of its own); {done}, and the model is not run on the side"
    )


@contextmanager
def _own_random_stream(model: nn.Module, seed: int | None) -> Iterator[None]:
    """Give a block random states of torch, numpy and Python of its own."""
    devices = _cuda_devices(model)
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global stream is what users' code draws from
    try:
        with torch.random.fork_rng(devices=devices):
            if seed is not None:
                start_streams(model, seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def start_streams(model: nn.Module, seed: int) -> None:
    """Start the random streams of torch, numpy and Python that a forward of a model may draw from; in a look only."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    for device in _cuda_devices(model):
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    """Return where a model draws its random numbers besides the host."""
    return sorted({p.device for p in model.parameters() if p.device.type == "cuda"}, key=str)


def random_states(model: nn.Module) -> tuple[Any, ...]:
    """Return the states of the generators that a forward may draw from, as values that compare with ``==``."""
    numpy: Any = np.random.get_state()  # noqa: NPY002
    # The `==` of an array is an array, and its text takes milliseconds to make.
    words = (numpy[0], numpy[1].tobytes(), *numpy[2:]) if isinstance(numpy, tuple) else repr(numpy)
    of_devices = [torch.cuda.get_rng_state(device) for device in _cuda_devices(model)]
    return random.getstate(), words, *(state.numpy().tobytes() for state in (torch.get_rng_state(), *of_devices))


@contextmanager
def _no_autocast_cache() -> Iterator[None]:
    """Keep autocast from caching casts: one made here without a graph would be training's next weight."""
    usual = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(usual)


def _forget_forward(modules: list[Any]) -> None:
    """End the forward that an exception cut off: FSDP2 would take the next one of training for the rest of it."""
    for module in modules:
        with suppress(RuntimeError):  # asked of the root alone, and only the module itself knows whether it is that
            getattr(module, "reset_iter_state", lambda: None)()


def _fsdp_modules(model: nn.Module) -> list[Any]:
    """Return the modules that FSDP2 manages."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # half a second to import, and nothing is sharded without it
    return [] if fsdp is None else [module for module in model.modules() if isinstance(module, fsdp.FSDPModule)]


__all__ = [
    "Look",
    "LookError",
    "all_quietly",
    "eagerly",
    "looking",
    "on_the_side",
    "quietly",
    "start_streams",
    "undisturbed",
]
