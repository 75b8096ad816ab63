"""The paper's models by name: sizes to the unit, on the meta device."""

import pytest
import torch
from loopscope.models import PRESETS, build, recipe

# Table of model configurations of the Parcae paper; the one exception (parcae-100m) is explained in its source notes:
# the paper prints the RDM's count there, the rule that gives its 350M figure exactly gives this one.
COUNTS = {
    "parcae-140m": 144_323_136,
    "parcae-370m": 388_003_328,
    "parcae-770m": 776_655_680,
    "parcae-1.3b": 1_338_591_744,
    "transformer-140m": 143_141_184,
    "transformer-370m": 385_903_104,
    "transformer-770m": 773_375_040,
    "transformer-1.3b": 1_333_868_544,
    "rdm-100m": 114_242_560,
    "rdm-350m": 382_765_056,
    "parcae-100m": 113_189_888,
    "parcae-350m": 378_558_464,
}


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_count_is_the_papers(name):
    with torch.device("meta"):
        model = build(name)
    assert all(p.is_meta for p in model.parameters())
    assert parameters(model) == COUNTS[name]


@pytest.mark.parametrize("size", ["100m", "350m"])
def test_addition_twin_is_the_rdm_without_its_adapter(size):
    with torch.device("meta"):
        rdm, twin = build(f"rdm-{size}"), build(f"addition-{size}")
        base = build(f"rdm-{size}", norm="pre")
    assert parameters(rdm) - parameters(twin) == 2 * rdm.config.width**2
    blocks = rdm.config.layers
    assert parameters(rdm) - parameters(base) == 2 * blocks * rdm.config.width  # the base RDM has half the norms


@pytest.mark.parametrize("name", [name for name in PRESETS if name.endswith("tiny") or name == "demo"])
def test_small_ones_run_and_learn(name):
    torch.manual_seed(0)
    model = build(name).train()
    tokens = torch.randint(256, (2, 9))
    loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert not without and torch.isfinite(loss)


def test_fixed_depth_model_is_a_plain_transformer():
    """One loop of addition from zero is the stack of all blocks."""
    torch.manual_seed(0)
    model = build("transformer-tiny", output_init="scaled").eval()
    tokens = torch.randint(256, (2, 8))
    x = model.embedding(tokens)
    tables = {int(layer): table(tokens) for layer, table in model.value_tables.items()}
    for layer, block in enumerate([*model.prelude, *model.core, *model.coda]):
        x = block(x, model.rope[:, :8], tables.get(layer))
    expected = model.final_norm(x) @ model.embedding.weight.T
    assert torch.equal(model(tokens), expected)


def test_overrides_replace_fields():
    assert build("demo", injection="addition", mean_depth=3).config.mean_depth == 3
    assert recipe("demo", lr=0.05, steps=7).lr == 0.05
    with pytest.raises(ValueError, match=r"^stpes: not a field of TrainConfig"):
        recipe("demo", stpes=7)


def test_recipes_are_the_papers():
    """Optimisers as the paper states them for its two set-ups."""
    muon = recipe("parcae-140m")
    assert (muon.optimizer, muon.lr, muon.betas, muon.eps, muon.weight_decay) == ("muon", 8e-3, (0.8, 0.95), 1e-10, 0)
    assert (muon.muon_lr, muon.muon_momentum, muon.muon_weight_decay) == (8e-3, 0.95, 0.2)
    assert (muon.warmup_steps, muon.cooldown, muon.clip, muon.batch_size * muon.accumulation) == (0, 0.5, 1.0, 256)
    assert [recipe(f"transformer-{s}").lr for s in ("140m", "370m", "770m", "1.3b")] == [8e-3, 8e-3, 6e-3, 6e-3]
    rdm = recipe("rdm-100m", steps=10_240)
    assert (rdm.optimizer, rdm.betas, rdm.warmup_steps, rdm.cooldown, rdm.clip) == (
        "adamw",
        (0.9, 0.95),
        4096,
        0.4,
        1.0,
    )
