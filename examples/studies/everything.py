"""Every study of docs/evidence.md, one after the other: trains, draws, tabulates, and compares with what is committed.

    python examples/studies/everything.py runs/evidence              # or: make evidence
    python examples/studies/everything.py runs/evidence --only radius
    python examples/studies/everything.py runs/evidence --accept     # what was measured becomes what docs/ shows

What is finished in the folder is kept, so that the same command goes on after a kill. A number *agrees* with the
committed one where their intervals overlap; the exit code is 1 where one does not, with a line for each.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import resource
import sys
import time
from pathlib import Path

from study import HERE, Interval, Result, write

# Runs are trained before others read them. Beside each study stand the processor seconds it takes, about.
STUDIES = {
    "learning_rates": 560,
    "table1": 15,
    "loss_and_state": 5,
    "radius": 5,
    "beyond_radius": 5,
    "held_radius": 100,
    "depth_sampling": 150,
    "prelude_norm": 220,
    "test_depth": 400,
    "depth_in_training": 5,
    "rounding": 280,
}
DOCS = HERE.parents[1] / "docs"
COMMITTED = DOCS / "evidence"
PAGE = DOCS / "evidence.md"


def disagreements(result: Result, committed: Path) -> list[str]:
    """Return a line for each number whose interval does not meet the committed one, or that is there only once."""
    if not committed.exists():
        return [f"{committed.stem}: nothing is committed to compare with (--accept)"]
    known = {what: Interval(*map(float, three)) for what, three in json.loads(committed.read_text("utf-8")).items()}
    lines = [f"{committed.stem}: {what}: only committed" for what in known if what not in result.numbers]
    for what, number in result.numbers.items():
        if what not in known:
            lines.append(f"{committed.stem}: {what}: not committed")
        elif not same(number, known[what]):
            lines.append(f"{committed.stem}: {what} is {number.text('.3g')}, committed {known[what].text('.3g')}")
    return lines


def same(number: Interval, known: Interval) -> bool:
    """Return whether two numbers agree; one that could not be measured agrees with another such."""
    if number.value != number.value or known.value != known.value:
        return number.value != number.value and known.value != known.value
    return number.agrees(known)


def accept(name: str, result: Result, folder: Path) -> None:
    """Make a result the committed one: its numbers, its figures, and its tables in the page."""
    COMMITTED.mkdir(exist_ok=True)
    numbers = {what: [str(part) for part in (each.value, each.low, each.high)] for what, each in result.numbers.items()}
    text = json.dumps(numbers, indent=1, ensure_ascii=False)
    (COMMITTED / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    for table, text in result.tables.items():
        page = with_block(page, f"table {table}", text)
    for figure in result.figures:
        (COMMITTED / f"{figure}.svg").write_bytes((folder / f"{figure}.svg").read_bytes())
        page = with_block(page, f"figure {figure}", f"![{{}}](evidence/{figure}.svg)")
    PAGE.write_text(page, encoding="utf-8")


def with_block(page: str, name: str, text: str) -> str:
    """Return the page with a block replaced; ``{}`` in the text stands for what its mark says after a colon.

    >>> with_block("<!-- figure a: of b -->old<!-- end -->", "figure a", "![{}](a.svg)")
    '<!-- figure a: of b -->\\n\\n![of b](a.svg)\\n\\n<!-- end -->'
    """
    marks = re.compile(rf"(<!-- {re.escape(name)}(?:: (.*?))? -->).*?(<!-- end -->)", re.S)
    if len(marks.findall(page)) != 1:
        raise SystemExit(f"{PAGE.name}: expected one block <!-- {name} -->")
    return marks.sub(lambda mark: f"{mark[1]}\n\n{text.replace('{}', mark[2] or '')}\n\n{mark[3]}", page)


def said(seconds: float) -> str:
    """Return a time in minutes."""
    return f"about {max(round(seconds / 60), 1)} min"


def main() -> int:
    """Run the studies that are asked for; return 1 where a number left its committed interval."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/evidence"))
    parser.add_argument("--jobs", type=int, default=0, help="runs trained at the same time; 0: one per processor")
    parser.add_argument("--only", choices=list(STUDIES), nargs="+", help="some of the studies")
    parser.add_argument("--accept", action="store_true", help="commit what was measured to docs/")
    options = parser.parse_args()
    names = options.only or list(STUDIES)
    began, differ = time.monotonic(), []
    for number, name in enumerate(names, start=1):
        done, left = (sum(STUDIES[each] for each in part) for part in (names[: number - 1], names[number - 1 :]))
        rate = (time.monotonic() - began) / done if done else 1.0 / min(options.jobs or 2, 2)
        print(f"{number} of {len(names)}: {name}, {said(left * rate)} left", file=sys.stderr, flush=True)
        result: Result = importlib.import_module(name).study(options.folder, options.jobs)
        write(result, options.folder)
        for text in result.tables.values():
            print(f"{text}\n", flush=True)
        if options.accept:
            accept(name, result, options.folder)
        else:
            differ += disagreements(result, COMMITTED / f"{name}.json")
    used = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"{len(names)} studies, {(time.monotonic() - began) / 60:.1f} min, {used / 60:.1f} min of processor time")
    for line in differ:
        print(line)
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
