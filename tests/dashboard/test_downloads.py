"""What is taken along: a report over the addresses of its runs."""

from loopscope.dashboard.index import RunIndex


def test_a_report_is_a_file_about_one_run_or_several(client, runs):
    here = client(runs)
    ids = {entry.name: entry.id for entry in here.index.entries()}
    one = here.get(f"/report?runs={ids['concatenation']}")
    assert one.status_code == 200 and "Unstable since step" in one.text
    assert one.headers["Content-Disposition"] == f'attachment; filename="loopscope-{ids["concatenation"]}.html"'
    several = here.get(f"/report?runs={ids['concatenation']},{ids['addition']},nothing")
    assert "2 runs compared" in several.text


def test_a_report_that_cannot_be_made_says_why(client, runs):
    here = client(runs)
    foreign = next(entry.id for entry in here.index.entries() if entry.name == "foreign")
    assert here.get("/report?runs=none").status_code == 404
    assert here.get("/report").status_code == 404
    answer = here.get(f"/report?runs={foreign}")
    assert answer.status_code == 409 and "not an HDF5 file" in answer.text


def test_pages_hold_the_link(client, runs):
    here = client(runs)
    run = next(entry.id for entry in RunIndex([runs]).entries() if entry.name == "addition")
    assert f"/report?runs={run}" in str(here.page(f"/run/{run}"))
