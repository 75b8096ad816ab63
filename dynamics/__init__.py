"""The loop as a dynamical system: arrays and callables in, numbers with their status out.

``linear/`` holds the linear part, ``loop/`` the Jacobian of the full loop, ``trajectory/`` what the state does along
the loops. Names are resolved when they are first used, so that ``import loopscope.dynamics`` stays light: only the
modules that need a live PyTorch model import torch.

Not covered: reading run files (``loopscope.runfile``) and drawing (``loopscope.dashboard``).
"""

from ..lazy import names

__getattr__, __dir__, __all__ = names(__name__, __file__)
