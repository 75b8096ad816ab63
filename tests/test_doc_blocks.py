"""Every block of Python or shell in the documentation runs, or says above it why it is not run.

A block that is not run has a line ``<!-- not run: reason -->`` above it. Blocks of a page run in their order and share
their names, as a reader would type them; what they take for granted (a model, a loader) is given here.
"""

from __future__ import annotations

import doctest
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += sorted((ROOT / "examples").rglob("*.md"))
FENCE = re.compile(r"(?:^<!-- not run: (.+?) -->\n)?^```(python|bash|sh|shell|console)\n(.*?)^```", re.S | re.M)


@dataclass(frozen=True)
class Block:
    """One block: its language, its text, why it is not run (empty: it is), and its first line on the page."""

    language: str
    text: str
    reason: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(m[2], m[3], m[1] or "", text.count("\n", 0, m.start()) + 1) for m in FENCE.finditer(text)]


class Looped(nn.Module):
    """A model of somebody else: it takes tokens and returns its loss."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed, self.adapter = nn.Embedding(32, width), nn.Linear(2 * width, width)
        self.core = nn.ModuleList([nn.Linear(width, width)])
        self.ln_f, self.head = nn.LayerNorm(width), nn.Linear(width, 32)

    def forward(self, tokens: torch.Tensor, num_loops: int = 4) -> torch.Tensor:
        e = self.embed(tokens)
        h = torch.zeros_like(e)
        for _ in range(num_loops):
            h = self.adapter(torch.cat([h, e], -1))
            h = h + torch.tanh(self.core[0](h))
        return functional.cross_entropy(self.head(self.ln_f(h)).flatten(0, 1), tokens.flatten())


def given(folder: Path) -> dict[str, Any]:
    """What the pages take for granted."""
    torch.manual_seed(0)
    model = Looped()
    loader = [torch.randint(0, 32, (2, 8)) for _ in range(6)]
    (folder / "runs").mkdir(exist_ok=True)
    return {
        "torch": torch,
        "nn": nn,
        "Mapping": Mapping,
        "model": model,
        "loader": loader,
        "tokens": loader[0],
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "norm": 1.0,
        "lr": 0.1,
        "d": 16,
    }


@pytest.mark.parametrize("document", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = given(tmp_path)
    for block in blocks(document):
        if block.reason:
            continue
        if block.language != "python":
            run_in_a_shell(block, document)
        elif block.text.startswith(">>>"):
            run_as_a_session(block, document, names)
        else:
            exec(compile("\n" * block.line + block.text, str(document), "exec"), names)  # noqa: S102 - our own pages


def run_as_a_session(block: Block, page: Path, names: dict[str, Any]) -> None:
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner = doctest.DocTestRunner(optionflags=options)
    test = doctest.DocTestParser().get_doctest(block.text, names, page.name, str(page), block.line)
    runner.run(test, clear_globs=False)
    names.update(test.globs)
    assert runner.summarize(verbose=False).failed == 0


def run_in_a_shell(block: Block, page: Path) -> None:
    """Run the lines of a block one after another; a line that says ``# exit 1`` must exit so."""
    for line in block.text.splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        assert words[0] == "loopscope", f"{page.name}: a test cannot run {line!r}: say why above the block"
        expected = re.search(r"# exit (\d)", line)
        done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, timeout=200)
        assert done.returncode == (int(expected[1]) if expected else 0), (line, done.stdout, done.stderr)


def test_a_reason_is_a_reason() -> None:
    reasons = [block.reason for page in PAGES for block in blocks(page) if block.reason]
    assert reasons and all(len(reason.split()) >= 4 for reason in reasons)
