"""The file of a sweep: which cells it describes, and the message of a mistake in it."""

from pathlib import Path

import pytest
from loopscope.sweeps.grid import cells, load_sweep


def test_a_grid_is_every_combination_and_reaches_every_table() -> None:
    table = {
        "preset": "demo",
        "train": {"steps": 7},
        "grid": {"injection": ["addition", "parcae"], "model.width": [32, 64], "train.batch_size": [4], "seed": [0, 3]},
    }
    made = cells(table)
    assert len(made) == 8 and len({cell.name for cell in made}) == 8
    last = made[-1].run
    assert (last.looped.injection, last.looped.width, last.train_config().batch_size, last.seed) == ("parcae", 64, 4, 3)
    assert all(cell.run.train_config().steps == 7 for cell in made)


def test_several_grids_add_up() -> None:
    two = [{"injection": ["concatenation"], "norm": ["pre", "sandwich"]}, {"injection": ["addition", "parcae"]}]
    assert [cell.name for cell in cells({"grid": two})] == [
        "concatenation-pre", "concatenation-sandwich", "addition", "parcae",
    ]  # fmt: skip


def test_draws_are_the_same_every_time_and_within_their_ranges() -> None:
    table = {"random": {"draws": 30, "lr": {"low": 1e-3, "high": 1e-1, "scale": "log"}, "norm": ["pre", "sandwich"]}}
    made = cells(table)
    rates = [cell.run.train_config().lr for cell in made]
    assert [cell.values for cell in made] == [cell.values for cell in cells(table)]
    assert all(1e-3 <= rate <= 1e-1 for rate in rates) and sum(rate < 1e-2 for rate in rates) > 5
    assert {cell.run.looped.norm for cell in made} == {"pre", "sandwich"}
    assert [cell.run.seed for cell in made] == list(range(30))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("preset = 'demo'", r"expected a table \[grid\] or \[random\]"),
        ("[grid]\nrate = [0.1]", "rate: not a field of a run"),
        ("[grid]\nlr = 0.1", r"grid.lr: expected a list of values, found 0.1"),
        ("[grid]\nlr = []", r"grid.lr: expected a list of values"),
        ("[grid]\nlr = [0.1, -1.0]", "lr: expected a positive number, found -1.0"),
        ("[grid]\nlr = [0.1, 0.1]", "two cells are the same run: lr0.1"),
        ("[grid]\n'model.nothing' = [1]", "model.nothing: not a field"),
        ("preset = 'no'\n[grid]\nlr = [0.1]", "preset: expected one of"),
        ("[random]\nlr = [0.1]", "random.draws: expected a whole number"),
        ("[random]\ndraws = 3\nlr = { low = 0.0, high = 1.0, scale = 'log' }", "random.lr: expected a list"),
        ("[grid]\nlr = [0.1]\n[other]\nx = 1", "other: not a key of a sweep"),
        ("[grid", "grid.toml: "),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=said) as refused:
        load_sweep(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_a_grid_that_would_never_end_is_refused_before_it_is_built() -> None:
    with pytest.raises(ValueError, match="at most 100000 cells"):
        cells({"grid": {"seed": list(range(1000)), "train.steps": list(range(1, 1001))}})
