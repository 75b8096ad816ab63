"""The configuration that a run was started with, as the gate reads it: bounded, in words of JSON, without the seed.

Not covered: what the settings mean; the dashboard reads the usual names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

from ..runfile.nested import flat

MOST_SETTINGS: Final = 500
LONGEST: Final = 500  # characters of a text
OF_ONE_RUN: Final = ("seed", "out", "path", "device", "host", "name", "output_dir", "run_name", "resume", "overwrite")
"""Last words of settings that may differ between runs of one configuration."""


def settings_of(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run by dotted names; numbers that are not finite are texts, long texts are cut."""
    settings: dict[str, Any] = {}
    for name, value in flat(info.get("config")):
        if len(settings) >= MOST_SETTINGS:
            break
        settings[name[:LONGEST]] = _json(value)
    return settings


def configuration_of(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what runs of one configuration have in common: their settings but for the seed and places, and the model.

    >>> configuration_of({"model": "Loop", "parameters": 10, "config": {"lr": 0.1, "seed": 3}})
    {'model': 'Loop', 'parameters': 10, 'lr': 0.1}
    """
    known = {name: _json(info[name]) for name in ("model", "parameters", "log") if info.get(name) is not None}
    settings = settings_of(info)
    return known | {name: settings[name] for name in settings if name.rpartition(".")[2] not in OF_ONE_RUN}


def _json(value: Any) -> Any:
    """Return a value as JSON can hold it, bounded."""
    if value is None or isinstance(value, bool | int):
        return value if value is None or isinstance(value, bool) or abs(value) < 2**63 else str(value)[:LONGEST]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return value[:LONGEST]
    try:
        return json.dumps(value)[:LONGEST]
    except (TypeError, ValueError, RecursionError):
        return str(type(value).__name__)
