"""The statement that a line is in, and the lines behind which it has run."""

from pathlib import Path

import pytest
from loopscope.loops.source_lines import names_assigned, statement_at, whole

TEXT = """def f(x, y):
    for _ in range(3):
        x = g(
            x,
        )
        if x:
            try:
                y = x
            finally:
                pass
        y += 1
    return x
"""


@pytest.mark.parametrize(
    ("line", "names", "lines"), [(4, {"x"}, (3, 5)), (8, {"y"}, (6, 10)), (11, {"y"}, (11, 11)), (12, set(), (12, 12))]
)
def test_the_statement_around_a_line(tmp_path: Path, line: int, names: set[str], lines: tuple[int, int]) -> None:
    path = tmp_path / "a.py"
    path.write_text(TEXT)
    statement = statement_at(str(path), line)
    assert statement is not None and names_assigned(statement) == names
    assert whole(str(path), statement) == lines


def test_of_code_without_source_nothing_is_known(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def f(:\n")
    assert statement_at("<string>", 1) is None and statement_at(str(tmp_path / "a.py"), 1) is None
