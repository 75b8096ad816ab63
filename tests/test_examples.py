"""Examples run, the theory page runs, and what it shows and quotes is what its code made."""

import doctest
import importlib
import json
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import loopscope
import pytest
from loopscope.gate import check as gate
from loopscope.gate import result as codes
from loopscope.rules.rule_files import load_rules

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES, DOCS = ROOT / "examples", ROOT / "docs"
THEORY = (DOCS / "theory.md").read_text(encoding="utf-8")
GATE = (EXAMPLES / "gate_in_ci.md").read_text(encoding="utf-8")
FIGURE = re.compile(r"!\[[^\]]+\]\(figures/([\w-]+\.svg)\)")
LARGEST_FIGURE = 150_000  # bytes; the page should open at once

Example = Callable[..., str]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Example:
    """Runs an example as a script in an empty folder and returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *words])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    """The module that makes the figures."""
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module("make_figures")
    finally:
        sys.path.remove(str(DOCS))


# Examples


def test_a_model_of_ones_own_is_watched_and_passes_the_gate(example: Example, tmp_path: Path) -> None:
    printed = example("watch_your_run.py", "--steps", "100")
    with loopscope.open_run(tmp_path / "runs/mine.h5") as run:
        assert run.state == "finished"
        assert len(run) == 100
        assert run["loss"][-1] < 0.7 * run["loss"][0]  # the task can be learned: chance is ln 31
        assert loopscope.diagnose(run).regimes == {"lti": "stable", "loop": "unknown", "trajectory": "stable"}
        assert loopscope.diagnose(run).summary in printed
    assert gate.check_runs([tmp_path / "runs/mine.h5"]).exit_code == 0


def test_the_same_model_at_a_hot_rate_fails_the_gate(example: Example, tmp_path: Path) -> None:
    printed = example("watch_your_run.py", "--steps", "60", "--lr", "0.1")
    assert "LS020 injection-unstable" in printed
    assert gate.check_runs([tmp_path / "runs/mine.h5"]).exit_code == 1


def test_a_checkpoint_is_analysed_with_the_status_of_every_number(example: Example) -> None:
    printed = example("analyse_checkpoint.py")
    assert re.search(r"proven bounds\s+0\.\d+ \[0\.\d+, 0\.\d+\] .* -> certified stable", printed)
    assert re.search(r"LTI stable \(ρ 0\.\d+, certified\) \| full loop ", printed)
    assert printed.count(" nats\n") == 6  # one loss for each of six depths


def test_commands_of_the_gate_example_exist() -> None:
    from loopscope.cli import app
    from typer.main import get_command

    commands = get_command(app).commands  # type: ignore[attr-defined]
    used = [line.split("run: ", 1)[1] for line in GATE.splitlines() if "run: loopscope" in line]
    assert used
    for line in used:
        words = shlex.split(line.split("|")[0])
        known = {option for parameter in commands[words[1]].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known


def test_rules_of_the_gate_example_are_rules(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", GATE, re.S)
    path = tmp_path / "loopscope.toml"
    path.write_text(text, encoding="utf-8")
    rules = {rule.id: rule for rule in load_rules(path)}
    for written in tomllib.loads(text)["rule"]:
        assert rules[written["id"]].hold == written["for"]
    assert rules["MINE1"].severity == "warning"
    assert rules["LS020"].severity == "error"  # what is not named stays as shipped


def test_exit_codes_of_the_gate_example_are_those_of_the_gate() -> None:
    from loopscope import cli

    said = dict(re.findall(r"^\| (\d) \| (.*?) \|", GATE, re.M))
    assert sorted(said) == list("012345")
    expected = {codes.PASSED: "no rule", codes.FAILED: "a rule fired", cli.USAGE: "the command or the rule file",
                codes.INTERNAL: "loopscope itself", codes.UNREADABLE: "cannot be read",
                codes.NOTHING: "was not"}  # fmt: skip
    for code, words in expected.items():
        assert words in said[str(code)]


# The theory page


def test_the_code_of_the_theory_page_runs() -> None:
    """In the order of the page, names carried on from block to block, as a reader would type them."""
    names: dict[str, object] = {}
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(optionflags=options)
    blocks = list(re.finditer(r"```python\n(.*?)```", THEORY, re.S))
    assert len(blocks) > 15
    for block in blocks:
        assert block[1].startswith(">>> "), "a block that no test runs"
        line = THEORY.count("\n", 0, block.start()) + 1
        test = parser.get_doctest(block[1], names, "theory.md", str(DOCS / "theory.md"), line)
        runner.run(test, clear_globs=False)
        names = test.globs
    assert runner.summarize(verbose=False).failed == 0


def test_every_figure_is_there_shown_once_and_small(figures: ModuleType) -> None:
    shown = FIGURE.findall(THEORY)
    made = {f"{name}.svg" for name in (*figures.SMALL, *figures.TRAINED)}
    assert sorted(shown) == sorted(made) == sorted(path.name for path in (DOCS / "figures").glob("*.svg"))
    for name in shown:
        content = (DOCS / "figures" / name).read_bytes()
        assert content.startswith(b"<svg")
        assert len(content) < LARGEST_FIGURE


def test_figures_of_small_systems_can_be_drawn_again(figures: ModuleType) -> None:
    for name, make in figures.SMALL.items():
        chart = make()
        drawn = (DOCS / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        texts = [note.text for note in chart.layout.annotations]
        texts += [trace.name for trace in chart.data if trace.showlegend is not False and trace.name]
        assert len(texts) > 2
        assert [text for text in texts if text not in drawn] == []  # legends hold computed numbers
        for axis in (*chart.select_xaxes(), *chart.select_yaxes()):
            assert axis.title.text, f"{name}: an axis without a name"


def test_numbers_of_trained_models_are_quoted_as_measured() -> None:
    numbers = json.loads((DOCS / "figures" / "numbers.json").read_text(encoding="utf-8"))
    text = " ".join(THEORY.split())
    assert numbers
    assert {what: number for what, number in numbers.items() if number not in text} == {}


def test_links_of_the_theory_page_lead_somewhere() -> None:
    headings = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", THEORY, re.M)}
    anchors = re.findall(r"\]\(#([^)]+)\)", THEORY)
    files = [link for link in re.findall(r"\]\(([^)#]+)\)", THEORY) if "://" not in link]
    assert anchors and files
    assert [anchor for anchor in anchors if anchor not in headings] == []
    assert [link for link in files if not (DOCS / link).exists()] == []


def test_the_table_of_quantities_names_functions_and_columns_that_exist() -> None:
    from loopscope import dynamics
    from loopscope.runfile import layout

    table = THEORY[THEORY.index("## 13.") : THEORY.index("## Not covered")]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    columns = {*layout.STEP_COLUMNS, *layout.LOOP_COLUMNS, "residual_ratio", "growth_ratio"}
    for row in rows:
        functions, names = (re.findall(r"`([\w.]+)`", cell) for cell in row[3:5])
        assert set(names) <= columns, row
        for function in functions:
            if function.startswith("."):  # a further method of the class named before it
                function = functions[0].rpartition(".")[0] + function
            named: object = dynamics
            for part in function.split("."):
                named = getattr(named, part)
            assert callable(named)
