"""The ``describe`` command: where the loop of a user's model is."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from ..loops.description import describe as describe_model
from .output import say


def describe(factory: str) -> int:
    """Print where the loop of a model is, and return the exit code: 1 where there is none.

    Args:
        factory: ``MODULE:FUNCTION``; the module is imported from the working directory too.

    Raises:
        ValueError: There is no such function.
    """
    module, _, name = factory.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        build = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{factory}: {error}; expected MODULE:FACTORY, as my_project.models:build") from None
    description = describe_model(build())
    say(str(description))
    return 1 if description.site is None else 0
