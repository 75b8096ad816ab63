"""The table of thresholds in docs/theory.md says what the code uses."""

import importlib
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent.parent / "docs" / "theory.md"
HOMES = {
    "regime": "dynamics.regime",
    "full_loop": "dynamics.loop.full_loop",
    "regimes": "rules.regimes",
    "completeness": "rules.completeness",
}
ROW = re.compile(r"^\| (?P<what>[^|]+) \| (?P<values>[^|]+) \| `(?P<home>\w+)\.(?P<name>[A-Z_]+)` \|", re.M)
ROWS = [match.groupdict() for match in ROW.finditer(PAGE.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])
def test_a_threshold_has_the_value_that_the_page_says(row: dict[str, str]) -> None:
    home = HOMES.get(row["home"], f"dynamics.trajectory.{row['home']}")
    value = getattr(importlib.import_module(f"loopscope.{home}"), row["name"])
    numbers = [float(text) for text in row["values"].split(",")]
    assert numbers == pytest.approx(value if isinstance(value, tuple) else [value], rel=1e-3), row["what"]


def test_every_threshold_of_the_laws_is_in_the_table() -> None:
    said = {row["name"] for row in ROWS}
    assert len(ROWS) == len(said) > 35
    for home, counts in (("trajectory", {"AHEAD"}), ("direction", set()), ("regime", set())):
        module = importlib.import_module(f"loopscope.{HOMES.get(home, f'dynamics.trajectory.{home}')}")
        source = Path(str(module.__file__)).read_text(encoding="utf-8")
        own = set(re.findall(r"^([A-Z][A-Z_]+): Final = \(?-?\d", source, re.M)) - counts
        assert own <= said, own - said
