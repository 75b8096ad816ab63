"""The report is one file: nothing is loaded, text of a run file is text, figures are those of the dashboard."""

import json
import re
from pathlib import Path

import pytest
from loopscope.commands.report import write_report
from loopscope.dashboard.example import example_runs
from loopscope.dashboard.report import report_html
from loopscope.runfile.layout import RunFileError

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


def figures(document: str) -> list[dict]:
    scripts = re.findall(r'<script type="application/json" data-place="[^"]*">(.*?)</script>', document, re.DOTALL)
    return [json.loads(one)["figure"] for one in scripts]


def test_an_autopsy_tells_the_verdict_its_causes_and_every_plot_there_is(tmp_path, write_run):
    document = report_html([write_run(tmp_path / "a.h5", start=0.65, end=2.6, study=True)])
    assert (
        "Unstable since step" in document
        and "in the order in which it began" in document
        and "where it began" in document
    )
    kinds = {trace["type"] for chart in figures(document) for trace in chart["data"]}
    assert kinds == {"scatter", "heatmap"} and len(figures(document)) > 10
    assert document.index("Training loss") < document.index("Eigenvalues") < document.index("Configuration")


def test_a_comparison_has_the_worst_first_and_a_line_a_run(tmp_path, write_run):
    good = write_run(tmp_path / "good.h5", start=0.5, end=0.6, config={"lr": 0.1})
    bad = write_run(tmp_path / "bad.h5", start=0.65, end=2.6, config={"lr": 0.5})
    document = report_html([good, bad])
    body = document.split("<body>")[1]
    assert body.index("bad") < body.index("good") and "Configuration that differs" in body
    assert [trace["name"] for trace in figures(document)[1]["data"]] == ["bad", "good"]  # after the map


def test_nothing_is_loaded_and_nothing_is_said_of_this_machine(tmp_path, write_run):
    document = report_html([write_run(tmp_path / "a.h5")])
    assert "default-src 'none'" in document
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=", document.split("<script>")[0])
    assert str(tmp_path) not in document


def test_text_of_a_run_is_never_markup(tmp_path, write_run):
    hostile = write_run(tmp_path / "a.h5", end=1.6, model=HOSTILE, config={"x": HOSTILE, HOSTILE: 1})
    for document in (report_html([hostile]), report_html([hostile, write_run(tmp_path / "b.h5")])):
        assert "<img src=x" not in document and "</script><script>alert" not in document


def test_the_command_replaces_a_file_only_when_told_to(tmp_path, write_run):
    run, out = write_run(tmp_path / "a.h5"), tmp_path / "a.html"
    assert "1 run" in write_report([run], out)
    with pytest.raises(FileExistsError, match="--force"):
        write_report([run], out)
    write_report([run], out, force=True)
    with pytest.raises(RunFileError):
        write_report([tmp_path / "none.h5"], tmp_path / "b.html")


def test_the_recorded_runs_are_small_and_tell_the_story_and_nothing_of_a_machine():
    from loopscope.dashboard.opened import OpenRun

    told = {}
    for path in example_runs().glob("*.h5"):
        held = OpenRun(path)
        story = held.story()
        assert story is not None and held.ending().state == "finished"
        told[path.stem] = (story.verdict, story.loss_step)
        assert held.run.info["host"] == "example" and held.run.info["command"][0] == "loopscope"
        assert not any(f'"/{root}/' in json.dumps(held.run.info) for root in ("work", "root", "home", "tmp"))
        held.close()
    assert sum(path.stat().st_size for path in Path(example_runs()).glob("*.h5")) < 4e6
    hot = {name: verdict for name, (verdict, _) in told.items() if name.startswith("concatenation-lr")}
    assert hot == {"concatenation-lr0.003": "stable", "concatenation-lr0.01": "stable",
                   "concatenation-lr0.03": "unstable", "concatenation-lr0.05": "unstable"}  # fmt: skip
    assert told["parcae-lr0.05"][0] == "stable" and told["addition-lr0.05"][0] == "marginal"
    assert told["concatenation-lr0.05"][1] is not None  # the loss shows it, long after


def test_a_report_on_the_folder_of_a_sweep_shows_its_map_and_its_boundary(tmp_path):
    told = write_report([example_runs()], tmp_path / "a.html")
    document = (tmp_path / "a.html").read_text(encoding="utf-8")
    count = len(list(example_runs().glob("*.h5")))
    assert f"{count} runs" in told and f"{count} runs compared" in document
    assert "concatenation, pre norm becomes unstable between 0.01 (stable) and 0.03 (unstable)" in document
    assert "<th>lr 0.05</th>" in document
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no run file"):
        write_report([tmp_path / "empty"], tmp_path / "b.html")
