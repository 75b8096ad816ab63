"""TRM and HRM as lucidrains wrote them, both with their states carried over the steps."""

from pathlib import Path
from typing import Any

from runner import Published, Training, importable, tokens
from torch import Tensor, nn

BATCH, LENGTH, VALUES, WIDTH = 4, 16, 64, 32


class Mixer(nn.Module):
    """In the place of the network that TRM is given: two layers over tokens and channels."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, 0.0, batch_first=True, norm_first=True)
        self.layers, self.norm = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.RMSNorm(WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        return self.norm(self.layers(h))


def trm(checkout: Path) -> Training:
    importable(checkout)
    from tiny_recursive_model.trm import TinyRecursiveModel

    model = TinyRecursiveModel(dim=WIDTH, num_tokens=VALUES, network=Mixer())
    carried: list[Any] = [*model.get_initial()]

    def loss(called: Any, number: int) -> Tensor:
        given = tokens(number, BATCH, LENGTH, VALUES)
        value, _, outputs, latents, *_ = called(given, *carried, labels=given.sort(dim=1).values)
        carried[:] = outputs, latents
        return value

    given = tokens(0, BATCH, LENGTH, VALUES)
    first = [one.detach().clone() for one in model.get_initial()]
    return Training(model, loss, call=(given, *first), budget=150.0)


def hrm(checkout: Path) -> Training:
    importable(checkout)
    from HRM.hrm import HRM

    own = {
        "dim": WIDTH,
        "attn_dim_head": 16,
        "heads": 2,
        "use_rmsnorm": True,
        "rotary_pos_emb": True,
        "pre_norm": False,
    }
    model = HRM(networks=[{**own, "depth": 2}, {**own, "depth": 2}], num_tokens=VALUES, dim=WIDTH, reasoning_steps=4)
    carried: list[Any] = [None]

    def loss(called: Any, number: int) -> Tensor:
        given = tokens(number, BATCH, LENGTH, VALUES)
        value, carried[0], _ = called(given, hiddens=carried[0], labels=given)
        return value

    return Training(model, loss, call={"seq": tokens(0, BATCH, LENGTH, VALUES)}, budget=150.0)


MODELS = [
    Published("TRM of lucidrains", "lucidrains/tiny-recursive-model", "f151651", trm),
    Published("HRM of lucidrains", "lucidrains/HRM", "7a879fe", hrm, folder="lucid-HRM"),
]
