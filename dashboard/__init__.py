"""The dashboard: run files in, pages in a browser out, all of it on this machine.

It reads runs through `loopscope.runfile` and takes every verdict from `loopscope.rules.diagnosis`; it computes no
regime of its own. It does not authenticate anybody: it binds to the loopback address and answers to loopback names
only.
"""

from ..lazy import names

__getattr__, __dir__, __all__ = names(__name__, __file__)
