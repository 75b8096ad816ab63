"""Pages of rules: rendered from Markdown, in which nothing is ever markup of the page."""

import pytest
from loopscope.dashboard import rule_page
from loopscope.dashboard.rule_page import parts, text_of


def said(part: object) -> str:
    """All text of some parts."""
    if isinstance(part, list):
        return "".join(map(said, part))
    return part if isinstance(part, str) else said(getattr(part, "children", "") or "")


def kinds(part: object) -> set[str]:
    if isinstance(part, list):
        return set().union(*map(kinds, part)) if part else set()
    return (
        set()
        if isinstance(part, str) or part is None
        else {type(part).__name__} | kinds(getattr(part, "children", None))
    )


def test_markdown_becomes_parts():
    made = parts("# T\n\n*a* **b** `c`\n\n```toml\nx = 1\n```\n\n| h |\n|---|\n| d |\n\n- one\n- two\n")
    assert {"H1", "Em", "Strong", "Code", "Pre", "Table", "Th", "Td", "Ul", "Li"} <= kinds(made)
    assert "x = 1" in said(made) and "two" in said(made)


def test_the_remedy_stands_above_the_calibration_and_nothing_is_lost():
    pages = {path.stem: path.read_text() for path in (rule_page.DOCS / "rules").glob("LS*.md")}
    both = {name: text for name, text in pages.items() if "## Calibration" in text and "## What to do" in text}
    assert len(both) > 10
    for name, text in both.items():
        turned = rule_page.remedy_first(text)
        assert turned.index("## What to do") < turned.index("## Calibration"), name
        assert sorted(turned.split()) == sorted(text.split()), name
    for kept in ("# A\n## What to do\nw\n## Calibration\nc", "# A\n## Calibration\nc", ""):
        assert rule_page.remedy_first(kept) == kept
    last = said(parts(rule_page.remedy_first("# A\n## Calibration\nc\n## What to do\nw")))
    assert last.index("What to do") < last.index("Calibration")


@pytest.mark.parametrize(
    "text",
    ["<script>alert(1)</script>", "a <img src=x onerror=alert(1)> b", "[x](javascript:alert(1))", "![x](http://e/x.png)",
     "[x](data:text/html,1)", "![x](../../secret.svg)"],
)  # fmt: skip
def test_markup_and_strange_addresses_are_text(text):
    made = parts(text)
    assert not kinds(made) & {"Script", "Img", "A", "Link"}
    assert "x" in said(made) or "alert" in said(made)


def test_links_lead_to_other_rules_and_to_the_web():
    made = parts("[a](LS021.md) [b](https://arxiv.org/abs/2604.12946)")
    assert kinds(made) >= {"Link", "A"}


def test_the_page_of_a_rule_comes_before_the_page_about_all(tmp_path):
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules.md").write_text("# Rules\n## LS020 one\nshort\n## LS021 two\nother\n")
    assert text_of("LS020", tmp_path) == "# LS020 one\nshort"
    text_of.cache_clear()
    (tmp_path / "rules" / "LS020.md").write_text("# LS020\nlong")
    assert text_of("LS020", tmp_path) == "# LS020\nlong"
    assert text_of("LS099", tmp_path) == "" and text_of("../LS020", tmp_path) == ""


def test_every_shipped_rule_has_a_page():
    from loopscope.rules.rule_files import load_rules

    missing = [rule.id for rule in load_rules() if rule_page.known(rule.id) and not text_of(rule.id)]
    assert missing == []


def test_a_rule_is_shown_and_a_strange_one_is_refused_in_words(client, tmp_path):
    here = client(tmp_path)
    assert "injection-unstable" in str(here.page("/rules/LS020"))
    assert "No page about" in str(here.page("/rules/LS999"))
    assert here.get("/rule-pictures/.secret.svg").status_code == 404
    assert here.get("/rule-pictures/none.svg").status_code == 404
