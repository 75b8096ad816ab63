"""deq-lm of torchdeq: the iterations of a solver are the loop; its memory goes on from step to step."""

import argparse
from pathlib import Path
from typing import Any

import torch
from runner import Published, Training, edited, importable, pair
from torch import Tensor

WIDTH = 32


def make(checkout: Path) -> Training:
    """The map of the solver is marked: what it is given, and its residual, tokens before features."""
    importable(checkout)  # torchdeq itself
    importable(checkout / "deq-zoo" / "deq-seq")
    called_cuda, torch.version.cuda = torch.version.cuda, "12.0"  # its softmax reads the release, and uses it nowhere
    try:
        changes = {
            "import torch.nn.functional as F\n": "import loopscope, torch.nn.functional as F\n",
            "            return self.func(z_now, z_hist, u_cat, pos_emb)\n": (
                '            z_now = loopscope.mark(z_now.transpose(1, 2), "z").transpose(1, 2)\n'
                "            made = self.func(z_now, z_hist, u_cat, pos_emb)\n"
                '            loopscope.mark((made - z_now).transpose(1, 2), "residual")\n'
                "            return made\n"
            ),
        }
        code = edited("deq_lm", checkout / "deq-zoo" / "deq-seq" / "models" / "deq_transformer.py", changes)
    finally:
        torch.version.cuda = called_cuda
    from torchdeq.utils import add_deq_args

    parser = argparse.ArgumentParser()
    add_deq_args(parser)
    options = parser.parse_args(["--f_solver", "anderson", "--f_max_iter", "10", "--b_max_iter", "10", "--ift"])
    model = code.DEQTransformerLM(
        options, 64, 2, 2, 2, WIDTH, WIDTH // 2, 64, 0.0, 0.0, tgt_len=8, mem_len=8, tie_projs=[False],
    ).train()  # fmt: skip
    held: dict[str, Any] = {"memory": model.init_mems()}

    def loss(called: Any, number: int) -> Tensor:
        given, targets = pair(number, 2, 8)
        value, _, _, held["memory"], _ = called(given, targets, held["memory"], compute_jac_loss=False)
        return value.mean()

    def by_hand() -> dict[str | None, list[Tensor]]:
        states: list[Tensor] = []
        forward = [False]  # the gradient asks for the map once more

        def note(_: Any, given: Any) -> None:
            if forward[0]:
                states.append(given[0].detach().transpose(1, 2).clone())

        model.register_forward_pre_hook(lambda *_: forward.__setitem__(0, True))
        model.func.register_forward_pre_hook(note)
        model.register_forward_hook(lambda *_: forward.__setitem__(0, False))
        return {"z": states}

    given, targets = pair(0, 2, 8)
    call = {"data": given, "target": targets, "mems": [], "compute_jac_loss": False}
    return Training(model, loss, call=call, by_hand=by_hand)


MODELS = [Published("torchdeq deq-lm", "locuslab/torchdeq", "4f6bd5f", make)]
