"""Private names of torch, each in this one place.

Torch may rename them in any version. Each function says what is lost when its name is gone; training never is.
``tests/probes/measure/test_internals.py`` fails when one is gone, so that a new torch is noticed before a user does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store


def in_backward() -> bool:
    """Return whether autograd is running now.

    Without the private name the answer is no, and a model under activation checkpointing is seen twice in each step.

    >>> in_backward()
    False
    """
    task = getattr(torch._C, "_current_graph_task_id", None)
    return task is not None and task() != -1


def in_transform() -> bool:
    """Return whether this is run by ``torch.func`` (grad, vmap, jvp), whose tensors are none outside of it.

    Without the private name the answer is no, and the loop of a training that begins so is lost at its first step.

    >>> in_transform(), bool(torch.func.vmap(lambda x: x * in_transform())(torch.ones(2)).all())
    (False, True)
    """
    inside = getattr(torch._C._functorch, "peek_interpreter_stack", None)
    return inside is not None and inside() is not None


def graphs_compiled() -> int:
    """Return how many frames Dynamo has compiled in this process; Dynamo is not imported for the question.

    Without the private name the answer is 0, and a step without loops is explained less well.
    """
    utils = sys.modules.get("torch._dynamo.utils")
    counters = getattr(utils, "counters", None)
    return 0 if counters is None else int(counters["frames"]["ok"])


def graphs_made() -> int:
    """Return how many graphs Dynamo has made in this process, those of operators that take functions too.

    Without the private name the answer is 0, and it is not said that what a forward compiles by itself is not seen.
    """
    counters = getattr(sys.modules.get("torch._dynamo.utils"), "counters", None)
    return 0 if counters is None else int(counters["stats"]["unique_graphs"])


@torch.no_grad()
def norms_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the Euclidean norm of each tensor; without the private name one kernel for each of them.

    >>> [float(norm) for norm in norms_of([torch.ones(4), torch.tensor([3.0, 4.0])])]
    [2.0, 5.0]
    """
    together = getattr(torch, "_foreach_norm", None)
    if not tensors or together is None:
        return [torch.linalg.vector_norm(tensor) for tensor in tensors]
    return list(together(list(tensors)))


def default_store() -> Store:
    """Return the store that the processes of ``torch.distributed`` share.

    Raises:
        RuntimeError: Torch does not give it any more, or there is no process group.
    """
    get = getattr(torch.distributed.distributed_c10d, "_get_default_store", None)
    if get is None:
        raise RuntimeError("this torch keeps the store of its process group to itself")
    store: Store = get()
    return store
