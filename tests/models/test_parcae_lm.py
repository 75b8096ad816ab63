"""The authors' weights: the same logits as the authors' code, and back again.

The fixtures were made by benchmarks/parcae_reference.py from the authors' own checkout; each file says how.
"""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from loopscope.models import build, from_parcae_lm, from_pretrained, to_parcae_lm

HERE = Path(__file__).parent
CASES = ("diagonal", "linear", "add")


def reference(case):
    """Fixture, provenance and the weights made by the same formula as the reference's."""
    script = HERE.parents[1] / "benchmarks" / "parcae_reference.py"
    spec = importlib.util.spec_from_file_location("parcae_reference", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fixture = np.load(HERE / "fixtures" / f"parcae_{case}.npz")
    provenance = json.loads(str(fixture["provenance"]))
    weights = {name: torch.from_numpy(module.formula(name, tuple(s))) for name, s in provenance["shapes"].items()}
    return fixture, provenance, weights


def relative_error(values, expected):
    return (np.abs(values - expected).max() / np.abs(expected).max()).item()


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_reference(case):
    fixture, provenance, weights = reference(case)
    model = from_parcae_lm(weights, provenance["config"])
    tokens, state = torch.from_numpy(fixture["tokens"]), torch.from_numpy(fixture["initial_state"])
    assert len(provenance["commit"]) == 40 and len(fixture["depths"]) == 4
    for depth, expected in zip(fixture["depths"], fixture["logits"], strict=True):
        with torch.no_grad():
            logits = model(tokens, num_loops=int(depth), initial_state=state).numpy()
        # float32 round-off through 18 blocks at most; the acceptance limit of the project
        assert relative_error(logits, expected) < 1e-5, f"T = {depth}"


@pytest.mark.parametrize("case", CASES)
def test_parity_is_sensitive_to_every_part(case):
    """Changing any one tensor changes the logits, so that agreement says something about each of them."""
    fixture, provenance, weights = reference(case)
    tokens, state = torch.from_numpy(fixture["tokens"]), torch.from_numpy(fixture["initial_state"])
    model = from_parcae_lm(weights, provenance["config"])
    noise = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            before = parameter.clone()
            parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=0.02)
            logits = model(tokens, num_loops=5, initial_state=state).numpy()
            parameter.copy_(before)
        assert relative_error(logits, fixture["logits"][2]) > 1e-4, name


@pytest.mark.parametrize("case", ["diagonal", "linear"])
def test_round_trip_is_exact(case):
    _, provenance, weights = reference(case)
    state, config = to_parcae_lm(from_parcae_lm(weights, provenance["config"]))
    for name, tensor in weights.items():
        assert torch.equal(state[name], tensor), name
    assert set(state) - set(weights) <= {"freqs_cis", "lm_head.weight"}
    shared = set(provenance["config"]) & set(config)
    differing = {name for name in shared if config[name] != provenance["config"][name]}
    assert not differing and len(shared) > 15


def test_parts_without_effect_are_left_out():
    """One block each: of two tables and two gates only the coda's meet, the others never reach the logits."""
    _, provenance, weights = reference("add")
    model = from_parcae_lm(weights, provenance["config"])
    assert model.config.value_embeddings == (2,)
    assert {n for n in weights if "value_embeds" in n} == {"value_embeds.0.weight", "value_embeds.2.weight"}
    state, config = to_parcae_lm(model)
    assert set(weights) <= set(state) and not state["value_embeds.0.weight"].any()
    again = from_parcae_lm(state, config)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_our_own_models_round_trip():
    model = build("parcae-tiny")
    state, config = to_parcae_lm(model)
    state = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    again = from_parcae_lm(state, config)
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bias", True),
        ("logit_softcap", 15.0),
        ("norm_class_name", "LayerNorm"),
        ("num_key_value_heads", 1),
        ("state_init", "unit"),
        ("init_strategy", "takase"),
        ("nonlin_name", "GELU"),
        ("rope_settings", {"use_rope": False}),
    ],
)
def test_what_we_do_not_have_is_refused_by_name(field, value):
    _, provenance, weights = reference("diagonal")
    with pytest.raises(ValueError, match=field):
        from_parcae_lm(weights, {**provenance["config"], field: value})


def test_misfits_are_refused_by_name():
    _, provenance, weights = reference("diagonal")
    missing = {name: tensor for name, tensor in weights.items() if "coda.1.attn.c_k" not in name}
    with pytest.raises(ValueError, match=r"transformer\.coda\.1\.attn\.c_k\.weight"):
        from_parcae_lm(missing, provenance["config"])
    with pytest.raises(ValueError, match="norm: expected 'pre', found 'sandwich'"):
        to_parcae_lm(build("demo", norm="sandwich"))
    with pytest.raises(ValueError, match="read_out: expected True, found False"):
        to_parcae_lm(build("demo", read_out=False))
    with pytest.raises(ValueError, match=r"value_embeddings: .* layers \[2\], found \(1,\)"):
        to_parcae_lm(build("demo", value_embeddings=(1,)))


def test_from_pretrained_reads_the_hubs_files(tmp_path, monkeypatch):
    """The download itself is replaced: which files are asked for, and what becomes of them."""
    hub = pytest.importorskip("huggingface_hub")
    model = build("parcae-tiny")
    state, config = to_parcae_lm(model)
    (tmp_path / "config.json").write_text(json.dumps({**config, "_class_name": "ParcaeConfig", "hf_config": {}}))
    torch.save(state, tmp_path / "model.pt")
    asked = []

    def download(repository, name):
        asked.append((repository, name))
        if not (tmp_path / name).exists():
            raise hub.errors.EntryNotFoundError(name)
        return str(tmp_path / name)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    again = from_pretrained("SandyResearch/parcae-140m")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert [name for _, name in asked] == ["config.json", "pytorch_model.bin", "model.pt"]
