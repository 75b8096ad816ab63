"""Losses at several test-time depths, where a run recorded some under names that end in a depth.

``loss_at_4``, ``eval_loss_8`` and ``val/16`` are such names. Not covered: measuring them (`loopscope depth`).
"""

import re
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..runfile.layout import DESCRIPTIONS
from .opened import OpenRun

_NAMED: Final = re.compile(r"(?P<stem>.*?)(?:_at|_depth)?[_@/](?P<depth>\d{1,4})")
CURVES: Final = 6


def depth_groups(names: tuple[str, ...]) -> dict[str, dict[int, str]]:
    """Return the names that say a depth, by what they have in common; a stem with one depth is no curve.

    >>> depth_groups(("loss", "eval_loss_4", "eval_loss_16", "beta_2"))
    {'eval_loss': {4: 'eval_loss_4', 16: 'eval_loss_16'}}
    """
    groups: dict[str, dict[int, str]] = {}
    for name in names:
        if name not in DESCRIPTIONS and (named := _NAMED.fullmatch(name)):
            groups.setdefault(named["stem"], {})[int(named["depth"])] = name
    return {stem: dict(sorted(members.items())) for stem, members in groups.items() if len(members) > 1}


def depth_curves(held: OpenRun) -> tuple[list[str], list[tuple[str, NDArray[np.float64]]], str]:
    """Return depths, curves by step, and what they are of; the largest group of names counts."""
    groups = depth_groups(held.run.names)
    if not groups:
        return [], [], ""
    stem, names = max(groups.items(), key=lambda item: len(item[1]))
    values = np.stack([held.run[name] for name in names.values()], axis=1)
    rows = np.flatnonzero(~np.isnan(values).all(axis=1))
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(CURVES, len(rows))).astype(int))] if len(rows) else rows
    steps = held.run["step"]
    return [str(depth) for depth in names], [(f"step {steps[row]:,.0f}", values[row]) for row in chosen], stem
