"""Every report format: valid by its schema, safe whatever text a file holds, within its limits."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from junitparser import JUnitXml
from loopscope.gate.check import check_runs
from loopscope.gate.formats import FORMATS, render, target, write_reports
from loopscope.gate.github import LARGEST_SUMMARY, artifacts_of, publish
from loopscope.gate.markdown import as_markdown
from loopscope.gate.result import GateResult, RunCheck
from loopscope.gate.sparkline import sparkline
from loopscope.rules.diagnosis import Diagnosis
from loopscope.rules.findings import Finding, Judgement
from loopscope.rules.risk import Part, Risk
from loopscope.rules.rule_files import load_rules
from loopscope.runfile.ending import Ending
from sarif_pydantic import Sarif

SCHEMA = Path(__file__).parents[2] / "gate" / "check.schema.json"
HOSTILE = [
    "\x1b]0;owned\x07\x1b[2J",
    "first\n::error file=a.py::forged\n::stop-commands::x",
    "PASS  runs/a.h5\nPASS",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "[click](javascript:alert(1)) | **bold** `code` @somebody #1 http://evil.example",
    "]]><failure/> &amp; \x00\x08\ufffe",
    "##[error]forged ##vso[task.complete]",
    "a\u202eb\u2028c",
]


def finding(number: int = 0, severity: str = "error", text: str = "too large", **more: object) -> Finding:
    step = more.pop("step", number)
    return Finding(
        f"LS{number:03d}", "some-rule", severity, step, 0, 2.0, math.inf, text, text, 1, **more  # type: ignore[arg-type]
    )  # fmt: skip


def run_check(findings: list[Finding], path: str = "runs/a.h5", summary: str = "It grows.") -> RunCheck:
    regimes = dict.fromkeys(("lti", "loop", "trajectory"), "unstable")
    judgements = [
        Judgement("LS001", "non-finite", "error", "judged", 50),
        Judgement("LS020", "injection-unstable", "error", "not applicable", 0, "no learned A"),
        Judgement("LS030", "state-explosion", "error", "no data", 0, summary),
    ]
    end = Ending("finished", "", 49, None, "")
    risk = Risk(0.9, "loop", 49, (Part("loop", 4.0, 1.0, summary),), f"Risk 0.90 of being lost: {summary}")
    verdict = Diagnosis(regimes, "unstable", 1.3, summary, findings, judgements, end, 50, risk)  # type: ignore[arg-type]
    return RunCheck(Path(path), verdict, trends={"loss": sparkline([3.0, 2.0, 1.0])})


def result_of(*runs: RunCheck) -> GateResult:
    return GateResult(list(runs), "error", tuple(load_rules()))


def hostile() -> GateResult:
    runs = [run_check([finding(7, text=text)], f"runs/{number}{text}", text) for number, text in enumerate(HOSTILE)]
    unread = [RunCheck(Path(HOSTILE[0]), None, HOSTILE[1]), RunCheck(Path("b"), None, HOSTILE[2], internal=True)]
    return result_of(*runs, *unread)


@pytest.fixture
def many() -> GateResult:
    findings = [finding(n, ("error", "warning", "note")[n % 3], "ρ(A̅) is too large " * 8) for n in range(1200)]
    return result_of(run_check(findings), *(run_check([finding(3)], f"runs/{n}.h5") for n in range(400)))


def test_json_keeps_to_its_published_schema(many: GateResult) -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    for result in (many, hostile(), result_of()):
        jsonschema.validate(json.loads(render(result, "json")), schema)
    broken = json.loads(render(many, "json")) | {"exit_code": 2}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)


def test_the_gate_of_a_recorded_run_keeps_to_the_schema(write_run: Callable[..., Path], loop_rows: Callable) -> None:
    path = write_run(loss=[3.0, 2.5, 2.0], a_bar_radius=[1.2] * 3, loops=loop_rows(0.5))
    jsonschema.validate(json.loads(render(check_runs([path]), "json")), json.loads(SCHEMA.read_text()))


def test_sarif_is_sarif_and_points_at_the_rule_of_a_users_file(many: GateResult, tmp_path: Path) -> None:
    for result in (many, hostile(), result_of()):
        Sarif.model_validate_json(render(result, "sarif"))
    rules = tmp_path / "loopscope.toml"
    rules.write_text('[[rule]]\nid = "LS020"\nfor = 5\n\n[[rule]]\nid = "MY1"\nexpr = "loss > 1"\n')
    result = GateResult([run_check([finding(20), Finding("MY1", "my1", "error", 3, 3, 2.0, 1.0, "m", "", 1)])], "error",
                        tuple(load_rules(rules)), rules)  # fmt: skip
    log = json.loads(render(result, "sarif"))["runs"][0]
    places = {each["ruleId"]: each["locations"][0]["physicalLocation"] for each in log["results"]}
    assert places["MY1"]["region"]["startLine"] == 7 and places["MY1"]["artifactLocation"]["uri"].endswith(
        "loopscope.toml"
    )
    assert places["LS020"]["artifactLocation"]["uri"] == "runs/a.h5"  # its expression is the shipped one
    described = {rule["id"]: rule for rule in log["tool"]["driver"]["rules"]}
    assert described["LS020"]["help"]["text"] and described["MY1"]["defaultConfiguration"]["level"] == "error"


def test_junit_is_read_back_with_failures_errors_and_skips(many: GateResult) -> None:
    runs = [
        run_check([finding(1), finding(2, "warning"), finding(3, gap=True)]),
        RunCheck(Path("b.h5"), None, "damaged"),
    ]
    report = JUnitXml.fromstring(render(result_of(*runs), "junit").encode())
    first, second = list(report)
    assert (first.tests, first.failures, first.errors, first.skipped) == (6, 1, 1, 2)
    assert (second.tests, second.errors) == (1, 1)
    assert JUnitXml.fromstring(render(many, "junit").encode()).tests > 1200
    JUnitXml.fromstring(render(hostile(), "junit").encode())


def test_gitlab_has_the_fields_that_gitlab_wants(many: GateResult) -> None:
    for result in (many, hostile()):
        for issue in json.loads(render(result, "gitlab")):
            assert set(issue) == {"description", "check_name", "fingerprint", "severity", "location"}
            assert issue["severity"] in ("info", "minor", "major", "critical", "blocker")
            assert issue["location"]["path"] and issue["location"]["lines"]["begin"] == 1


def test_annotations_are_ten_of_a_kind_and_say_how_many_are_left_out(many: GateResult) -> None:
    lines = render(many, "github").splitlines()
    for kind, count in (("error", 400 + 400), ("warning", 400), ("notice", 400)):
        mine = [line for line in lines if line.startswith(f"::{kind} ")]
        assert len(mine) == 10 and f"{count - 9} more of this severity" in mine[-1]


def test_the_summary_of_a_job_stays_within_its_limit_and_begins_with_the_verdict(
    many: GateResult, tmp_path: Path
) -> None:
    summary, output = tmp_path / "summary", tmp_path / "output"
    summary.write_text("x" * (LARGEST_SUMMARY // 2))
    job = {"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "me/nets", "GITHUB_RUN_ID": "7"}
    environment = {"GITHUB_STEP_SUMMARY": str(summary), "GITHUB_OUTPUT": str(output), **job}
    publish(many, environment, Path("report.html"))
    assert summary.stat().st_size < LARGEST_SUMMARY
    assert "❌ loopscope: fail" in summary.read_text() and "▁" in summary.read_text()
    assert "(https://github.com/me/nets/actions/runs/7#artifacts)" in summary.read_text()
    assert output.read_text().splitlines() == ["verdict=fail", "exit-code=1", "report=report.html"]
    small = as_markdown(many, 5000)
    assert len(small.encode()) <= 5000 + 4000 and "more runs are left out" in small  # the table of runs is always there
    publish(many, {"GITHUB_STEP_SUMMARY": str(tmp_path)})  # a folder: logged, never raised


@pytest.mark.parametrize("name", FORMATS)
def test_no_format_hands_on_what_a_terminal_or_a_log_obeys(name: str) -> None:
    text = render(hostile(), name)  # type: ignore[arg-type]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e\u2028]", text)
    if name != "json":  # quoted there
        lines = text.splitlines()
        if name == "github":
            assert all(re.match(r"::(error|warning|notice) title=[^:]*::|loopscope: ", line) for line in lines)
        else:
            assert not any(line.lstrip().startswith(("::", "##[", "##vso")) for line in lines)
        assert not any(line.startswith("PASS") for line in lines)
    if name == "markdown":
        shown = re.sub(r"<br>", "", text)
        assert (
            "<" not in shown and not re.search(r"(?<!\\)\]\(", shown) and "@s" not in shown and "http://" not in shown
        )


def test_a_report_goes_to_a_file_in_the_format_of_its_name(tmp_path: Path) -> None:
    names = ["a.json", "a.md", "a.xml", "a.sarif", "a.txt", f"gitlab:{tmp_path}/q.json"]
    files = write_reports(
        result_of(run_check([finding()])), [n if ":" in n else str(tmp_path / "x" / n) for n in names]
    )
    assert all(file.stat().st_size > 50 for file in files) and len(files) == 6
    assert json.loads((tmp_path / "q.json").read_text())[0]["check_name"] == "LS000 some-rule"
    with pytest.raises(ValueError, match="say the format"):
        target("report.pdf")


def test_a_sparkline_shows_gaps_and_numbers_that_are_not_finite() -> None:
    assert sparkline([math.nan, 1.0, math.inf, 5.0]) == " ▁×█"
    assert sparkline([2.0] * 100, width=10) == "▁" * 10
    spike = [1.0] * 10_000
    spike[5000] = 9.0
    assert "█" in sparkline(spike)  # one step of ten thousand is seen
    assert sparkline([math.inf] * 3) == "×××" and sparkline([math.nan]) == " "


def test_text_of_any_format_fits_a_terminal_that_knows_ascii_only(many: GateResult) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    out.write(render(many, "text"))
    out.flush()


@pytest.mark.parametrize(
    "odd",
    [
        {"GITHUB_RUN_ID": "7)[x](http://evil.example"},
        {"GITHUB_REPOSITORY": "me/nets) <script>"},
        {"GITHUB_SERVER_URL": "javascript:alert(1)"},
        {"GITHUB_RUN_ID": ""},
    ],
)
def test_an_address_that_is_none_is_not_linked(odd: dict[str, str]) -> None:
    job = {"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "me/nets", "GITHUB_RUN_ID": "7"}
    assert artifacts_of(job) and not artifacts_of(job | odd)


def test_what_fired_comes_before_what_is_missing_and_is_the_reason_in_the_table() -> None:
    findings = [finding(4, gap=True), finding(90, "warning"), finding(20, step=13), finding(1, "note")]
    text = as_markdown(result_of(run_check(findings)))
    assert "| LS020 some-rule, step 13 |" in text.splitlines()[4]
    assert re.findall(r"\*\*(LS\d+)", text) == ["LS020", "LS004", "LS090", "LS001"]
    lines = render(result_of(run_check(findings)), "github").splitlines()
    assert [re.search(r"LS\d+", line)[0] for line in lines[:-1]] == ["LS020", "LS004", "LS090", "LS001"]
    assert lines[-1] == "loopscope: fail, 1 run"


def test_rules_without_data_are_one_line_for_each_reason() -> None:
    why = ["loss ended | at 3"] * 8 + ["x"]
    judged = [Judgement(f"LS01{number}", "r", "error", "no data", 0, said) for number, said in enumerate(why)]
    run = run_check([])
    run = replace(run, diagnosis=replace(run.diagnosis, judgements=judged))
    missing = [line for line in as_markdown(result_of(run)).splitlines() if line.startswith("- not judged")]
    assert missing == [
        "- not judged: LS010, LS011, LS012, LS013, LS014, LS015, LS016, LS017 (loss ended \\| at 3)",
        "- not judged: LS018 (x)",
    ]


def test_a_radius_of_many_digits_is_short() -> None:
    run = run_check([])
    run = replace(run, diagnosis=replace(run.diagnosis, radius=886859185.914))
    assert "| 8.869e+08 |" in as_markdown(result_of(run))


def test_several_runs_end_with_a_tally_that_names_those_that_did_not_pass() -> None:
    good, bad = run_check([]), run_check([finding(20, step=13)])
    runs = [good, replace(bad, path=Path("late\n.h5")), RunCheck(Path("c.h5"), None, "damaged"), good]
    lines = render(result_of(*runs), "text").splitlines()
    at = lines.index("ERROR  4 runs: 1 failed, 1 could not be judged, 2 passed")
    assert lines[at + 1].split() == ["FAIL", "late\\n.h5", "LS020", "some-rule,", "step", "13"]
    assert lines[at + 2].split() == ["ERROR", "c.h5"] and len(lines) == at + 3
    assert sum("judged as the run above" in line for line in lines) == 2
    assert "runs:" not in render(result_of(bad), "text")
    many_bad = render(result_of(*[bad] * 30), "text").splitlines()
    assert many_bad[-1].strip() == "and 10 more" and len([line for line in many_bad if "LS020 some" in line]) == 50


def test_a_run_that_failed_stands_above_hundreds_that_passed_in_the_table() -> None:
    bad = replace(run_check([finding(20, step=13)]), path=Path("bad.h5"))
    table = [line for line in as_markdown(result_of(*[run_check([])] * 80, bad)).splitlines() if line.startswith("| ")]
    assert "bad.h5" in table[1] and len(table) == 51
