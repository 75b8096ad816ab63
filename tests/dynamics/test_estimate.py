import math

import pytest
from loopscope.dynamics import Estimate


def test_missing_number_is_never_a_plausible_value() -> None:
    gone = Estimate.missing("not run")
    assert math.isnan(gone.value) and math.isnan(gone.lower) and math.isnan(gone.upper)
    assert not gone.converged
    assert "not converged" in str(gone)


def test_exact_number_has_no_width() -> None:
    exact = Estimate.exact(0.5, "closed form")
    assert (exact.lower, exact.value, exact.upper, exact.converged) == (0.5, 0.5, 0.5, True)
    assert float(exact) == 0.5


def test_estimates_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Estimate.exact(0.5, "closed form").value = 1.0  # type: ignore[misc]
