"""Every word of a verdict is explained once, in the same words on the pages and in docs/dashboard.md."""

import re
from pathlib import Path

import pytest
from loopscope.dashboard import components, glossary
from loopscope.dashboard.colours import REGIME_COLOURS
from loopscope.dynamics.trajectory import trajectory_law

from .test_browser import PATIENCE, chromium, pytestmark, screen, sync_api  # noqa: F401  (fixtures)
from .two_variables import write_two

DOCS = Path(__file__).parents[2] / "docs" / "dashboard.md"


@pytest.mark.parametrize("word", glossary.WORDS)
def test_the_docs_explain_each_word_as_the_pages_do(word):
    assert f"| {word} | {glossary.WORDS[word]} |" in DOCS.read_text(encoding="utf-8")


def test_each_regime_and_each_motion_of_a_law_has_its_word():
    assert set(REGIME_COLOURS) == set(glossary.REGIMES)
    for kind in ("settling", "drifting", "orbiting", "exploding", "undecided"):
        law = trajectory_law.TrajectoryLaw(kind, "unknown", *[0.0] * 6, "none", "", between=("orbiting", "drifting"))
        assert len(glossary.said_in(law.words)) == 1


def test_a_word_is_explained_where_it_stands_first():
    made = components.with_terms("z_H settles to round-off and settles; z_L orbits since step 3")
    assert [getattr(one, "children", one) for one in made] == [
        "z_H ", "settles", " to round-off and settles; z_L ", "orbits", " since step 3",
    ]  # fmt: skip
    assert components.with_terms("nothing of the kind") == ["nothing of the kind"] and components.with_terms("") == []


def test_an_explanation_is_one_hover_one_focus_or_one_tap_away(screen, tmp_path):  # noqa: F811
    write_two(tmp_path / "a.h5", "z_L")
    page = screen(tmp_path, touch=True).open()
    tip = page.locator("#ls-tip")
    badge = page.locator(".ag-row .ag-cell[col-id='verdict'] .ls-badge")
    sync_api.expect(badge).to_be_visible(timeout=PATIENCE)
    badge.hover()
    sync_api.expect(tip).to_contain_text("Unstable since step")  # what the phone has no room for
    word = page.locator(".ls-term", has_text="marginal")
    word.focus()
    sync_api.expect(tip).to_contain_text(glossary.WORDS["marginal"])
    page.keyboard.press("Escape")
    sync_api.expect(tip).to_be_hidden()
    page.locator(".ls-term", has_text="unknown").tap()
    sync_api.expect(tip).to_contain_text(glossary.WORDS["unknown"])
    page.locator("h1").tap()
    sync_api.expect(tip).to_be_hidden()
    page.goto(f"{page.url.partition('?')[0]}map")
    page.locator(".ls-term", has_text="marginal").hover()
    sync_api.expect(tip).to_contain_text(re.compile("At the edge"))
