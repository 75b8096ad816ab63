"""Which parameter is treated how."""

import pytest
from loopscope.models import TrainConfig, build
from loopscope.models.muon import Muon
from loopscope.models.optimizers import build_optimizers, set_rates

EXEMPT = {"injection.log_a", "injection.dt_bias", "injection.b", "read_out.weight"}


def groups(model, config):
    """Names by (optimizer, weight decay)."""
    names = {id(p): name for name, p in model.named_parameters()}
    members = {}
    for optimizer in build_optimizers(model, config):
        for group in optimizer.param_groups:
            key = (type(optimizer).__name__, group["weight_decay"])
            members.setdefault(key, set()).update(names[id(p)] for p in group["params"])
    assert sorted(n for s in members.values() for n in s) == sorted(names.values())  # everybody once
    return members


def test_adamw_decays_matrices_and_embeddings_only():
    model = build("parcae-tiny")
    by_optimizer = groups(model, TrainConfig(weight_decay=0.3))
    plain = by_optimizer[("AdamW", 0.0)]
    assert plain >= EXEMPT and {n for n in plain if "norm" in n} == {
        n for n, _ in model.named_parameters() if "norm" in n
    }
    assert all("norm" in n or n in EXEMPT for n in plain)
    assert "embedding.weight" in by_optimizer[("AdamW", 0.3)]


def test_the_adapter_of_concatenation_is_decayed():
    by_optimizer = groups(build("demo", injection="concatenation"), TrainConfig(weight_decay=0.3))
    assert "injection.adapter.weight" in by_optimizer[("AdamW", 0.3)]


def test_muon_takes_attention_and_mlp_only():
    model = build("parcae-tiny")
    by_optimizer = groups(model, TrainConfig(optimizer="muon", weight_decay=0.0))
    hidden = by_optimizer[("Muon", 0.2)]
    assert all(".attention." in n or ".mlp." in n for n in hidden) and len(hidden) == 6 * 6 + 3  # and three gates
    assert by_optimizer[("AdamW", 0.0)] >= EXEMPT | {"embedding.weight", "value_tables.1.weight"}


@pytest.mark.parametrize("step", [0, 25, 99])
def test_muons_decay_falls_to_zero(step):
    config = TrainConfig(optimizer="muon", steps=100, warmup_steps=0, lr=1.0, muon_lr=2.0, cooldown=0.5)
    optimizers = build_optimizers(build("demo"), config)
    rate = set_rates(optimizers, step, config)
    muon = next(o for o in optimizers if isinstance(o, Muon)).param_groups[0]
    assert rate == pytest.approx(min(1.0, (100 - step) / 50))
    assert muon["lr"] == pytest.approx(2 * rate) and muon["weight_decay"] == pytest.approx(0.2 * (1 - step / 100))
