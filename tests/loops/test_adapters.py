"""Attach, train 20 steps, detach: on every model whose loop is known or found, against what the forward itself knows.

Stand-ins (``foreign/``) report the states of their forward; of installed packages a method is wrapped for that. Neither
goes through a hook.
"""

import copy
import itertools
import re

import loopscope
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loopscope.loops.adapters import adapted_site
from loopscope.loops.discovery import discover, find_levels
from loopscope.loops.trace import example_tokens
from loopscope.probes import LoopSite, LoopSiteError, open_run

STEPS, VOCABULARY = 20, 64
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hooks(model):
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in HOOKS)


def loss_of(output, tokens):
    """The loss in what a model returned for tokens and labels."""
    if isinstance(output, torch.Tensor) and output.ndim == 0:
        return output
    loss = output["loss"] if isinstance(output, dict) else getattr(output, "loss", None)
    if loss is not None:
        return loss
    logits = output if isinstance(output, torch.Tensor) else output.logits
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())


def train(model, probes, states, *, labels="labels"):
    """Trains for 20 steps; returns for each the states as ``states()`` gives them after the forward."""
    batches = torch.randint(0, VOCABULARY, (STEPS, 3, 12), generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    visited = []
    model.train()
    for step, batch in enumerate(batches):
        if hasattr(model, "step"):
            model.step = step
        keywords = {labels: batch} if labels else {}
        loss = loss_of(model(batch, **keywords), batch)
        visited.append([state.detach().double().clone() for state in states()])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for probe in probes:
            probe.step(loss=loss)
    return visited


def loops_of(states):
    """Mean over sequences of the loops in which any of their tokens moved."""
    moved = [(a != b).flatten(1).any(dim=1).double().mean().item() for a, b in itertools.pairwise(states)]
    return sum(moved)


def check_rows(path, visited, *, first=0):
    """The rows of a run against the states of its forwards; ``first`` is the first loop whose state is recorded."""
    with open_run(path) as run:
        assert len(run) == STEPS
        assert run["depth_max"].tolist() == [len(states) - 1 for states in visited]
        assert run["depth"].tolist() == pytest.approx([first + loops_of(states[first:]) for states in visited])
        assert (run["nonfinite"] == 0).all()
        state_norm, residual_norm = run.loops("state_norm"), run.loops("residual_norm")
        for row, states in enumerate(visited):
            last = len(states)
            moved = [*((a != b).any(dim=-1) for a, b in itertools.pairwise(states)), ...]
            norms = [state[tokens].norm(dim=-1).mean().item() for state, tokens in zip(states, moved, strict=True)]
            steps = [
                (b - a)[tokens].norm(dim=-1).mean().item()
                for (a, b), tokens in zip(itertools.pairwise(states), moved, strict=False)
            ]
            # Sums over 36 tokens of 16 to 32 channels in float32: rounding of some 1e-6 relative to the state.
            np.testing.assert_allclose(state_norm[row, first:last], norms[first:], rtol=1e-5)
            np.testing.assert_allclose(residual_norm[row, first : last - 1], steps[first:], rtol=1e-4, atol=1e-6)
            assert np.isnan(state_norm[row, :first]).all()
            assert np.isnan(state_norm[row, last:]).all()
        return dict(run.info), run["a_bar_radius"]


def attach_train_detach(model, path, states, *, site=None, first=0, labels="labels"):
    """The whole of acceptance 1 for one model; returns the run's info, its radii and the radius before each step."""
    before, keys = hooks(model), list(model.state_dict())
    weights = [p.detach().clone() for p in model.parameters()]
    buffers = [b.clone() for b in model.buffers()]
    torch.manual_seed(3)
    random_state = torch.get_rng_state()
    with loopscope.attach(model, path, site=site) as probe:
        assert torch.equal(torch.get_rng_state(), random_state)
        assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
        copied = copy.deepcopy(model)
        assert list(model.state_dict()) == list(copied.state_dict()) == keys
        visited = train(model, [probe], states, labels=labels)
    assert hooks(model) == before
    assert list(model.state_dict()) == keys
    copied(torch.zeros(1, 4, dtype=torch.int64))  # a copy made while attached runs, and records nothing
    return check_rows(path, visited, first=first)


def waits_for_its_loop(model, path, caplog):
    """Train under a probe that finds no certain loop; returns what it says why, the same as where an input is given."""
    with pytest.raises(LoopSiteError) as refused:
        loopscope.attach(model, path, probe_batch=example_tokens(model))
    assert not path.exists()
    before, alone = hooks(model), copy.deepcopy(model)
    caplog.clear()
    torch.manual_seed(5)
    with loopscope.attach(model, path) as probe:
        train(model, [probe], list)
    assert hooks(model) == before
    torch.manual_seed(5)
    train(alone, [], list)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), alone.parameters(), strict=True))
    with open_run(path) as run:
        assert len(run) == STEPS and np.isfinite(run["loss"]).all()
        assert run.info["site"] is None and np.isnan(run["depth"]).all()  # nothing is guessed
        kinds = [event.kind for event in run.events]
    assert kinds.count("loop_awaited") == 1 and "loop_found" not in kinds
    (said,) = [message for message in caplog.messages if "the probe waits for one" in message]
    shape = r"of shape \d+x\d+"  # of the batch, which is another one in training
    assert re.sub(shape, "", said).endswith(re.sub(shape, "", str(refused.value)))
    return str(refused.value)


@pytest.mark.parametrize("sampling", ["per-batch", "per-sequence"])
@pytest.mark.parametrize("injection", ["diagonal", "linear", "add"])
def test_parcae_stand_in(injection, sampling, foreign, tmp_path):
    torch.manual_seed(0)
    model = foreign("parcae_lm").Parcae(injection, sampling)
    site = adapted_site(model)
    adapted = discover(model)
    for name in ("body", "after", "input_argument", "shared", "sublayers", "prelude", "depth_attribute"):
        assert getattr(site, name) == getattr(adapted, name)
    assert site.depth_attribute == ("config.mean_recurrence" if sampling == "per-batch" else None)
    h, e = torch.randn(2, 3, 16), torch.randn(2, 3, 16)
    for one in (site, adapted):
        a_bar, b_bar = one.a_bar(), one.b_bar()
        linear = (h @ a_bar.mT if a_bar.ndim == 2 else a_bar * h) + (e @ b_bar.mT if b_bar.ndim == 2 else b_bar * e)
        # One multiply-add of 32 terms in float32.
        torch.testing.assert_close(linear, model.transformer["adapter"](h, e), rtol=1e-5, atol=1e-5)
    info, radii = attach_train_detach(model, tmp_path / "run.h5", lambda: model.visited)
    assert info["site"]["found"] == "adapter for parcae_lm"
    assert info["a_bar_learned"] == (injection != "add")
    assert np.isfinite(radii).any() if injection == "linear" else np.isfinite(radii).all()
    with open_run(tmp_path / "run.h5") as run:  # the fixed batch runs at twice the usual depth, where that can be set
        assert run.probe("state_norm").shape[-1] == (2 * 4 + 1 if sampling == "per-batch" else 0)


def test_a_gated_loop_is_not_linearised_unasked(foreign):
    """A sequence that has stopped keeps its state, whatever is put into the loop."""
    torch.manual_seed(0)
    model = foreign("parcae_lm").Parcae("diagonal", "per-sequence")
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(LoopSiteError, match=r"recurrent_iteration_method = 'per-batch'"):
        loopscope.linearize(model, tokens, num_loops=4)
    model.config.recurrent_iteration_method = "per-batch"
    linearization = loopscope.linearize(model, tokens, num_loops=4)
    assert "LTI stable" in linearization.verdict and "sublayers" not in linearization.skipped
    assert model.config.mean_recurrence == 4


def test_huginn_stand_in(foreign, tmp_path):
    torch.manual_seed(0)
    model = foreign("huginn").RavenForCausalLM()
    site, adapted = adapted_site(model), discover(model)
    for name in (
        "body",
        "after",
        "state_argument",
        "input_argument",
        "depth_argument",
        "mean_depth",
        "sublayers",
        "prelude",
    ):
        assert getattr(site, name) == getattr(adapted, name)
    assert torch.equal(torch.cat([adapted.a_bar(), adapted.b_bar()], dim=1), model.transformer["adapter"].weight)
    info, _ = attach_train_detach(model, tmp_path / "run.h5", lambda: model.visited)
    assert info["a_bar_structure"] == "dense"
    with open_run(tmp_path / "run.h5") as run:
        assert run.probe("state_norm").shape[1] == 2 * 4 + 1
        assert np.isfinite(run["input_norm"]).all()


@pytest.mark.parametrize(
    ("file", "name"), [("parcae_lm", "Parcae"), ("ouro", "OuroForCausalLM"), ("bare", "BareParameters")]
)
def test_training_is_bit_identical_with_and_without(file, name, foreign, tmp_path):
    def trained(path):
        torch.manual_seed(0)
        model = getattr(foreign(file), name)()
        probes = [loopscope.attach(model, path)] if path is not None else []
        train(model, probes, lambda: [])
        for probe in probes:
            probe.close()
        return [*model.parameters()], torch.get_rng_state()

    (plain, state), (watched, watched_state) = trained(None), trained(tmp_path / "run.h5")
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    assert torch.equal(state, watched_state)


def test_the_state_inside_a_joined_argument_can_be_replaced(foreign):
    torch.manual_seed(0)
    model = foreign("huginn").RavenForCausalLM().eval()
    tokens = example_tokens(model)
    h = torch.randn(2, 16, 16)
    with loopscope.probes.bound_loop(model, tokens) as loop:
        reached = loop.step(h)
        e = loop.e
    x = model.transformer["adapter"](torch.cat([h, e], dim=-1))
    for block in model.transformer["core_block"]:
        x = block(x, model.freqs_cis[:, :16], None)
    torch.testing.assert_close(reached, x)


def test_models_that_return_objects_can_be_linearised(foreign):
    torch.manual_seed(0)
    model = foreign("ouro").OuroForCausalLM()
    linearization = loopscope.linearize(model, torch.zeros(1, 4, dtype=torch.int64), num_loops=4)
    assert "LTI unknown" in str(linearization.verdict)
    assert "full loop" in str(linearization.verdict)


@pytest.mark.parametrize("labels", ["labels", None])
def test_ouro_stand_in(labels, foreign, tmp_path):
    torch.manual_seed(0)
    model = foreign("ouro").OuroForCausalLM()
    info, radii = attach_train_detach(model, tmp_path / "run.h5", lambda: model.visited, labels=labels)
    assert np.isnan(radii).all()
    assert info["linear_estimate"]["method"] == "least squares of successive steps"
    assert 0 < info["linear_estimate"]["residual"] < 1
    assert discover(model).body == "model.layers.0"
    assert discover(model).depth_attribute == info["site"]["depth_attribute"] == "model.total_ut_steps"
    with open_run(tmp_path / "run.h5") as run:
        assert run.probe("state_norm").shape[1] == 2 * 4 + 1  # at twice the usual depth
    assert model.model.total_ut_steps == 4


def test_a_loop_over_bare_parameters(foreign, tmp_path):
    torch.manual_seed(0)
    model = foreign("bare").BareParameters()
    # No module receives h, so h_0 is not recorded, and the description names it as missing.
    info, _ = attach_train_detach(model, tmp_path / "run.h5", lambda: model.visited, first=1)
    assert info["site"]["output"] == "block"
    assert any("h_0 is not recorded" in note for note in info["site"]["notes"])
    with open_run(tmp_path / "run.h5") as run:  # what was not recorded is no explosion
        assert loopscope.diagnose(run).regimes["trajectory"] == "stable"
        assert np.isfinite(run.series("residual_ratio")[1]).all()
        assert [event.kind for event in run.events] == []
    assert loopscope.linearize(model, example_tokens(model), num_loops=4, budget=1).loops == 4  # where it is returned


def test_an_identity_on_the_state_makes_a_loop_of_bare_parameters_whole(foreign, tmp_path):
    torch.manual_seed(0)
    model = foreign("bare").BareParameters(marked=True)
    info, _ = attach_train_detach(model, tmp_path / "run.h5", lambda: model.visited)
    assert info["site"]["body"] == "loop_state"
    linearization = loopscope.linearize(model, example_tokens(model), num_loops=4)
    assert linearization.verdict


def test_a_loop_of_operations_alone(foreign, tmp_path, caplog):
    torch.manual_seed(0)
    module = foreign("bare")
    why = waits_for_its_loop(module.NoModules(), tmp_path / "unmarked.h5", caplog)
    assert re.search(
        r"(?s)by no module that returns the state.*5 passes.*h = loopscope\.mark\(h, 'h'\) behind bare\.py", why
    )
    model = module.NoModules(marked=True)
    attach_train_detach(model, tmp_path / "run.h5", lambda: model.visited)


def wrap(module, seen):
    """Keeps what a module's forward receives and returns in training, without a hook."""
    forward = module.forward

    def wrapped(*args, **kwargs):
        output = forward(*args, **kwargs)
        if module.training:  # passes over the fixed probe batch are in evaluation mode
            seen.append((args, kwargs, output))
        return output

    module.forward = wrapped
    return module


def open_mythos_model():
    package = pytest.importorskip("open_mythos", reason="the test extra installs open-mythos")
    torch.manual_seed(0)
    return package.OpenMythos(
        package.MythosConfig(
            vocab_size=VOCABULARY, dim=32, n_heads=2, n_kv_heads=2, max_seq_len=32, max_loop_iters=6, prelude_layers=1,
            coda_layers=1, attn_type="gqa", n_experts=4, n_shared_experts=1, n_experts_per_tok=2, expert_dim=16,
            lora_rank=2, act_threshold=0.97,
        )
    )  # fmt: skip


def test_open_mythos(tmp_path):
    model = open_mythos_model()
    site, adapted = adapted_site(model), discover(model)
    for name in ("body", "after", "state_argument", "input_argument", "output", "shared"):
        assert getattr(site, name) == getattr(adapted, name)
    assert torch.equal(site.a_bar(), model.recurrent.injection.get_A())
    seen = []

    torch.nn.init.zeros_(model.recurrent.act.halt.bias)  # the depth then depends on the data
    keys, before = list(model.state_dict()), hooks(model)
    with loopscope.attach(model, tmp_path / "run.h5") as probe:
        wrap(model.recurrent.injection, seen)
        visited = train(model, [probe], lambda: chained(seen), labels=None)
        del model.recurrent.injection.forward
    assert hooks(model) == before
    assert list(model.state_dict()) == keys
    _, radii = check_rows(tmp_path / "run.h5", visited)
    assert len({len(states) for states in visited}) > 1  # halting decides the depth
    assert np.isfinite(radii).all()
    with pytest.raises(LoopSiteError, match="watched but not linearised"):
        loopscope.linearize(model, example_tokens(model))


def albert(groups):
    transformers = pytest.importorskip("transformers", reason="the test extra installs transformers")
    torch.manual_seed(0)
    return transformers.AlbertForMaskedLM(
        transformers.AlbertConfig(
            vocab_size=VOCABULARY, embedding_size=16, hidden_size=32, num_attention_heads=2, intermediate_size=64,
            num_hidden_layers=6, num_hidden_groups=groups,
        )
    )  # fmt: skip


def test_albert_with_one_group_is_found_unaided(tmp_path):
    model = albert(1)
    seen = []
    assert adapted_site(model) is None
    copied = copy.deepcopy(model)
    before = hooks(model)
    with loopscope.attach(model, tmp_path / "run.h5") as probe:
        assert list(model.state_dict()) == list(copied.state_dict())
        wrap(model.albert.encoder.albert_layer_groups[0], seen)
        visited = train(model, [probe], lambda: chained(seen))
    assert hooks(model) == before
    info, _ = check_rows(tmp_path / "run.h5", visited)
    assert info["site"]["body"] == "albert.encoder.albert_layer_groups.0"
    assert info["linear_estimate"]["radius"] is None or info["linear_estimate"]["residual"] > 0


def chained(seen):
    """The states of one forward of a module that receives and returns them."""
    forward = [*seen]
    seen.clear()
    return [forward[0][0][0], *(output for _, _, output in forward)]


def test_albert_with_several_groups_needs_to_be_told_and_records_each(tmp_path, caplog):
    model = albert(2)
    why = waits_for_its_loop(model, tmp_path / "run.h5", caplog)
    sites = [level.site for level in find_levels(model, example_tokens(model))]
    assert [site.body[-1] for site in sites] == ["0", "1"]
    for site in sites:
        assert f"site=LoopSite(body={site.body!r}, after={site.after!r})" in why
    assert str(loopscope.describe(model)) == why
    groups = model.albert.encoder.albert_layer_groups
    seen = [[], []]
    before = hooks(model)
    paths = [tmp_path / "first.h5", tmp_path / "second.h5"]
    probes = [loopscope.attach(model, path, site=site) for path, site in zip(paths, sites, strict=True)]
    for group, calls in zip(groups, seen, strict=True):
        wrap(group, calls)
    visited = train(model, probes, lambda: chained(seen[0]) + chained(seen[1]))
    for probe in probes:
        probe.close()
    assert hooks(model) == before
    check_rows(paths[0], [states[:4] for states in visited])
    check_rows(paths[1], [states[4:] for states in visited])


def small_hrm_text():
    transformers = pytest.importorskip("transformers", reason="the test extra installs transformers")
    if not hasattr(transformers, "HrmTextForCausalLM"):
        pytest.skip("this version of transformers has no HRM-Text")
    torch.manual_seed(0)
    config = transformers.HrmTextConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        head_dim=16, max_position_embeddings=64, H_cycles=2, L_cycles=3, pad_token_id=0,
    )  # fmt: skip
    return transformers.HrmTextForCausalLM(config)


def test_the_two_levels_of_hrm_text_are_recorded_together_unasked(tmp_path):
    model = small_hrm_text()
    high, low, history = [], [], []
    before = hooks(model)
    with loopscope.attach(model, tmp_path / "run.h5") as probe:
        wrap(model.model.H_module, high)
        wrap(model.model.L_module, low)

        def states():
            history.append([[output.detach().double() for _, _, output in level] for level in (low, high)])
            high.clear()
            low.clear()
            return []

        train(model, [probe], states)
    assert hooks(model) == before
    with open_run(tmp_path / "run.h5") as run:
        low_name, high_name = run.variables
        assert (low_name, high_name) == ("hidden_states_low_cycle", "hidden_states_high_cycle")
        assert [v["output"] for v in run.info["site"]["variables"]] == ["model.L_module", "model.H_module"]
        assert len(run) == STEPS and (run["depth"] == 2).all()
        assert (run.loops("pass", variable=low_name) == [0, 1, 1, 1, 2, 2, 2]).all()
        assert (run.loops("pass", variable=high_name) == [0, 1, 2]).all()
        for variable, level in ((low_name, 0), (high_name, 1)):
            for row, of_step in enumerate(history):
                norms = [state.norm(dim=-1).mean().item() for state in of_step[level]]
                moved = [(b - a).norm(dim=-1).mean().item() for a, b in itertools.pairwise(of_step[level])]
                state_norm = run.loops("state_norm", variable=variable)[row]
                residual_norm = run.loops("residual_norm", variable=variable)[row]
                assert np.isnan(state_norm[0])  # what it starts from is no output of its module
                np.testing.assert_allclose(state_norm[1:], norms, rtol=1e-5)
                # Differences of float32 states of norm 6: rounding of some 1e-6 per token.
                np.testing.assert_allclose(residual_norm[1:-1], moved, rtol=1e-4, atol=3e-6)
        for row, (low_states, high_states) in enumerate(history):
            both = [torch.cat(pair, dim=-1) for pair in zip(low_states[2::3], high_states, strict=True)]
            norms = [state.norm(dim=-1).mean().item() for state in both]
            np.testing.assert_allclose(run.loops("state_norm")[row, 1:], norms, rtol=1e-5)
            moved = (both[1] - both[0]).norm(dim=-1).mean().item()
            np.testing.assert_allclose(run.loops("residual_norm")[row, 1], moved, rtol=1e-4, atol=3e-6)


def test_the_two_levels_of_hrm_text_are_told_apart_and_recorded_each(tmp_path):
    model = small_hrm_text()
    outer, inner = find_levels(model, example_tokens(model))
    assert (outer.loops, inner.loops) == (2, 3)
    assert outer.site.output == "model.H_module"
    assert (inner.site.body, inner.site.after) == ("model.L_module", "model.H_module")
    high, low = [], []
    before = hooks(model)
    paths = [tmp_path / "outer.h5", tmp_path / "inner.h5"]
    probes = [loopscope.attach(model, path, site=level.site) for path, level in zip(paths, (outer, inner), strict=True)]
    wrap(model.model.H_module, high)
    wrap(model.model.L_module, low)
    history = []

    def states():
        h, runs = [*high], ([*low][:3], [*low][3:])  # the low level runs its loop once per outer cycle
        high.clear()
        low.clear()
        entered = [[*(args[0] for args, _, _ in run), h[cycle][0][0]] for cycle, run in enumerate(runs)]
        history.append([torch.cat(both).detach().double() for both in zip(*entered, strict=True)])
        return [h[0][2], *(output for _, _, output in h)]  # the first stands for h_0, which is not recorded

    visited = train(model, probes, states)
    for probe in probes:
        probe.close()
    assert hooks(model) == before
    check_rows(paths[0], visited, first=1)
    check_rows(paths[1], history)


def test_a_site_must_be_complete():
    with pytest.raises(LoopSiteError, match="output="):
        loopscope.describe(
            torch.nn.Linear(2, 2), torch.ones(1, 2), site=LoopSite(body="", after="", state_argument=None)
        )


def test_a_site_that_looks_in_the_wrong_place(foreign):
    model = foreign("huginn").RavenForCausalLM()
    site = LoopSite(body="transformer.adapter", after="transformer.ln_f", input_argument=1)
    with pytest.raises(LoopSiteError, match=r"receives \[0\], and no tensors where .* input_argument=1"):
        loopscope.describe(model, site=site)
