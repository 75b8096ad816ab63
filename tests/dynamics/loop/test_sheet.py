"""What a person sees of a result: every number with its bounds on one screen, and no arrays of thousands of numbers."""

from __future__ import annotations

import dataclasses
import math

import loopscope
import numpy as np
import pytest
import torch
from loopscope.dynamics import StartDependence, find_fixed_point
from loopscope.dynamics.shown import short
from loopscope.models import build


@pytest.fixture(scope="module")
def result() -> loopscope.dynamics.Linearization:
    torch.manual_seed(0)
    return loopscope.linearize(build("demo", injection="parcae"), torch.randint(0, 200, (2, 12)))


def test_the_sheet_shows_the_verdict_and_every_estimate_with_its_bounds(result):
    said = str(result)
    first, *rest = said.splitlines()
    assert first == result.verdict and repr(result) == said and len(rest) < 40
    rows = dict(line.strip().split("  ", 1) for line in rest)
    for name, estimate in (("ρ(A̅)", result.linear.radius), ("ρ_J", result.loop.radius), ("σ_max(J)", result.loop.norm)):
        assert str(estimate) in rows[name]
    assert f"{result.loop.lyapunov_max:.4g}" in rows["λ₁"] and "nats per loop" in rows["λ₁"]
    assert result.trajectory.sentence in rows["trajectory"] and "core.0" in rows


def test_what_was_left_out_and_what_disagrees_is_on_the_sheet(result):
    missing = {"gap": "A̅ was not given"}
    said = str(dataclasses.replace(result, skipped=missing, linear=None, depth=None, fixed_points=[]))
    assert "left out" in said and "gap: A̅ was not given" in said and "ρ(A̅)" not in said and "safe depth" not in said
    empty = dataclasses.replace(result, loop=None, linear=None)
    assert "full loop unknown" in str(empty) and "ρ_J" not in str(empty)
    nothing = dataclasses.replace(result.loop, eigenvalues=np.full((2, 12, 3), np.nan + 0j), lyapunov_max=math.nan)
    assert "λ₁" not in str(dataclasses.replace(result, loop=nothing)).split("\n", 1)[1]


def test_results_fit_on_a_screen(result):
    search = find_fixed_point(lambda h: 0.5 * h + 1, torch.zeros(2, 300))
    shown = [result.loop, result.modes, result.tokens, result.depth, result.start, *result.fixed_points, search]
    for one in shown:
        assert len(repr(one)) < 3000 and "\n" not in repr(one) and repr(one).startswith(type(one).__name__ + "(")
    assert "state=<float32 (2, 300)>" in repr(search)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.arange(3), "[0, 1, 2]"),
        (np.zeros((3, 4)), "<float64 (3, 4)>"),
        (torch.zeros(2, 5), "<float32 (2, 5)>"),
        (np.float64(0.5), repr(np.float64(0.5))),
        ((1,), "(1,)"),
        (["a", None], "['a', None]"),
        ({"a": np.zeros(9)}, "{'a': <float64 (9,)>}"),
        (list(range(20)), "<20 things>"),
    ],
)
def test_values_in_a_few_words(value, said):
    assert short(value) == said


@pytest.mark.parametrize(
    ("spread", "factor", "depends", "said"),
    [
        ([0.0, 0.0], math.nan, False, "every run began at the same state"),
        ([0.5, 1e-4], 0.3, False, "the end forgets it (distance × 0.3 per loop)"),
        ([0.5, 0.4], math.nan, True, "the end depends on it"),
    ],
)
def test_what_became_of_different_starts(result, spread, factor, depends, said):
    start = StartDependence(np.array(spread), factor, depends)
    rows = [line.split("  ", 2)[-1].strip() for line in str(dataclasses.replace(result, start=start)).splitlines()]
    assert said in rows
