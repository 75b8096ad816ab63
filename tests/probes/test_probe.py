"""The probe on a real training loop: what it writes, and that training does not notice."""

import copy
import pickle
import random

import loopscope
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loopscope import models
from loopscope.models import recipe, standard_library
from loopscope.models.train import train
from loopscope.probes import LoopSite, LoopSiteError, Preset, every, open_run
from loopscope.runfile.ending import ending
from torch import nn


def run_steps(model, steps, probe=None, seed=0):
    """A plain training loop with dropout-like randomness of its own; returns losses and random states at the end."""
    torch.manual_seed(seed)
    data = torch.randint(0, 256, (steps, 4, 33), generator=torch.Generator().manual_seed(5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for batch in data:
        logits = model(batch[:, :-1])  # depth and h_0 are drawn from torch's global stream
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if probe is not None:
            probe.step(loss=loss, grad_norm=norm, lr=0.01)
        losses.append(loss.detach())
    return torch.stack(losses), (torch.get_rng_state(), random.getstate(), np.random.get_state())  # noqa: NPY002


@pytest.mark.parametrize("checkpointing", ["none", "reentrant", "non-reentrant"])
@pytest.mark.parametrize("injection", ["addition", "concatenation", "parcae"])
def test_training_is_bit_identical_with_and_without(injection, checkpointing, demo_model, tmp_path):
    plain = demo_model(injection, activation_checkpointing=checkpointing)
    losses, states = run_steps(plain, 50)
    watched = demo_model(injection, activation_checkpointing=checkpointing)
    with loopscope.attach(watched, tmp_path / "run.h5") as probe:
        watched_losses, watched_states = run_steps(watched, 50, probe)
    assert torch.equal(losses, watched_losses)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))
    assert torch.equal(states[0], watched_states[0])
    assert states[1] == watched_states[1]
    assert all(np.array_equal(a, b) for a, b in zip(states[2], watched_states[2], strict=True))
    with open_run(tmp_path / "run.h5") as run:
        assert len(run) == 50
        np.testing.assert_array_equal(run["loss"], losses.double().numpy())
        assert len(run.probe_steps) > 5


@pytest.mark.parametrize("injection", ["addition", "concatenation", "parcae"])
def test_linear_part_is_that_of_the_steps_forward(injection, demo_model, tmp_path):
    model = demo_model(injection)
    radii, norms = [], []

    def note(module, args):
        if module.training:
            a = module.injection.a_bar().detach().double()
            dense = a if a.ndim == 2 else torch.diag(a.expand(32))
            radii.append(np.abs(np.linalg.eigvals(dense.numpy())).max())
            norms.append(np.linalg.svd(dense.numpy(), compute_uv=False)[0])

    model.register_forward_pre_hook(note)
    with loopscope.attach(model, tmp_path / "run.h5") as probe:
        run_steps(model, 12, probe)
    with open_run(tmp_path / "run.h5") as run:
        # Both are LAPACK in float64 on the same float32 entries; a random matrix is that well conditioned.
        np.testing.assert_allclose(run["a_bar_radius"], radii, rtol=1e-10)
        np.testing.assert_allclose(run["a_bar_norm"], norms, rtol=1e-10)
        steps, eigenvalues = run.spectra()
    assert steps.tolist() == [0, 10]
    np.testing.assert_allclose(np.nanmax(np.abs(eigenvalues), axis=1), [radii[0], radii[10]], rtol=1e-10)
    if injection == "parcae":
        assert radii[0] == pytest.approx(1 / np.sqrt(5), rel=1e-6)  # float32 parameters
    if injection == "addition":
        assert set(radii) == {1.0}


def test_recorded_loops_are_those_of_the_training_forwards(demo_model, recorded_states, tmp_path):
    model = demo_model("concatenation")
    states = recorded_states(model)
    with loopscope.attach(
        model, tmp_path / "run.h5", preset=Preset("rows", every(1), every(10), every(10**9))
    ) as probe:
        run_steps(model, 6, probe)
    training = [f for f, trained in zip(states.forwards, states.training, strict=True) if trained]
    with open_run(tmp_path / "run.h5") as run:
        state = run.loops("state_norm")
        depths = run["depth"]
    for row, forward in zip(state, training, strict=True):
        expected = [float(h.norm(dim=-1).mean()) for h in forward]
        np.testing.assert_allclose(row[: len(expected)], expected, rtol=2e-6)  # float32 sums over 128 tokens
        assert np.isnan(row[len(expected) :]).all()
    assert depths.tolist() == [len(f) - 1 for f in training]


def test_evaluation_between_steps_and_accumulation(demo_model, tokens, tmp_path):
    model = demo_model()
    with loopscope.attach(model, tmp_path / "run.h5") as probe:
        for _ in range(3):
            for depth in (2, 5):
                model(tokens, num_loops=depth).sum().backward()
            with torch.no_grad():
                model.eval()(tokens, num_loops=11)
            model.train()
            probe.step(loss=1.0)
    with open_run(tmp_path / "run.h5") as run:
        assert run["depth"].tolist() == [3.5] * 3
        assert run["depth_max"].tolist() == [5] * 3


def test_resuming_goes_on_in_the_same_file(demo_model, tmp_path):
    path = tmp_path / "run.h5"
    for steps in (4, 3):
        model = demo_model()
        with loopscope.attach(model, path, resume=True) as probe:
            run_steps(model, steps, probe)
    model = demo_model()
    with loopscope.attach(model, path, resume=True) as probe:  # from a checkpoint older than the last row
        model(torch.zeros(1, 8, dtype=torch.int64))
        probe.step(step=5, loss=42.0)
    with open_run(path) as run:
        # Step 6 of the second process belongs to a future that the third one left behind; history() still has it.
        assert run["step"].tolist() == [0, 1, 2, 3, 4, 5]
        assert run["loss"][5] == 42.0
        assert run["generation"].tolist() == [0, 0, 0, 0, 1, 2]
        assert run.history()["step"].tolist() == [0, 1, 2, 3, 4, 5, 6, 5]


def test_an_existing_file_is_not_touched_without_being_asked(demo_model, tmp_path):
    path = tmp_path / "run.h5"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="resume=True"):
        loopscope.attach(demo_model(), path)
    assert path.read_bytes() == b"precious"


def test_a_probe_waits_for_a_loop_and_says_so(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2))
    with loopscope.attach(model, tmp_path / "run.h5") as probe:
        for _ in range(3):
            probe.step(loss=model(torch.ones(1, 2)).sum())
    with open_run(tmp_path / "run.h5") as run:
        assert len(run) == 3 and run.info["site"] is None and np.isnan(run["depth"]).all()
        said = [event.message for event in run.events if event.kind == "loop_awaited"]
        assert said and "no module runs twice" in said[0]
    with pytest.raises(LoopSiteError, match=r"Sequential does not state where its loop is.*site=LoopSite"):
        loopscope.attach(model, tmp_path / "other.h5", probe_batch=torch.ones(1, 2))
    assert not (tmp_path / "other.h5").exists()


def test_a_site_given_by_hand_and_one_that_names_nothing(tmp_path):
    class Toy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inject, self.head = nn.Linear(4, 4, bias=False), nn.Linear(4, 3)

        def forward(self, x):
            h = x
            for _ in range(5):
                h = self.inject(h)
            return self.head(h)

    model = Toy()
    site = LoopSite(body="inject", after="head", a_bar=lambda: model.inject.weight)
    with loopscope.attach(model, tmp_path / "run.h5", site=site) as probe:
        x = torch.randn(2, 3, 4)
        model(x).sum().backward()
        probe.step(loss=0.5, accuracy=0.25)
    with open_run(tmp_path / "run.h5") as run:
        assert run["depth"].tolist() == [5]
        assert run["accuracy"].tolist() == [0.25]
        assert run["a_bar_radius"][0] == pytest.approx(
            np.abs(np.linalg.eigvals(model.inject.weight.detach().double().numpy())).max(), rel=1e-10
        )
        assert run.loops("state_norm")[0, 0] == pytest.approx(float(x.norm(dim=-1).mean()), rel=1e-6)
    with pytest.raises(LoopSiteError, match=r"body='nowhere'.*has inject, head"):
        loopscope.attach(model, tmp_path / "b.h5", site=LoopSite(body="nowhere", after="head"))


def test_nothing_of_the_probe_stays_in_the_model(demo_model, tmp_path):
    model = demo_model()
    keys = list(model.state_dict())
    hooks = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    with loopscope.attach(model, tmp_path / "run.h5") as probe:
        run_steps(model, 2, probe)
        assert list(model.state_dict()) == keys
        twin = copy.deepcopy(model)
        twin(torch.zeros(1, 8, dtype=torch.int64))  # a copy carries no working probe along
        pickle.loads(pickle.dumps(model))  # noqa: S301 - our own bytes
        run_steps(model, 1, probe)
    assert {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()} == hooks
    with open_run(tmp_path / "run.h5") as run:
        assert len(run) == 3
        assert run["depth_max"][2] == np.isfinite(run.loops("state_norm")[2]).sum() - 1


def test_nan_losses_and_spikes_become_events(demo_model, tokens, tmp_path):
    model = demo_model()
    losses = [3.0 + 0.01 * (step % 3) for step in range(30)] + [30.0, 3.0, float("nan"), float("nan"), 3.0]
    with loopscope.attach(model, tmp_path / "run.h5") as probe:
        for loss in losses:
            model(tokens)
            probe.step(loss=torch.tensor(loss))
    with open_run(tmp_path / "run.h5") as run:
        happened = [(event.step, event.kind) for event in run.events if event.kind != "flight"]
        assert happened == [(30, "loss_spike"), (32, "non_finite")]
        assert run["nonfinite"].sum() == 2
    diagnosis = loopscope.diagnose(open_run(tmp_path / "run.h5"))
    assert [finding.rule for finding in diagnosis.findings] == ["LS010", "LS001"]


def test_a_probe_that_breaks_says_so_once_and_numbers_go_on(demo_model, tokens, tmp_path, caplog, monkeypatch):
    model = demo_model()
    with loopscope.attach(model, tmp_path / "run.h5") as probe:
        model(tokens)
        probe.step(loss=1.0)
        monkeypatch.setattr("loopscope.probes.measure.sums.LoopSums.device_rows", lambda sums: 1 / 0)
        for _ in range(3):
            model(tokens).sum().backward()
            probe.step(loss=2.0, lr=0.1)
    assert sum("the probe failed" in record.message for record in caplog.records) == 1
    with open_run(tmp_path / "run.h5") as run:
        assert run["loss"].tolist() == [1.0, 2.0, 2.0, 2.0] and run["lr"][1:].tolist() == [0.1] * 3
        assert np.isfinite(run["depth"]).tolist() == [True, False, False, False]
        end = ending(run)
    assert (end.state, end.lost_from) == ("finished", 1)
    assert "ZeroDivisionError: division by zero" in end.lost_reason


def test_a_run_that_was_cut_short_reads_as_interrupted(demo_model, tokens, tmp_path):
    model = demo_model()
    with pytest.raises(RuntimeError, match="out of luck"), loopscope.attach(model, tmp_path / "run.h5") as probe:
        model(tokens)
        probe.step(loss=1.0)
        raise RuntimeError("out of luck")
    with open_run(tmp_path / "run.h5") as run:
        assert (run.state, len(run)) == ("interrupted", 1)
    with loopscope.attach(model, tmp_path / "run.h5", resume=True) as probe:
        model(tokens)
        probe.step(loss=1.0)
    with open_run(tmp_path / "run.h5") as run:
        assert (run.state, len(run)) == ("finished", 2)


def test_the_trainer_and_the_probe_agree(demo_model, tmp_path):
    model = demo_model()
    config = recipe("demo", steps=5)
    data = standard_library(sequence_length=16)
    with loopscope.attach(model, tmp_path / "run.h5", config={"lr": config.lr}) as probe:
        train(model, data, config, observer=probe)
    with open_run(tmp_path / "run.h5") as run:
        assert run["step"].tolist() == [0, 1, 2, 3, 4]
        assert run["tokens"].tolist() == [128 * k for k in (1, 2, 3, 4, 5)]
        assert run.info["config"] == {"lr": config.lr}
        assert run.state == "finished"
        assert (run["probe_seconds"] > 0).all()
        assert (run["rows_dropped"] == 0).all()


def test_the_fixed_batch_is_the_beginning_of_the_first_one(demo_model, tmp_path):
    model = demo_model(max_length=100)
    long = torch.randint(0, 256, (4, 100), generator=torch.Generator().manual_seed(5))
    with loopscope.attach(model, tmp_path / "run.h5") as probe:
        probe.step(loss=model(long, num_loops=2).logsumexp(-1).mean())
        assert torch.equal(probe._watch.batch.call.tokens, long[:2, :64])
    with open_run(tmp_path / "run.h5") as run:
        assert (run.probe("tokens") == 128).all()


def test_a_model_that_takes_one_length_only_is_given_it(demo_model, tmp_path, caplog):
    model = demo_model(max_length=100)
    long = torch.randint(0, 256, (4, 100), generator=torch.Generator().manual_seed(5))
    lengths = []

    def only_this_length(module, args):
        lengths.append(args[0].shape[1])
        if args[0].shape[1] != 100:
            raise ValueError("sequences of 100 positions, please")

    model.register_forward_pre_hook(only_this_length)
    with loopscope.attach(model, tmp_path / "run.h5") as probe:
        for _ in range(12):
            probe.step(loss=model(long, num_loops=2).logsumexp(-1).mean())
    assert lengths.count(64) == 1  # tried once
    assert not caplog.records
    with open_run(tmp_path / "run.h5") as run:
        assert run.probe_steps.tolist() == [0, 10, 11]
        assert (run.probe("tokens") == 200).all()


def test_passes_compile_nothing(demo_model, tmp_path):
    """A graph for the fixed batch's shape and depth would cost more than all its passes."""

    def graphs(passes):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model = demo_model()
        for block in model.core:
            block.compile(backend="eager")
        preset = Preset("rows", every(1), every(1), every(1) if passes else lambda step: False)
        with loopscope.attach(model, tmp_path / "run.h5", preset=preset, overwrite=True) as probe:
            for _ in range(3):
                loss = model(torch.zeros(4, 32, dtype=torch.int64), num_loops=3).logsumexp(-1).mean()
                loss.backward()
                probe.step(loss=loss)
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    without = graphs(False)
    assert graphs(True) == without >= 1
    with open_run(tmp_path / "run.h5") as run:
        assert run.probe_steps.tolist() == [0, 1, 2] and run["depth"].tolist() == [3, 3, 3]


def test_a_model_compiled_in_place_is_looked_at_with_its_first_batch(demo_model, tmp_path):
    torch._dynamo.reset()
    model = demo_model()
    model.compile(backend="eager")
    with loopscope.attach(model, tmp_path / "run.h5") as probe:
        for _ in range(3):
            probe.step(loss=model(torch.zeros(4, 32, dtype=torch.int64), num_loops=3).logsumexp(-1).mean())
    with open_run(tmp_path / "run.h5") as run:
        assert run["depth"].tolist() == [3] * 3 and run.probe_steps.tolist() == [0, 2]


def test_a_model_called_inside_a_graph_needs_a_batch_and_says_so(demo_model, tmp_path, caplog):
    torch._dynamo.reset()
    model = demo_model()

    @torch.compile(backend="eager")
    def loss(tokens):
        return model(tokens, num_loops=3).logsumexp(-1).mean()

    with loopscope.attach(model, tmp_path / "run.h5") as probe:
        for _ in range(12):
            probe.step(loss=loss(torch.zeros(4, 32, dtype=torch.int64)))
    (said,) = [record.message for record in caplog.records if "fixed batch" in record.message]
    assert "inside of a compiled graph" in said and "probe_batch" in said
    with open_run(tmp_path / "run.h5") as run:
        assert run["depth"].tolist() == [3] * 12 and len(run.probe_steps) == 0


class Summed(nn.Module):
    """A loop without buffers, found from a forward."""

    def __init__(self):
        super().__init__()
        self.embed, self.block, self.head = nn.Embedding(256, 8), nn.Linear(8, 8), nn.Linear(8, 256)
        self.inject = nn.Linear(16, 8, bias=False)

    def forward(self, tokens, num_loops=3):
        e = self.embed(tokens)
        h = torch.zeros_like(e)
        for _ in range(num_loops):
            h = torch.tanh(self.block(self.inject(torch.cat([h, e], dim=-1))))
        return self.head(h)


def to_empty(model):
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)


def assigned(model):
    model.load_state_dict(Summed().state_dict(), assign=True)


def one_by_one(model):
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                setattr(module, name, nn.Parameter(0.05 * torch.randn(parameter.shape)))


@pytest.mark.parametrize("fill", [to_empty, assigned, one_by_one])
def test_a_model_without_values_is_watched_as_soon_as_it_has_some(fill, tokens, tmp_path):
    with torch.device("meta"):
        model = Summed()
    with loopscope.attach(model, tmp_path / "a.h5") as probe:
        probe.step(loss=3.0)  # nothing can run yet
        fill(model)
        for _ in range(3):
            probe.step(loss=model(tokens, num_loops=3).logsumexp(-1).mean())
    with open_run(tmp_path / "a.h5") as run:
        assert np.isfinite(run["loss"]).all() and run["depth"].tolist()[2:] == [3.0, 3.0]
        assert np.isnan(run["depth"][:2]).all() and (run["a_bar_radius"][2:] > 0).all()
        assert [event.kind for event in run.events if event.severity != "note"] == []
        assert ending(run).lost_from is None and "loop_awaited" in [event.kind for event in run.events]


def test_a_loop_that_cannot_be_watched_once_it_has_values_is_lost_and_numbers_go_on(tmp_path, monkeypatch):
    with torch.device("meta"):
        model = models.build("demo")
    with loopscope.attach(model, tmp_path / "a.h5") as probe:
        to_empty(model)
        monkeypatch.setattr("loopscope.probes.probe.tap_on", lambda *args: 1 / 0)
        for _ in range(3):
            probe.step(loss=3.0)
    with open_run(tmp_path / "a.h5") as run:
        assert run["loss"].tolist() == [3.0] * 3 and ending(run).lost_from == 1


def test_a_model_whose_parameters_have_no_shape_is_refused_before_it_is_looked_at(tmp_path):
    lazy = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 4))
    with pytest.raises(ValueError, match="lazy modules"):
        loopscope.attach(lazy, tmp_path / "b.h5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("a_bar_radus >= 1", r"rules.toml:3:\d+: rule A: .* 'a_bar_radus'; did you mean a_bar_radius\?"),
        ("loss > 1 and resdual_ratio > 2", r"rules.toml:3:\d+: rule A: .*did you mean residual_ratio\?"),
        ("not loss_zscoer < 6", r"did you mean loss_zscore\?"),
        ("temperature > 3", r"declare numbers of your own: attach\(scalars=\[...\]\)"),
    ],
)
def test_a_live_rule_over_a_name_that_no_row_will_have_is_refused_at_attach(expression, says, demo_model, tmp_path):
    from loopscope.rules.rule_files import RuleError

    rules = tmp_path / "rules.toml"
    rules.write_text(f'[[rule]]\nid = "A"\nexpr = "{expression}"\n')
    with pytest.raises(RuleError, match=says):
        loopscope.attach(demo_model(), tmp_path / "a.h5", rules=rules)
    assert not (tmp_path / "a.h5").exists()
    if "temperature" in expression:
        loopscope.attach(demo_model(), tmp_path / "a.h5", rules=rules, scalars=["temperature"]).close()
        loopscope.attach(demo_model(), tmp_path / "a.h5", rules=rules, resume=True).close()  # the file has it


@pytest.mark.parametrize("how", ["later checkpoint", "no file", "begun in the middle", "thinned"])
def test_steps_that_no_file_holds_are_said(how, demo_model, tmp_path):
    def record(steps, **options):
        with loopscope.attach(demo_model(), tmp_path / "a.h5", **options) as probe:
            for step in steps:
                probe.step(step=step, loss=3.0)

    if how in ("later checkpoint", "thinned"):
        record(range(0, 40, 10) if how == "thinned" else range(5))
    begins = {"later checkpoint": 9, "no file": 9, "begun in the middle": 9, "thinned": 40}[how]
    record([begins, begins + 1], resume=how != "begun in the middle")
    with open_run(tmp_path / "a.h5") as run:
        said = [(event.severity, event.value, event.message) for event in run.events if event.kind == "steps_missing"]
        findings = [finding.name for finding in loopscope.diagnose(run).findings]
    if how == "thinned":
        assert not said
    else:
        severity, missing, first = (
            ("warning", 4.0, "5 to 8") if how == "later checkpoint" else ("warning", 9.0, "0 to 8")
        )
        severity = "note" if how == "begun in the middle" else severity
        assert [each[:2] for each in said] == [(severity, missing)] and first in said[0][2]
        assert ("steps-missing" in findings) == (severity == "warning")
