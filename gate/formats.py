"""The report formats by name. Adding one is adding a file and a line here.

Not covered: the dashboard's report, which draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Final, Literal, get_args

from .result import GateResult

Format = Literal["text", "json", "markdown", "github", "junit", "sarif", "gitlab"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)
_HOMES: Final[dict[str, tuple[str, str]]] = {
    "text": ("text", "as_text"),
    "json": ("json_report", "as_json"),
    "markdown": ("markdown", "as_markdown"),
    "github": ("github", "as_annotations"),
    "junit": ("junit", "as_junit"),
    "sarif": ("sarif", "as_sarif"),
    "gitlab": ("gitlab", "as_gitlab"),
}
_BY_ENDING: Final[dict[str, Format]] = {
    ".txt": "text",
    ".json": "json",
    ".md": "markdown",
    ".xml": "junit",
    ".sarif": "sarif",
}


def render(result: GateResult, name: Format) -> str:
    """Return the result in a format; loads what that format needs and nothing else."""
    module, function = _HOMES[name]
    write: Callable[[GateResult], str] = getattr(import_module(f".{module}", __package__), function)
    return write(result)


def target(text: str) -> tuple[Format, Path]:
    """Return the format and the file of ``--report FILE`` or ``--report FORMAT:FILE``.

    Raises:
        ValueError: The file's ending does not give the format, or there is no such format.

    >>> target("out/gate.sarif")[0], target("gitlab:quality.json")[0]
    ('sarif', 'gitlab')
    """
    name, colon, rest = text.partition(":")
    if colon and name in FORMATS:
        return name, Path(rest)
    path = Path(text)
    if path.suffix in _BY_ENDING:
        return _BY_ENDING[path.suffix], path
    raise ValueError(f"--report {text}: say the format, as {FORMATS[4]}:{text}; there are {', '.join(FORMATS)}")


def write_reports(result: GateResult, targets: Sequence[str]) -> list[Path]:
    """Write a report to every file that is asked for and return the files.

    Raises:
        OSError: A file cannot be written.
    """
    wanted = [target(text) for text in targets]
    for name, path in wanted:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(result, name).rstrip("\n") + "\n", encoding="utf-8")
    return [path for _, path in wanted]


def default_format(environment: Mapping[str, str]) -> Format:
    """Return the format that suits where the gate runs: annotations in GitHub Actions, text elsewhere.

    >>> default_format({"GITHUB_ACTIONS": "true"}), default_format({})
    ('github', 'text')
    """
    return "github" if environment.get("GITHUB_ACTIONS") == "true" else "text"
