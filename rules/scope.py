"""Which runs a rule is about: what a run says of itself against patterns, as in ``only = { injection = "conc*" }``.

A run says of itself what its writer knew: its model, its configuration, where it ran (`Run.info`). A key is the last
word of such a setting, or several with dots between them: ``injection`` and ``config.model.injection`` are the same
setting of a run of ``loopscope train``. Where several settings end in the same word, the one that is least deep counts.
A pattern is a glob: ``*`` stands for any letters, ``?`` for one; ``true`` and ``false`` are written so, numbers as
Python writes them.

Not covered: conditions on numbers ("wider than 512"); an expression asks the recorded series.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

MOST_KEYS: Final = 32
LONGEST_KEY: Final = 200
LONGEST_PATTERN: Final = 200
_LONGEST_VALUE: Final = 1000
_DEEPEST: Final = 6
_MOST_SETTINGS: Final = 2000


@dataclass(frozen=True, slots=True)
class Scope:
    """What a run must say of itself.

    Args:
        patterns: Of each key, patterns of which one must fit.

    >>> scope = Scope.of({"injection": ["add*", "concatenation"], "core_layers": 2})
    >>> said = Said({"config": {"model": {"injection": "addition", "core_layers": 2}}})
    >>> scope.fits(said), Scope.of({"injection": "parcae"}).fits(said), Scope().fits(said)
    ([True, True], [False], [])
    """

    patterns: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @staticmethod
    def of(given: Mapping[str, Any]) -> Scope:
        """Return the scope that a table of a rule file means."""
        return Scope(tuple((key, tuple(_text(each) for each in (several if isinstance(several, list) else [several])))
                           for key, several in given.items()))  # fmt: skip

    def __bool__(self) -> bool:
        return bool(self.patterns)

    def fits(self, said: Said) -> list[bool | None]:
        """Return of each key whether what the run says fits; None where it does not say."""
        return [None if (value := said.find(key)) is None else any(fnmatchcase(value, each) for each in several)
                for key, several in self.patterns]  # fmt: skip


class Said:
    """What a run says of itself.

    Args:
        info: As `Run.info`.
    """

    def __init__(self, info: Mapping[str, Any]) -> None:
        self._settings: dict[str, str] = {}
        for path, value in _leaves(info):
            if len(self._settings) >= _MOST_SETTINGS:
                break
            self._settings[".".join(path)] = _text(value)[:_LONGEST_VALUE]

    def find(self, key: str) -> str | None:
        """Return the setting of a key, None where the run does not have it."""
        if key in self._settings:
            return self._settings[key]
        ending = [name for name in self._settings if name.endswith(f".{key}")]
        return self._settings[min(ending, key=lambda name: name.count("."))] if ending else None


def why_not(only: Scope, besides: Scope, said: Said) -> str:
    """Return why a rule is not about a run; empty where it is.

    Args:
        only: What the run must say.
        besides: What it must not say.
        said: What it says.

    >>> why_not(Scope.of({"injection": "parcae"}), Scope(), Said({"injection": "addition"}))
    'only for injection = parcae; this run has addition'
    """
    for (key, several), fits in zip(only.patterns, only.fits(said), strict=True):
        if not fits:
            has = "does not say" if fits is None else f"has {said.find(key)}"
            return f"only for {key} = {' or '.join(several)}; this run {has}"
    for (key, _), fits in zip(besides.patterns, besides.fits(said), strict=True):
        if fits:
            return f"not for {key} = {said.find(key)}"
    return ""


def _leaves(info: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield what is no table in nested tables, with the keys that lead to it."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), info)]
    while waiting:
        path, value = waiting.pop(0)
        if isinstance(value, Mapping) and len(path) < _DEEPEST:
            waiting += [((*path, str(key)[:LONGEST_KEY]), inner) for key, inner in list(value.items())[:_MOST_SETTINGS]]
        elif isinstance(value, str | int | float) and path:
            yield path, value


def _text(value: Any) -> str:
    """Return a setting as a pattern sees it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
