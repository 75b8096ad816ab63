"""The words of the project: plain ones in docstrings, messages and documents, and names that say what a value is.

CONTRIBUTING.md says what plain means. This keeps out the turns that came back most often; it cannot judge a sentence.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = sorted(p.parent.name for p in ROOT.glob("*/__init__.py"))
CODE = sorted(p for name in PACKAGES for p in (ROOT / name).rglob("*.py")) + sorted(ROOT.glob("*.py"))
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

# Passives that hide who does it ("it is said once"), and turns that no course of English teaches.
ROUNDABOUT = re.compile(
    r"\b(is|are|was|were) (said|told(?! apart))\b|\bto be said\b|\bbe had\b|\bharmless (when|the)\b"
)


def roundabout(text: str) -> list[str]:
    """Return the lines with such a turn; a turn may run over the end of a line."""
    joined = re.sub(r"\s+", " ", text)
    return [joined[max(0, m.start() - 40) : m.end() + 20] for m in ROUNDABOUT.finditer(joined)]


def unnamed(text: str) -> list[int]:
    """Return the lines on which a variable is called ``found``, which says of a value only that there is one."""
    bound = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name | ast.arg)]
    names = [(node.id if isinstance(node, ast.Name) else node.arg, node.lineno) for node in bound]
    return [line for name, line in names if name == "found"]


@pytest.mark.parametrize("line", ["it is said once", "what is\nto be said of it", "numbers that cannot be had"])
def test_a_roundabout_sentence_is_noticed(line: str) -> None:
    assert roundabout(line)
    assert not roundabout("three regimes are told apart, and the report says which")


def test_a_name_without_meaning_is_noticed() -> None:
    assert unnamed("def f(found):\n    return found") == [1, 2]
    assert not unnamed("site.found\nreport(found=1)")  # a field and a keyword that have been public


def test_sentences_are_plain() -> None:
    texts = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in [*CODE, *DOCUMENTS]}
    assert len(texts) > 200
    assert {str(path): turns for path, text in texts.items() if (turns := roundabout(text))} == {}


def test_names_say_what_a_value_is() -> None:
    # A dataclass field is a name that others use, and stays: `LoopSite.found`, `RepairReport.found`.
    public = {Path("loops/site.py"): 1, Path("runfile/disk/repair.py"): 1}
    lines = {path.relative_to(ROOT): unnamed(path.read_text(encoding="utf-8")) for path in CODE}
    assert {str(path): at for path, at in lines.items() if len(at) > public.get(path, 0)} == {}
