"""CoTFormer: six of its models, three of which take a mark, where no module returns the state."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from runner import Published, Training, edited, importable, pair, returned, stand_in, visited
from torch import Tensor

HALTS, RANDOM = "but_halting_freeze_input_on_stop", "but_mod_efficient_sigmoid_lnmid_depthemb_random_factor"
ADAPTIVE = "adaptive_cotformer_mod_efficient_sigmoid_crw_lnmid_de_random_factor_single_final"
MIXED = "                x = x_in * (1 - router_weights) + x * router_weights\n"
MARK = "            x = __import__('loopscope').mark(x, 'x')\n"  # behind a branch that the first pass does not take
STOPPED = "            x = torch.where(active_mask.unsqueeze(-1), x,  x_old)\n"
MARKS = {HALTS: {STOPPED: STOPPED + MARK}, RANDOM: {MIXED: MIXED + MARK}, ADAPTIVE: {MIXED: MIXED + MARK}}


def make(checkout: Path, *, name: str) -> Training:
    importable(checkout)
    stand_in("tiktoken", get_encoding=lambda _: None)  # its vocabulary is fetched from the net
    import models

    path = Path(models.__path__[0]) / f"{name}.py"
    module = edited(f"models.{name}_marked", path, MARKS[name]) if name in MARKS else getattr(models, name)
    config = SimpleNamespace(
        vocab_size=64,
        sequence_length=32,
        n_repeat=4,
        min_repeat=1,
        depth_embedding="linear_learned" if "depthemb" in name or "_de_" in name else None,
        depth_random_method="sb_act" if name in (HALTS, "pondernet") else "uniform",
        ponder_lambda_p=0.2,
        ponder_kl_div_loss_weight=0.01,
        lm_cache="none",
        positional_encoder="rotary",
        n_embd=32,
        n_head=2,
        n_layer=4,
        n_layer_begin=1,
        n_layer_end=1,
        dropout=0.0,
        bias=False,
        disable_ln_mid=False,
        eval_length_factor=None,
        training_length_factor=None,
        mod_capacity_factor=0.6,
        halt_threshold=0.999,
        depth_predictor_loss_coef=1.0,
        act_penalty=0.03,
        multiple_of=16,
        rmsnorm_eps=1e-5,
        attention_window_length=None,
        allow_cache_during_training=False,
        track_cache_attention=False,
        mem_cache_size=None,
    )
    model = module.GPTBase(config)

    def loss(called: Any, number: int) -> Tensor:
        given, targets = pair(number)
        return called(given, targets=targets)["loss"]

    def by_hand() -> dict[str | None, list[Tensor]]:
        layers = model.transformer.h_mid
        if name == "pondernet":
            return {"x": returned(layers[-1])}
        return {None: visited(model, layers[0], layers[-1])}

    given, targets = pair(0)
    call = {"idx": given, "targets": targets}
    return Training(model, loss, call=call, by_hand=None if name in MARKS else by_hand)


MODELS = [
    Published(f"CoTFormer {name}", "epfml/CoTFormer", "2723e30", partial(make, name=name))
    for name in ("but_full_depth", "cotformer_full_depth", "pondernet", RANDOM, HALTS, ADAPTIVE)
]
