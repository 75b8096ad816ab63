"""What the state of a loop does along the loops: laws, exponents, fixed points, depth.

Read ``trajectory.py`` first. Not covered: the linear part alone (``dynamics.linear``).
"""

from ...lazy import names

__getattr__, __dir__, __all__ = names(__name__, __file__)
