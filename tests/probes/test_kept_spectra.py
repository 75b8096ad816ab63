"""A small A̅ is kept whole at steps that get rarer; a wide one only by its eigenvalues."""

import numpy as np
import pytest
from loopscope.probes.kept_spectra import MATRIX_WIDTH, KeptSpectra
from loopscope.runfile.layout import A_BAR
from loopscope.runfile.open import open_run
from loopscope.runfile.writer import RunWriter


@pytest.mark.parametrize("shape", [(3, 3), (5,), (MATRIX_WIDTH + 1,) * 2, ()])
def test_a_matrix_is_kept_at_steps_that_get_rarer(tmp_path, shape):
    with RunWriter.create(tmp_path / "a.h5", info={}, eigenvalues=4) as writer:
        kept = KeptSpectra()
        for step in range(0, 1000, 10):
            kept.write(writer, step, np.full(shape, 0.5 + step / 1e4), np.full(4, 0.5 + 0j))
            writer.append_step({"step": step, "loss": 3.0}, None)
        writer.flush()
    with open_run(tmp_path / "a.h5") as run:
        steps = run.array_steps(A_BAR)
        assert len(run.spectra()[0]) == 100
        if not shape or shape[0] > MATRIX_WIDTH:
            assert len(steps) == 0
            return
        assert steps[0] == 0 and len(steps) < 45 and steps[-1] > 900
        assert (np.diff(steps)[12:] >= 0.1 * steps[12:-1] - 10).all()
        assert run.arrays(A_BAR)[1][-1].shape == shape
        assert run.arrays(A_BAR)[1][-1].flat[0] == pytest.approx(0.5 + steps[-1] / 1e4)
