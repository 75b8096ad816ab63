import pytest
from loopscope.dashboard.text import middle_cut, plain, shown

HOSTILE = [
    "<b>x</b>",
    "<a href='javascript:alert(1)'>y</a>",
    "<img src=x onerror=alert(1)>",
    "&lt;b&gt;",
    "<br>",
    "a<sub>b",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_tag_survives_for_plotly(text):
    assert "<" not in plain(text) and ">" not in plain(text)


def test_no_two_texts_become_one_for_plotly():
    assert len({plain(text) for text in HOSTILE}) == len(HOSTILE)


def test_every_shown_text_can_be_sent():
    shown("".join(map(chr, range(0x110000))), limit=1 << 21).encode("utf-8")


@pytest.mark.parametrize("limit", range(2, 12))
def test_cut_names_have_the_length_asked_for(limit):
    cut = middle_cut("concatenation-lr0.05", limit)
    assert len(cut) == limit and "…" in cut and cut.partition("…")[0] in "concatenation-lr0.05"
