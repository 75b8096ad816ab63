"""Whether the injection acts like the recorded A̅, seen in a training forward: where no fixed batch can show it.

Two calls of the injection in one forward receive the same input and other states. Where it is A̅ h + B̅ e, what it
returns differs by A̅ times the difference of the states. The module is called by nobody but training: a few tokens of
both calls are kept, and compared on the device when the step is over.

Not covered: injections with dropout, with an argument that changes from loop to loop, and compiled models.
"""

# Shapes: few tokens of a call, at most SEQUENCES x POSITIONS x D.

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from ...loops.hooks import Off, hook_before, hook_behind, state_in
from ...loops.neutral import looking
from ...loops.site import LoopSite, argument, with_argument
from .acting import Autocast, difference
from .internals import in_transform
from .sharded import own_part

SEQUENCES: Final = 8
POSITIONS: Final = 16


class SeenInTraining:
    """Two calls of the injection in the first forward after `begin`.

    Args:
        model: The user's module, unwrapped.
        site: Where its loop is.
        a_bar: A̅ as it was read before the forward, where it cannot be read in it because the parameters are spread over
            ranks; None: it is read as the forward begins with it.

    Attributes:
        why_not: Why nothing can be compared, as far as that is known; empty otherwise.

    >>> model = nn.ModuleDict({"mix": nn.Linear(2, 2, bias=False), "head": nn.Identity()})
    >>> seen = SeenInTraining(model, LoopSite(body="mix", after="head", a_bar=lambda: model["mix"].weight))
    >>> seen.begin()
    >>> _ = model["mix"](torch.ones(1, 1, 2)), model["mix"](2 * torch.ones(1, 1, 2))
    >>> float(seen.disagreement()) < 1
    True
    >>> seen.end()
    """

    def __init__(self, model: nn.Module, site: LoopSite, a_bar: Tensor | None = None) -> None:
        self._model, self._site, self._given = model, site, a_bar
        self._offs: list[Off] = []
        self._begin_again()

    def begin(self) -> None:
        """See the calls of the next forward."""
        self._begin_again()
        module = self._model.get_submodule(self._site.body)
        self._versions = _versions(module)
        if any(isinstance(inner, _DropoutNd) and inner.p > 0 for inner in module.modules()):
            self.why_not = f"{self._site.body!r} has dropout"
            return
        self._offs = [
            hook_before(module, self._enter, prepend=True),
            hook_behind(module, self._leave),
        ]

    def end(self) -> None:
        """Take the hooks off; what was seen stays."""
        for off in self._offs:
            off()
        self._offs = []

    def disagreement(self) -> Tensor | None:
        """Return how far the injection is from A̅, in units of what rounding explains: above 1 is too far.

        Returns:
            One number on the device; NaN where the calls differ in more than the state. None where there is nothing to
            compare: `why_not` says why.
        """
        a_bar = self._a_bar
        if self.why_not:
            return None
        if len(self._out) < 2 or a_bar is None:
            self.why_not = "no training forward ran two loops"
            return None
        (before, *others), (after, *again) = self._in
        one, other = self._out
        if one.shape != before.shape or after.shape != before.shape or len(others) != len(again):
            self.why_not = f"{self._site.body!r} returns something of another shape than the state"
            return None
        with torch.no_grad(), torch.autocast(before.device.type, enabled=False):
            same = torch.ones((), dtype=torch.bool, device=before.device)
            for x, y in zip(others, again, strict=True):
                same &= (x == y).all() if x.shape == y.shape else False
            apart = difference(a_bar.to(before.device), before, after, one, other, self._setting)
            return torch.where(same, apart, torch.nan)

    def _begin_again(self) -> None:
        self.why_not = ""
        self._a_bar: Tensor | None = None
        self._in: list[list[Tensor]] = []
        self._out: list[Tensor] = []
        self._plain: list[tuple[Any, ...]] = []
        self._setting = Autocast.now("cpu")

    @torch.no_grad()  # what autograd saves here, a checkpoint would miss when it runs the block again
    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep a few tokens of what the injection receives: the state, then everything else."""
        place = self._site.state_argument
        if len(self._in) == 2 or place is None or self.why_not or not self._model.training or looking():
            return
        try:
            state = argument(args, kwargs, place)
            rest, named = with_argument(args, kwargs, place, torch.zeros_like(state))
            values = [*rest, *(named[name] for name in sorted(named))]
            plain = tuple(value for value in values if not isinstance(value, Tensor))
            if in_transform():
                self.why_not = "training runs inside a function transform"
            elif self._plain and not all(a is b or a == b for a, b in zip(plain, self._plain[0], strict=True)):
                self.why_not = f"{self._site.body!r} receives other arguments in every loop"
            else:
                if not self._in:
                    self._read(module)
                self._plain.append(plain)
                self._in.append([_few(state), *(_few(value) for value in values if isinstance(value, Tensor))])
                self._setting = Autocast.now(state.device.type)
        except Exception as error:  # looking must not cost the training forward, and less the loop's rows
            self.why_not = f"the calls of {self._site.body!r} cannot be compared ({type(error).__name__})"

    def _read(self, module: nn.Module) -> None:
        """Take A̅ as this forward begins with it: training may have changed the weights since the step before ended."""
        if self._given is None and self._site.a_bar is not None:
            self._a_bar = self._site.a_bar().detach().float().clone()
        elif self._versions == _versions(module):
            self._a_bar = self._given
        else:
            self.why_not = "weights changed between probe.step() and the forward; call it after optimizer.step()"

    @torch.no_grad()
    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Keep a few tokens of what it returns."""
        if len(self._out) < len(self._in) and not self.why_not:
            try:
                self._out.append(_few(state_in(output)))
            except Exception as error:
                self.why_not = f"what {self._site.body!r} returns cannot be read ({type(error).__name__})"


def _versions(module: nn.Module) -> list[int]:
    """Return how often each parameter was written to."""
    return [own_part(parameter)._version for parameter in module.parameters()]


def _few(tensor: Tensor) -> Tensor:
    """Return a copy of a few tokens: sequences and positions where there are both."""
    if tensor.ndim >= 3:
        return tensor.detach()[:SEQUENCES, :POSITIONS].clone()
    return tensor.detach()[: SEQUENCES * POSITIONS].clone() if tensor.ndim else tensor.detach().clone()
