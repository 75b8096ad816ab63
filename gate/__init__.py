"""Verdicts for machines and people. Read ``check.py`` first."""

from ..lazy import names

__getattr__, __dir__, __all__ = names(__name__, __file__)
