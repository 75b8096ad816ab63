"""Private names of torch: each is there, and training goes on without it."""

import sys

import pytest
import torch
from loopscope.probes.measure import internals


def test_the_private_names_are_still_there() -> None:
    """A failure here is news of torch, not of ours: see what `internals` says is lost."""
    import torch._dynamo.utils

    assert callable(torch._C._current_graph_task_id)
    assert callable(torch._foreach_norm)
    assert callable(torch._C._functorch.peek_interpreter_stack)
    assert isinstance(torch._dynamo.utils.counters["frames"]["ok"], int)
    assert callable(torch.distributed.distributed_c10d._get_default_store)


def test_backward_is_known_from_forward() -> None:
    seen = []
    x = torch.ones(2, requires_grad=True)
    y = 2 * x
    y.register_hook(lambda gradient: seen.append(internals.in_backward()))
    y.sum().backward()
    assert seen == [True] and not internals.in_backward()


@pytest.mark.parametrize("gone", [True, False])
def test_norms_are_the_same_with_and_without_the_private_name(gone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if gone:
        monkeypatch.delattr(torch, "_foreach_norm")
    tensors = [torch.arange(5.0), torch.ones(2, 3), torch.zeros(1, dtype=torch.bfloat16)]
    expected = [float(torch.linalg.vector_norm(tensor)) for tensor in tensors]
    assert [float(norm) for norm in internals.norms_of(tensors)] == pytest.approx(expected, rel=1e-6)
    assert internals.norms_of([]) == []


def test_names_that_are_gone_cost_an_answer_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C, "_current_graph_task_id")
    monkeypatch.delattr(torch.distributed.distributed_c10d, "_get_default_store")
    monkeypatch.setitem(sys.modules, "torch._dynamo.utils", None)
    assert not internals.in_backward() and internals.graphs_compiled() == 0 == internals.graphs_made()
    with pytest.raises(RuntimeError, match="keeps the store"):
        internals.default_store()
