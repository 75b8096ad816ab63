"""The colour table is tellable apart: contrast and colour-vision deficiency are computed, not judged by eye."""

from itertools import combinations

import numpy as np
import pytest
from loopscope.dashboard import colours
from loopscope.dashboard.compare_figures import DASHES, PALETTE
from loopscope.dashboard.report import OVERLAID

# Severity 1.0 matrices of Machado, Oliveira & Fernandes, IEEE TVCG 15 (2009) 1291, on linear RGB.
DEFICIENCIES = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
PAGES = ("#ffffff", "#f4f5f7", "#212328", "#17181b")  # cards and pages of both themes in loopscope.css


def linear(colour: str) -> np.ndarray:
    """sRGB hex to linear RGB (IEC 61966-2-1)."""
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio."""
    light, dark = sorted((float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    """Linear RGB to CIELAB under D65."""
    m = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = m @ np.clip(rgb, 0, 1) / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("table", [colours.REGIME_COLOURS, colours.STATE_COLOURS, colours.SEVERITY_COLOURS])
@pytest.mark.parametrize("page", PAGES)
def test_marks_stand_out_from_every_page(table, page):
    # 3 is WCAG 2.2's limit for graphical objects; 2.8 allows for the grey light page, where marks sit on white cards.
    for name, colour in table.items():
        assert contrast(colour, page) > (3 if page in ("#ffffff", "#212328", "#17181b") else 2.8), (name, page)


@pytest.mark.parametrize("kind", DEFICIENCIES)
def test_regimes_stay_apart_without_full_colour_vision(kind):
    # A CIE76 distance of 2.3 is just noticeable; ten times that is told apart at a glance in small marks.
    seen = {name: lab(np.array(DEFICIENCIES[kind]) @ linear(c)) for name, c in colours.REGIME_COLOURS.items()}
    for one, other in combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 23, (kind, one, other)


def test_lines_of_runs_stand_out_and_have_no_colour_of_a_regime():
    for colour in PALETTE:
        assert min(contrast(colour, page) for page in PAGES) > 2.8, colour
        for regime, other in colours.REGIME_COLOURS.items():
            assert np.linalg.norm(lab(linear(colour)) - lab(linear(other))) > 23, (colour, regime)
    assert len({(i % len(PALETTE), i % len(DASHES)) for i in range(OVERLAID)}) == OVERLAID  # no two runs look alike


def test_glyphs_differ_so_that_colour_is_never_the_only_sign():
    assert len(set(colours.REGIME_GLYPHS.values())) == len(colours.REGIME_COLOURS) == len(colours.REGIME_GLYPHS)


def test_style_sheet_takes_regime_colours_from_the_table_only():
    from pathlib import Path

    sheet = (Path(colours.__file__).parent / "assets" / "loopscope.css").read_text()
    for name, colour in {**colours.REGIME_COLOURS, **colours.STATE_COLOURS}.items():
        assert colour not in sheet, name
    for name in colours.REGIME_COLOURS:
        assert f"--regime-{name}" in sheet and f"--regime-{name}:" in colours.css_variables()
