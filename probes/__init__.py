"""What attaches to a training run: the probe, when it measures, and the thread that writes what it saw.

Read ``probe.py`` first. What runs inside the training steps is in ``measure/``. The names of neighbouring packages that
were public here are handed on.
"""

from ..lazy import names

__getattr__, __dir__, __all__ = names(__name__, __file__)
