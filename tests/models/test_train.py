"""The training loop: resuming, stopping, observing."""

import dataclasses
import os
import signal

import pytest
import torch
from loopscope.models import build, standard_library
from loopscope.models.checkpoint import CheckpointError, load, load_model, steps
from loopscope.models.optimizers import schedule
from loopscope.models.train import TrainConfig, train


@pytest.fixture(scope="module")
def text():
    return standard_library(sequence_length=16)


def model_of(seed=0, **overrides):
    torch.manual_seed(seed)
    return build("demo", **overrides)


class Record:
    """Keeps what the trainer says, and may raise or signal at a given step."""

    def __init__(self, at=None, action=None):
        self.rows, self.at, self.action = [], at, action

    def flush(self):
        pass

    def step(self, *, step, loss, grad_norm, lr, tokens):
        self.rows.append((loss.item(), grad_norm.item(), lr, tokens))
        if len(self.rows) == self.at:
            self.action()


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("options", [{}, {"accumulation": 2, "cooldown": 0.5}])
@pytest.mark.parametrize("sampling", ["per-batch", "per-sequence"])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, text, options, sampling):
    config = TrainConfig(steps=8, batch_size=4, lr=0.01, warmup_steps=2, checkpoint_every=3, **options)
    whole, watch = model_of(depth_sampling=sampling), Record()
    train(whole, text, config, observer=watch)

    first = model_of(depth_sampling=sampling)
    cut = Record(at=5, action=lambda: os.kill(os.getpid(), signal.SIGINT))
    result = train(first, text, config, observer=cut, checkpoint_path=tmp_path / "c")
    assert result.interrupted and result.step == 5
    second, rest = model_of(seed=9, depth_sampling=sampling), Record()
    torch.manual_seed(123)  # whatever ran before must not matter
    result = train(second, text, config, observer=rest, checkpoint_path=tmp_path / "c", resume=True)
    assert result.step == 8 and not result.interrupted
    assert cut.rows + rest.rows == watch.rows
    assert same_weights(whole, second)


def test_progress_may_stop_the_run(tmp_path, text):
    def stop(progress):
        raise KeyboardInterrupt

    config = TrainConfig(steps=500, batch_size=2)
    result = train(model_of(), text, config, checkpoint_path=tmp_path / "c", on_progress=stop)
    assert result.interrupted and 0 < result.step < 500
    assert load(tmp_path / "c")[2]["step"] == result.step


def test_observer_is_told_every_step(text):
    watch = Record()
    train(model_of(), text, TrainConfig(steps=3, batch_size=2, accumulation=2, lr=0.1, warmup_steps=2), observer=watch)
    assert [row[2] for row in watch.rows] == [0.05, 0.1, 0.1]
    assert [row[3] for row in watch.rows] == [64, 128, 192]  # 2 sequences * 2 micro-batches * 16 positions


def test_rate_warms_up_holds_and_cools_down():
    config = TrainConfig(steps=10, warmup_steps=2, cooldown=0.5)
    rates = [schedule(step, config) for step in range(10)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2], rel=1e-12)


def test_loss_falls_on_real_text(text):
    watch = Record()
    train(model_of(), text, TrainConfig(steps=60, batch_size=8, lr=0.01), observer=watch)
    # ln 256 = 5.5 at first; unigrams of this text have 3.15 nats, so four is far below chance
    assert watch.rows[0][0] > 5 and watch.rows[-1][0] < 4


def test_checkpoint_gives_the_model_back(tmp_path, text):
    model = model_of()
    train(model, text, TrainConfig(steps=2, batch_size=2), checkpoint_path=tmp_path / "c")
    twin = load_model(tmp_path / "c")
    assert same_weights(model, twin) and twin.config == model.config and not twin.training
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["latest", "step-00000002"]


def test_old_checkpoints_go(tmp_path, text):
    train(model_of(), text, TrainConfig(steps=5, batch_size=2, checkpoint_every=1), checkpoint_path=tmp_path / "c")
    assert sorted(p.name for p in (tmp_path / "c").glob("step-*")) == ["step-00000004", "step-00000005"]


def test_a_new_run_in_an_old_folder_wins(tmp_path, text):
    """Steps of an older, longer run must not outlive the new one's."""
    train(model_of(), text, TrainConfig(steps=4, batch_size=2, checkpoint_every=2), checkpoint_path=tmp_path / "c")
    fresh = model_of(seed=1)
    train(fresh, text, TrainConfig(steps=2, batch_size=2), checkpoint_path=tmp_path / "c")
    assert load(tmp_path / "c")[2]["step"] == 2 and same_weights(load_model(tmp_path / "c"), fresh)


@pytest.mark.parametrize("victim", ["save_file", "torch.save", "_sync"])
def test_a_kill_while_saving_leaves_the_step_before(tmp_path, text, monkeypatch, victim):
    config = TrainConfig(steps=3, batch_size=2, checkpoint_every=2)
    train(model_of(), text, TrainConfig(steps=2, batch_size=2), checkpoint_path=tmp_path / "c")

    def killed(*args, **kwargs):
        raise SystemExit("killed")

    with monkeypatch.context() as patch:
        patch.setattr(f"loopscope.models.checkpoint.{victim}", killed)
        with pytest.raises(SystemExit):
            train(model_of(), text, config, checkpoint_path=tmp_path / "c", resume=True)
    assert load(tmp_path / "c")[2]["step"] == 2
    assert train(model_of(), text, config, checkpoint_path=tmp_path / "c", resume=True).step == 3
    assert not list((tmp_path / "c").glob(".step-*"))


def test_resuming_a_finished_run_does_nothing(tmp_path, text):
    config = TrainConfig(steps=2, batch_size=2)
    first = train(model_of(), text, config, checkpoint_path=tmp_path / "c")
    again = train(model_of(seed=4), text, config, checkpoint_path=tmp_path / "c", resume=True)
    assert (again.step, again.loss, again.tokens, again.interrupted) == (2, first.loss, first.tokens, False)


def test_refusals_say_what_and_where(tmp_path, text):
    config = TrainConfig(steps=1, batch_size=2)
    with pytest.raises(ValueError, match=r"^resume: "):
        train(model_of(), text, config, resume=True)
    train(model_of(), text, config, checkpoint_path=tmp_path / "c")
    longer = TrainConfig(steps=2, batch_size=2)
    assert train(model_of(), text, longer, checkpoint_path=tmp_path / "c", resume=True).step == 2
    with pytest.raises(ValueError, match="injection was 'parcae' in the checkpoint and is 'addition' now"):
        train(model_of(injection="addition"), text, config, checkpoint_path=tmp_path / "c", resume=True)
    with pytest.raises(ValueError, match=r"lr was 0\.003 in the checkpoint and is 0\.1 now"):
        other = TrainConfig(steps=3, batch_size=2, lr=0.1)
        train(model_of(), text, other, checkpoint_path=tmp_path / "c", resume=True)
    with pytest.raises(CheckpointError, match="expected a checkpoint folder"):
        load(tmp_path)
    (tmp_path / "c" / "step-00000002" / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load(tmp_path / "c")


BAD_FIELDS = {
    "steps": [0, 1.5, "9"],
    "batch_size": [0],
    "accumulation": [0, True],
    "lr": [0.0, "0.1", float("nan")],
    "betas": [(0.9, 1.0), (0.9,), 0.9],
    "eps": [0.0],
    "weight_decay": [-1.0, None],
    "muon_lr": [-1],
    "muon_momentum": [1.0],
    "muon_weight_decay": [-0.1],
    "warmup_steps": [-1],
    "cooldown": [1.5],
    "clip": [0.0],
    "seed": [-1],
    "optimizer": ["sgd"],
    "precision": ["fp16"],
    "compile": ["yes"],
    "parallelism": ["tp"],
    "eval_every": [-1],
    "eval_depths": [(0,), 8],
    "eval_batches": [0],
    "checkpoint_every": [-1],
    "keep_checkpoints": [-1, 1],
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in BAD_FIELDS.items() for v in values])
def test_a_bad_field_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field}: expected"):
        TrainConfig(**{field: value})


def test_every_field_is_checked():
    assert set(BAD_FIELDS) == {f.name for f in dataclasses.fields(TrainConfig)}


def test_muon_run_resumes_bit_for_bit(tmp_path, text):
    config = TrainConfig(steps=6, batch_size=2, optimizer="muon", accumulation=2, cooldown=0.5, checkpoint_every=4)
    whole, watch = model_of(), Record()
    train(whole, text, config, observer=watch)
    cut = Record(at=4, action=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train(model_of(), text, config, observer=cut, checkpoint_path=tmp_path / "c").interrupted
    second, rest = model_of(seed=5), Record()
    train(second, text, config, observer=rest, checkpoint_path=tmp_path / "c", resume=True)
    assert cut.rows + rest.rows == watch.rows and same_weights(whole, second)


def test_bfloat16_stays_near_float32(text):
    ends = []
    for precision in ("fp32", "bf16"):
        model, watch = model_of(), Record()
        train(model, text, TrainConfig(steps=20, batch_size=4, lr=0.01, precision=precision), observer=watch)
        assert all(p.dtype == torch.float32 for p in model.parameters())
        ends.append(watch.rows)
    # eight bits of mantissa, 1/256 relative per product, averaged over a batch: a few hundredths of a nat
    assert (
        ends[0] != ends[1] and abs(ends[0][0][0] - ends[1][0][0]) < 0.02 and abs(ends[0][-1][0] - ends[1][-1][0]) < 0.1
    )


def test_progress_carries_rates_and_evaluations(text):
    seen = []
    config = TrainConfig(steps=6, batch_size=2, eval_every=3, eval_depths=(1, 4), eval_batches=1)
    train(model_of(), text, config, on_progress=seen.append)
    assert seen[-1].step == 6 and seen[-1].tokens == 6 * 2 * 16 and seen[-1].tokens_per_second > 0
    evaluated = [p for p in seen if p.evaluation]
    assert [p.step for p in evaluated] == [3, 6] and set(evaluated[0].evaluation) == {1, 4}


class Lacking(Record):
    """A record that could not be kept safe at some of the flushes."""

    def __init__(self, kept):
        super().__init__()
        self.kept = list(kept)

    def flush(self):
        return self.kept.pop(0) if self.kept else True


@pytest.mark.parametrize(
    ("kept", "checkpoints", "unrecorded"),
    [
        ([True, False, True, True], [2, 6, 7], 0),  # the disk has room again: one checkpoint was left out
        ([False, False, False, True], [4, 7], 0),  # two in a row are one too many: the second is written all the same
        ([True, True, True, False], [2, 4, 6, 7], 7),  # the weights of the end are never given up
    ],
)
def test_a_checkpoint_waits_for_a_record_that_lacks_steps_and_not_for_ever(
    kept, checkpoints, unrecorded, tmp_path, text, monkeypatch
):
    from loopscope.models import train as module

    written = []
    save = module.Training.save
    monkeypatch.setattr(module.Training, "save", lambda run, path: (written.append(run.step), save(run, path)))
    config = TrainConfig(steps=7, batch_size=2, checkpoint_every=2)
    result = train(model_of(), text, config, observer=Lacking(kept), checkpoint_path=tmp_path / "c")
    assert (written, result.unrecorded) == (checkpoints, unrecorded)


@pytest.mark.parametrize(("keep", "left"), [(2, [4, 5]), (3, [3, 4, 5]), (0, [1, 2, 3, 4, 5])])
def test_as_many_checkpoints_stay_as_are_asked_for(keep, left, tmp_path, text):
    config = TrainConfig(steps=5, batch_size=2, checkpoint_every=1, keep_checkpoints=keep)
    train(model_of(), text, config, checkpoint_path=tmp_path / "c")
    assert list(steps(tmp_path / "c")) == left
