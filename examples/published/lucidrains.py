"""TRM and HRM as Phil Wang wrote them."""

from itertools import cycle
from pathlib import Path
from typing import Any

from runner import Published, Training, importable, pair, returned, stand_in
from torch import Tensor

LENGTH = 16


def make_trm(checkout: Path) -> Training:
    """Its carry, the outputs and latents, goes on for three steps, as its trainer has it between two batches."""
    importable(checkout)
    stand_in("tiny_recursive_model", checkout / "tiny_recursive_model")  # its own imports a trainer
    from tiny_recursive_model.mlp_mixer_1d import MLPMixer1D
    from tiny_recursive_model.trm import TinyRecursiveModel

    model = TinyRecursiveModel(dim=32, num_tokens=64, network=MLPMixer1D(dim=32, depth=2, seq_len=LENGTH))
    held: dict[str, Any] = {}

    def loss(called: Any, number: int) -> Tensor:
        given, labels = pair(number // 3, length=LENGTH)
        start = held["carry"] if number % 3 else model.get_initial()
        value, _, outputs, latents, *_ = called(given, *start, labels=labels)
        held["carry"] = outputs, latents
        return value / len(given)

    def by_hand() -> dict[str | None, list[Tensor]]:
        states: dict[str | None, list[Tensor]] = {"latents": [], "outputs": []}
        turn = cycle(["latents"] * 6 + ["outputs"])
        model.network.register_forward_hook(lambda _, __, out: states[next(turn)].append(out.detach().clone()))
        return states

    given = pair(0, 2, LENGTH)[0]
    outputs, latents = (first.detach() for first in model.get_initial())
    return Training(model, loss, call={"seq": given, "outputs": outputs, "latents": latents}, by_hand=by_hand)


def make_hrm(checkout: Path) -> Training:
    importable(checkout)
    stand_in("HRM", checkout / "HRM")  # its own imports the variant with halting, too
    from HRM.hrm import HRM

    network = {"dim": 32, "depth": 2, "attn_dim_head": 16, "heads": 2, "use_rmsnorm": True, "rotary_pos_emb": True}
    model = HRM(networks=[network | {"pre_norm": False}] * 2, num_tokens=64, dim=32, reasoning_steps=4)
    held: dict[str, Any] = {}

    def loss(called: Any, number: int) -> Tensor:
        given, labels = pair(number // 3, length=LENGTH)
        hiddens = held["carry"] if number % 3 else None
        value, hiddens, _ = called(given, hiddens, labels=labels)
        held["carry"] = tuple(hidden.detach() for hidden in hiddens)
        return value

    def by_hand() -> dict[str | None, list[Tensor]]:
        return {f"all_hiddens_{at + 1}": returned(model.networks[at]) for at in range(2)}

    return Training(model, loss, call=pair(0, 2, LENGTH)[0], by_hand=by_hand)


MODELS = [
    Published("TRM of lucidrains", "lucidrains/tiny-recursive-model", "f151651", make_trm),
    Published("HRM of lucidrains", "lucidrains/HRM", "7a879fe", make_hrm, folder="lucidrains-HRM"),
]
