"""States reduced to sums: eagerly against plain float64 arithmetic, and by the CUDA kernel against the eager way.

Without a GPU the kernel runs in Triton's interpreter, in a process of its own because the interpreter is switched on by
an environment variable, and is compiled for real GPUs down to machine code.
"""

import json
import math
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from loopscope.probes.measure import reduction as reduction_module
from loopscope.probes.measure.fastest import reduction_for
from loopscope.probes.measure.reduction import ACTIVE, LEFT, MOVED, SUMS, TURNED, EagerReduction, Tokens
from loopscope.probes.measure.sums import LoopSums, loop_means

# Float32 sums of up to 200 norms against float64: a few roundings of 2^-24 each.
RELATIVE = 2e-6
SIZES = {
    "constant": [3] * 7,
    "joining": [1, 1, 3, 4, 4, 4],
    "joining every loop": [1, 2, 3, 4],
    "single": [2],
    "leaving": [4, 4, 4, 2, 2, 2],
    "leaving and coming back": [3, 3, 1, 3, 3, 3],
}
# Which sequences move in each loop; the others wait, as with torch.where(active, new, old).
WAITING = {
    "some stop": [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 0, 0]],
    "wait, then go on": [[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1]],
    "all at rest for a loop": [[1, 1, 1], [0, 0, 0], [1, 1, 1], [1, 1, 1]],
    "single tokens": [[1, 1, 1], [0.5, 1, 0.5], [0.5, 0, 0.5], [1, 1, 1]],
}
CASES = SIZES | WAITING


def states_of(case, width=33, dtype=torch.float32):
    """States of batches of these sizes, or of sequences that move when the case says so (half: every other token)."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(case[0], int):
        return [3 * torch.randn(n, 5, width, generator=generator).to(dtype) for n in case]
    states = [3 * torch.randn(len(case[0]), 5, width, generator=generator).to(dtype)]
    for moving in case:
        share = torch.tensor(moving)[:, None, None]
        active = (share == 1) | ((share == 0.5) & (torch.arange(5)[None, :, None] % 2 == 0))
        states.append(torch.where(active, 3 * torch.randn(3, 5, width, generator=generator).to(dtype), states[-1]))
    return states


def plain(states):
    """The sums by definition, in float64, and over how many tokens they are."""
    rows, tokens = [], []
    wide = [h.double() for h in states]
    begun, shrunk = 0, False  # the state since which the batch has only grown at its end
    for t, h in enumerate(wide):
        if t and (len(h) < len(wide[t - 1]) or (shrunk and len(h) != len(wide[t - 1]))):
            begun, shrunk = t, True
        row, count = [h.norm(dim=-1).sum(), *[math.nan] * (SUMS - 1)], [h[..., 0].numel(), 0, 0, 0]
        if t > begun:
            step = h[: len(wide[t - 1])] - wide[t - 1]
            moved = step.norm(dim=-1) != 0
            row[1], count[1], count[3] = step.norm(dim=-1).sum(), step[..., 0].numel(), len(step)
            row[LEFT] = wide[t - 1].norm(dim=-1)[moved].sum()
            row[MOVED], row[ACTIVE] = moved.sum(), moved.any(-1).sum()
        if t > begun + 1:
            before = wide[t - 1][: len(wide[t - 2])] - wide[t - 2]
            turned = moved[: len(before)] & (before.norm(dim=-1) != 0)
            cosines = torch.cosine_similarity(step[: len(before)], before, dim=-1, eps=1e-30)
            row[2], row[TURNED], count[2] = cosines[turned].sum(), turned.sum(), before[..., 0].numel()
        rows.append([float(x) for x in row])
        tokens.append(Tokens(*count))
    return np.array(rows), tokens


def meaningful(sums, tokens):
    """NaN where a sum is over no tokens: what stands there means nothing."""
    tokens = [Tokens(*t) for t in tokens]
    over = [(t.state, t.step, t.cosine, t.step, t.step, t.cosine, t.step) for t in tokens]
    return np.where(np.array(over) > 0, sums, np.nan)


def reduced(reduction, states):
    rows = torch.full((len(states), reduction.parts, SUMS), torch.nan)
    reduction.forget()
    tokens = [reduction.add(h, rows, at) for at, h in enumerate(states)]
    reduction.settle()
    return meaningful(rows.sum(1).double().numpy(), tokens), tokens


@pytest.mark.parametrize("waiting", [0, 1200, 4 << 20], ids=["one at a time", "a few at a time", "all at once"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_eager_sums_equal_the_definition(case, waiting, dtype, monkeypatch):
    monkeypatch.setattr(reduction_module, "WAITING_BYTES", 8 * waiting)
    states = states_of(case, dtype=dtype)
    expected, tokens = plain(states)
    reduction = EagerReduction()
    for _ in range(2):  # a forward begins anew, whatever the one before left
        sums, counted = reduced(reduction, states)
        assert counted == tokens
        # atol: cosines of random steps add up to nearly nothing.
        np.testing.assert_allclose(sums, expected, rtol=RELATIVE, atol=2e-6 * 20)


def test_a_state_that_is_changed_afterwards_was_already_read():
    h = torch.ones(1, 4, 8)
    states = [h * t for t in (1.0, 2.0, 4.0)]
    expected, _ = reduced(EagerReduction(), states)
    rows, reduction = torch.zeros(3, 1, SUMS), EagerReduction()
    for at, state in enumerate(states):
        reduction.add(h.copy_(state), rows, at)
    reduction.settle()
    assert rows[:, 0, 0].tolist() == expected[:, 0].tolist()


@pytest.mark.parametrize("size", [1e-30, 1e30], ids=["tiny", "huge"])
def test_the_cosine_of_steps_whose_lengths_multiply_out_of_float32(size):
    # ‖h‖ itself squares its entries, in float32 too: 1e±30 is out of it, 1e±18 is not.
    states = [torch.tensor([[[x, 0.0]]]) * size**0.6 for x in (0.0, 1.0, 3.0)]
    sums, _ = reduced(EagerReduction(), states)
    assert sums[2, 2] == pytest.approx(1.0)


def test_numbers_that_are_not_finite_are_passed_on():
    states = states_of([2] * 4)
    states[2][0, 0, 0] = math.inf
    sums, _ = reduced(EagerReduction(), states)
    assert math.isfinite(sums[1, 0]) and math.isinf(sums[2, 0]) and math.isinf(sums[2, 1])


def test_a_batch_that_shrinks_shows_nothing_of_the_step_before_it():
    sums = LoopSums(8, torch.device("cpu"))

    def cosines(case):
        sums.reset(), sums.begin()
        for h in states_of(case):
            sums.add(h)
        return loop_means(sums.device_rows()["sums"].numpy(), sums.counts)[0][:, 2]

    alone = cosines([4, 4, 4, 2, 2, 2])
    cosines([4] * 6)  # its rows lie where the next ones go
    assert np.isnan(alone[3]) and not np.isnan(alone[4])
    np.testing.assert_array_equal(cosines([4, 4, 4, 2, 2, 2]), alone)


def test_step_norms_are_kept_by_token_on_request():
    states = states_of([2] * 5)
    reduction = EagerReduction(keep_steps=3)
    reduced(reduction, states)
    expected = torch.stack([(b - a).norm(dim=-1)[:, :3] for a, b in pairwise(states)])
    torch.testing.assert_close(torch.stack(reduction.steps), expected)


def test_the_cpu_is_reduced_eagerly():
    assert isinstance(reduction_for(torch.device("cpu")), EagerReduction)


INTERPRETED = """
import json, sys, torch
sys.path.insert(0, sys.argv[1])
from test_reduction import CASES, states_of, reduced, plain
from loopscope.probes.measure.fused import FusedReduction
from loopscope.probes.measure.reduction import SUMS

found = []
for name, case in CASES.items():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        states = states_of(case, dtype=dtype)
        fused = FusedReduction(programs=4)
        for _ in range(2):
            fused.forget()
            rows = torch.full((len(states), fused.parts, SUMS), torch.nan)
            tokens = [fused.add(h, rows, at) for at, h in enumerate(states)]
            fused.settle()
        assert not fused.broken
        found.append([name, str(dtype), rows.sum(1).tolist(), tokens])
print(json.dumps(found))
"""


def interpreted():
    pytest.importorskip("triton", reason="the kernel needs Triton, which this platform has not")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    here = os.path.dirname(__file__)  # noqa: PTH120
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED, here], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_kernel_gives_the_same_sums():
    cases = interpreted()
    assert len(cases) == 3 * len(CASES)
    for name, dtype, rows, tokens in cases:
        expected, counted = plain(states_of(CASES[name], dtype=getattr(torch, dtype.removeprefix("torch."))))
        assert [Tokens(*count) for count in tokens] == counted
        np.testing.assert_allclose(
            meaningful(np.array(rows, float), tokens), expected, rtol=RELATIVE, atol=2e-6 * 20, err_msg=name + dtype
        )


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_kernel_compiles_for_a_gpu(capability, dtype):
    triton = pytest.importorskip("triton", reason="the kernel needs Triton, which this platform has not")
    from loopscope.probes.measure import fused
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = fused.constants(768, has_last=True, has_before=True)
    signature = dict.fromkeys(("state", "last", "before", "into"), f"*{dtype}") | {"out": "*fp32", "active": "*i32"}
    signature |= dict.fromkeys(("tokens", "last_tokens", "before_tokens", "width", "inner"), "i32")
    source = ASTSource(fused._reduce, signature | dict.fromkeys(constants, "constexpr"), constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert len(compiled.asm["cubin"]) > 1000


def test_where_the_kernel_cannot_run_the_eager_way_takes_over(caplog):
    pytest.importorskip("triton", reason="the kernel needs Triton, which this platform has not")
    from loopscope.probes.measure.fused import FusedReduction

    states = states_of([2] * 4)
    expected, tokens = plain(states)
    fused = FusedReduction(programs=4)  # there is no driver here, or the states are on the CPU
    for _ in range(2):
        rows = torch.zeros(4, fused.parts, SUMS)
        fused.forget()
        assert [fused.add(h, rows, at) for at, h in enumerate(states)] == tokens
        fused.settle()
        sums = meaningful(rows.sum(1).double().numpy(), tokens)
        np.testing.assert_allclose(sums, expected, rtol=RELATIVE, atol=2e-6 * 20)
    assert [record.message.split(",")[0] for record in caplog.records] == ["loopscope: the fused reduction failed"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_gives_the_same_sums_on_a_gpu(case, dtype):
    states = states_of(case, width=768, dtype=dtype)
    fused = reduction_for(torch.device("cuda"))
    rows = torch.zeros(len(states), fused.parts, SUMS, device="cuda")
    tokens = [fused.add(h.cuda(), rows, at) for at, h in enumerate(states)]
    fused.settle()
    expected, counted = plain(states)
    assert not fused.broken and tokens == counted
    sums = meaningful(rows.sum(1).double().cpu().numpy(), tokens)
    np.testing.assert_allclose(sums, expected, rtol=RELATIVE, atol=2e-6 * 20)
