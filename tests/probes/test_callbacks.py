"""The callbacks inside the real trainers of transformers and Lightning, and `attach` on what Accelerate prepares."""

import logging
import subprocess
import sys
from types import SimpleNamespace

import loopscope
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loopscope.models import build
from loopscope.probes import callbacks, open_run
from torch import nn
from torch.utils.data import DataLoader, Dataset

SEQUENCES = torch.randint(0, 256, (64, 17), generator=torch.Generator().manual_seed(3))


class Text(Dataset):
    def __init__(self, keywords):
        self.keywords = keywords

    def __len__(self):
        return len(SEQUENCES)

    def __getitem__(self, index):
        return {"input_ids": SEQUENCES[index], "labels": SEQUENCES[index]} if self.keywords else SEQUENCES[index]


class LanguageModel(nn.Module):
    """A looped model that returns its loss, as Hugging Face's models do; fails or blows up when told to."""

    def __init__(self, injection="parcae"):
        super().__init__()
        torch.manual_seed(0)
        self.looped = build("demo", injection=injection)
        self.failing_call = self.nan_call = -1
        self.calls = 0

    def forward(self, input_ids, labels=None):
        return self.result(input_ids, labels, {})

    def result(self, input_ids, labels, how):
        logits = self.looped(input_ids[:, :-1], num_loops=3)
        if labels is None:
            return {"logits": logits}
        items = how.get("num_items_in_batch")
        reduction = "mean" if items is None else "sum"
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction=reduction)
        if items is not None:
            loss = loss / items
        if self.training:
            self.calls += 1
            if self.calls - 1 == self.failing_call:
                raise ZeroDivisionError("the training died")
            if self.calls - 1 == self.nan_call:
                loss = loss * float("nan")
        return {"loss": loss, "logits": logits}


class CountingModel(LanguageModel):
    """One that divides by the items of all micro-batches, as Hugging Face's language models do."""

    def forward(self, input_ids, labels=None, **kwargs):
        return self.result(input_ids, labels, kwargs)


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture
def hf_trainer(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    def make(model, callbacks, trainer=transformers.Trainer, **settings):
        settings = {"max_steps": 4, "logging_steps": 1, "save_strategy": "no", "learning_rate": 1e-3} | settings
        args = transformers.TrainingArguments(
            output_dir=str(tmp_path / "out"),
            per_device_train_batch_size=4,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            max_grad_norm=0.5,
            **settings,
        )
        return trainer(model=model, args=args, train_dataset=Text(True), eval_dataset=Text(True), callbacks=callbacks)

    return make


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry and "loss" in entry]


@pytest.mark.parametrize("model_class", [LanguageModel, CountingModel])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_hugging_face_rows_are_the_trainers_own_numbers(model_class, accumulation, hf_trainer, tmp_path):
    model = model_class()
    callback = callbacks.LoopscopeCallback(tmp_path / "run.h5", submodule="looped")
    trainer = hf_trainer(
        model, [callback], gradient_accumulation_steps=accumulation, include_num_input_tokens_seen="all", eval_steps=2,
        eval_strategy="steps",
    )  # fmt: skip
    trainer.train()
    with open_run(tmp_path / "run.h5") as run:
        assert run.state == "finished"
        assert run["step"].tolist() == [0, 1, 2, 3]
        # Both add the same float32 losses; the trainer's sum and ours may differ in their last bit.
        np.testing.assert_allclose(run["loss"], logged(trainer, "loss"), rtol=1e-6)
        np.testing.assert_array_equal(run["grad_norm"], logged(trainer, "grad_norm"))
        np.testing.assert_array_equal(run["lr"], logged(trainer, "learning_rate"))
        np.testing.assert_array_equal(run["tokens"], logged(trainer, "num_input_tokens_seen"))
        assert run["depth"].tolist() == [3] * 4  # evaluations in between are not recorded
        assert run.loops("tokens")[:, 0].tolist() == [4 * 16 * accumulation] * 4
        assert len(run.probe_steps) >= 2
    assert run["lr"][1] > run["lr"][3]  # the linear schedule: it is the rate of the step, not of the next one
    assert hooks_of(model) == 0
    assert callback.probe is None


def test_hugging_face_losses_are_there_between_logs_and_nan_is_not_hidden(hf_trainer, tmp_path):
    model = LanguageModel()
    model.nan_call = 6
    callback = callbacks.LoopscopeCallback(tmp_path / "run.h5", submodule="looped")
    trainer = hf_trainer(model, [callback], max_steps=7, logging_steps=3)
    trainer.train()
    assert np.isfinite(logged(trainer, "loss")).all()  # the trainer's filter
    with open_run(tmp_path / "run.h5") as run:
        assert np.isnan(run["loss"]).tolist() == [False] * 6 + [True]
        np.testing.assert_allclose(
            [run["loss"][:3].mean(), run["loss"][3:6].mean()], logged(trainer, "loss")[:2], rtol=1e-6
        )
        recorded = np.isfinite(run["grad_norm"]).tolist()
        assert recorded[:6] == [False, False, True, False, False, True]
        assert "non_finite" in [event.kind for event in run.events if event.step == 6]


def test_hugging_face_training_is_the_same_with_and_without(hf_trainer, tmp_path):
    plain, watched = LanguageModel(), LanguageModel()
    hf_trainer(plain, []).train()
    hf_trainer(watched, [callbacks.LoopscopeCallback(tmp_path / "run.h5", submodule="looped")]).train()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))


@pytest.mark.parametrize("logging_steps", [1, 4])
def test_hugging_face_checkpoints_never_know_more_than_the_file(logging_steps, hf_trainer, tmp_path):
    from transformers import Trainer

    path, seen = tmp_path / "run.h5", []

    class Watched(Trainer):
        def _save_checkpoint(self, model, trial):
            with open_run(path) as run:
                seen.append((self.state.global_step, len(run), int(np.isfinite(run["loss"]).sum())))
            super()._save_checkpoint(model, trial)

    settings = {"trainer": Watched, "save_strategy": "steps", "save_steps": 2, "logging_steps": logging_steps}
    hf_trainer(LanguageModel(), [callbacks.LoopscopeCallback(path, submodule="looped")], **settings).train()
    assert seen == [(2, 2, 2), (4, 4, 4)]
    again = hf_trainer(LanguageModel(), [callbacks.LoopscopeCallback(path, submodule="looped")], max_steps=5, **{
        **settings, "save_strategy": "no"
    })  # fmt: skip
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    with open_run(path) as run:
        assert run["step"].tolist() == [0, 1, 2, 3, 4]
        assert run["generation"].tolist() == [0, 0, 1, 1, 1]
        assert run.history()["step"].tolist() == [0, 1, 2, 3, 2, 3, 4]
        history = run.history()["loss"]
    assert history[4:6].tolist() == history[2:4].tolist()  # same weights, same batches


def test_hugging_face_a_training_that_dies_closes_the_file(hf_trainer, tmp_path):
    model = LanguageModel()
    model.failing_call = 2
    with pytest.raises(ZeroDivisionError), callbacks.LoopscopeCallback(
        tmp_path / "run.h5", submodule="looped"
    ) as callback:  # fmt: skip
        hf_trainer(model, [callback]).train()
    assert hooks_of(model) == 0
    with open_run(tmp_path / "run.h5") as run:
        assert run["step"].tolist() == [0, 1]
        assert run.state != "live"


def test_hugging_face_the_same_callback_goes_on_after_a_training_that_died(hf_trainer, tmp_path):
    model = LanguageModel()
    model.failing_call = 2
    callback = callbacks.LoopscopeCallback(tmp_path / "run.h5", submodule="looped")
    trainer = hf_trainer(model, [callback])
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    trainer.train()  # from step 0, as after finding a batch size that fits
    with open_run(tmp_path / "run.h5") as run:
        assert run.history()["step"].tolist() == [0, 1, 0, 1, 2, 3]
    assert hooks_of(model) == 0


def test_hugging_face_a_loss_function_of_the_users_is_recorded_where_it_is_logged(hf_trainer, tmp_path):
    callback = callbacks.LoopscopeCallback(tmp_path / "run.h5", submodule="looped")
    trainer = hf_trainer(LanguageModel(), [callback])
    trainer.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: (
        2 * F.cross_entropy(outputs["logits"].flatten(0, 1), labels[:, 1:].flatten())
    )
    trainer.train()
    with open_run(tmp_path / "run.h5") as run:
        np.testing.assert_array_equal(run["loss"], logged(trainer, "loss"))
        assert run["loss"][0] > 8  # twice the logarithm of 256


TWO_RANKS = """
import importlib.util, sys, transformers
spec = importlib.util.spec_from_file_location("cases", sys.argv[1])
cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cases)
args = transformers.TrainingArguments(
    output_dir=sys.argv[2], per_device_train_batch_size=4, use_cpu=True, ddp_backend="gloo", report_to="none",
    disable_tqdm=True, max_steps=3, logging_steps=1, save_strategy="no", gradient_accumulation_steps=2,
)
callback = cases.callbacks.LoopscopeCallback(sys.argv[2] + "/run.h5", submodule="looped")
trainer = transformers.Trainer(
    model=cases.CountingModel(), args=args, train_dataset=cases.Text(True), callbacks=[callback]
)
trainer.train()
if args.process_index == 0:
    cases.np.save(sys.argv[2] + "/losses.npy", cases.logged(trainer, "loss"))
"""


def test_hugging_face_on_two_processes_each_rank_has_its_loss_and_their_mean_is_the_trainers(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    (tmp_path / "train.py").write_text(TWO_RANKS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [*launcher, str(tmp_path / "train.py"), __file__, str(tmp_path)], check=True, capture_output=True, timeout=200
    )
    with open_run(tmp_path / "run.h5") as run:
        assert run.info["world_size"] == 2 and not run.events
        np.testing.assert_allclose(run["loss"], np.load(tmp_path / "losses.npy"), rtol=1e-6)  # float32 sums
        first, second = run.ranks[0], run.ranks[1]
        assert (first["loss"] != second["loss"]).all()
        assert first["depth"].tolist() == second["depth"].tolist() == [3] * 3


def test_an_existing_run_is_not_touched_by_a_training_from_step_0(tmp_path):
    path = tmp_path / "run.h5"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="starts at step 0: resume it from a checkpoint, or pass overwrite=True"):
        callbacks.Recording(path).begin(build("demo"), steps_done=0)
    assert path.read_bytes() == b"precious"


def test_other_ranks_write_beside_it_and_mirror_nothing(tmp_path):
    class Mirror:
        def __init__(self):
            self.rows = []

        def write(self, step, values):
            self.rows.append(step)

        def close(self):
            pass

    mirror = Mirror()
    for rank in (0, 2):
        model = build("demo")
        with callbacks.Recording(tmp_path / "run.h5", mirrors=[mirror]) as recording:
            recording.begin(model, steps_done=0, rank=rank)
            model(SEQUENCES[:2, :-1], num_loops=2)
            recording.end_step(0, loss=1.0)
    assert sorted(path.name for path in tmp_path.glob("*.h5")) == ["run.h5", "run.rank2.h5"]
    assert mirror.rows == [0]


def test_wrong_options_are_refused_before_training(tmp_path):
    with pytest.raises(TypeError, match="presets"):
        callbacks.Recording(tmp_path / "run.h5", presets="watch")
    with pytest.raises(TypeError, match="resume"):
        callbacks.Recording(tmp_path / "run.h5", resume=True)


def test_a_trainer_that_cannot_say_a_number_is_said_once_and_training_goes_on(tmp_path, caplog):
    pytest.importorskip("transformers")
    callback = callbacks.LoopscopeCallback(tmp_path / "run.h5", submodule="looped")
    args, control = SimpleNamespace(process_index=0, world_size=1), SimpleNamespace(should_log=False, should_save=False)
    model, state = LanguageModel(), SimpleNamespace(global_step=0)
    callback.on_train_begin(args, state, control, model=model)
    for _ in range(2):
        callback.on_step_begin(args, state, control, optimizer=object())
        model(SEQUENCES[:4])
        state.global_step += 1
        callback.on_step_end(args, state, control)
    callback.on_train_end(args, state, control)
    assert sum("lr is not recorded" in record.message for record in caplog.records) == 1
    with open_run(tmp_path / "run.h5") as run:
        assert run["step"].tolist() == [0, 1]
        assert np.isnan(run["lr"]).all()
        assert (run["nonfinite"] == 0).all()  # missing is not the same as not finite


@pytest.mark.parametrize(
    ("name", "extra"), [("LoopscopeCallback", "transformers"), ("LoopscopeLightningCallback", "lightning")]
)
def test_without_the_library_one_line_says_what_to_install(name, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, {"lightning": "lightning.pytorch"}.get(extra, extra), None)
    monkeypatch.delitem(vars(callbacks), name, raising=False)
    with pytest.raises(ImportError, match=rf"{name} needs {extra}: pip install 'loopscope\[{extra}\]'"):
        getattr(callbacks, name)


# -- Lightning --------------------------------------------------------------------------------------------------------


@pytest.fixture
def lightning():
    module = pytest.importorskip("lightning.pytorch")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return module


@pytest.fixture
def lightning_module(lightning):
    class Module(lightning.LightningModule):
        def __init__(self, failing_batch=-1):
            super().__init__()
            torch.manual_seed(0)
            self.looped, self.failing_batch = build("demo"), failing_batch
            self.losses, self.norms, self.rates = [], [], []

        def training_step(self, batch, index):
            if index == self.failing_batch:
                raise ZeroDivisionError("the training died")
            logits = self.looped(batch[:, :-1], num_loops=3)
            loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
            self.losses.append(float(loss.detach()))
            return loss

        def validation_step(self, batch, index):
            self.looped(batch[:, :-1], num_loops=5)

        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            self.norms.append(float(nn.utils.clip_grad_norm_(self.parameters(), 0.5)))
            self.rates.append(optimizer.param_groups[0]["lr"])

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
            schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 4)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return Module


@pytest.fixture
def fit(lightning, tmp_path):
    def train(module, path, *, resume=None, more_callbacks=(), **settings):
        callback = callbacks.LoopscopeLightningCallback(path, submodule="looped")
        trainer = lightning.Trainer(
            default_root_dir=tmp_path,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[callback, *more_callbacks],
            **{"enable_checkpointing": bool(more_callbacks), "max_steps": 4} | settings,
        )
        loader = DataLoader(Text(False), batch_size=4)
        torch.manual_seed(1)  # h_0 is drawn from the global stream
        trainer.fit(module, loader, DataLoader(Text(False), batch_size=32), ckpt_path=resume, weights_only=False)
        return callback

    return train


@pytest.mark.filterwarnings("ignore")  # Lightning's advice about data-loader workers and the like
@pytest.mark.parametrize("accumulation", [1, 2])
def test_lightning_rows_are_the_trainings_own_numbers(accumulation, lightning_module, fit, tmp_path):
    module = lightning_module()
    callback = fit(module, tmp_path / "run.h5", accumulate_grad_batches=accumulation, val_check_interval=2)
    with open_run(tmp_path / "run.h5") as run:
        assert run.state == "finished"
        assert run["step"].tolist() == [0, 1, 2, 3]
        losses = np.reshape(module.losses, (4, accumulation)).mean(axis=1)
        np.testing.assert_allclose(run["loss"], losses, rtol=1e-6)  # sums of float32 in another order
        # The same norm by two routines of torch, each a float32 sum over 50 000 squares.
        np.testing.assert_allclose(run["grad_norm"], module.norms, rtol=1e-5)
        np.testing.assert_array_equal(run["lr"], module.rates)
        assert run["depth"].tolist() == [3] * 4  # the validations of depth 5 are not recorded
        assert run.loops("tokens")[:, 0].tolist() == [4 * 16 * accumulation] * 4
    assert run["lr"][3] < run["lr"][0]
    assert hooks_of(module) == 0
    assert callback.probe is None


@pytest.mark.filterwarnings("ignore")
def test_lightning_checkpoints_exceptions_and_resuming(lightning, lightning_module, fit, tmp_path):
    path, seen = tmp_path / "run.h5", []

    class Look(lightning.Callback):
        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            with open_run(path) as run:
                seen.append((trainer.global_step, len(run)))

    saving = lightning.callbacks.ModelCheckpoint(
        tmp_path / "checkpoints", every_n_train_steps=2, save_top_k=-1, filename="{step}"
    )
    dying, resumed = lightning_module(failing_batch=3), lightning_module()
    with pytest.raises(ZeroDivisionError):
        fit(dying, path, more_callbacks=[Look(), saving])
    assert seen[0] == (2, 2)
    assert hooks_of(dying) == 0
    with open_run(path) as run:
        assert run["step"].tolist() == [0, 1, 2]
        assert run.state != "live"
    fit(resumed, path, resume=tmp_path / "checkpoints" / "step=2.ckpt")
    with open_run(path) as run:
        assert run["step"].tolist() == [0, 1, 2, 3]
        assert run["generation"].tolist() == [0, 0, 1, 1]
        history = run.history()
    assert history["step"].tolist() == [0, 1, 2, 2, 3]
    assert history["loss"].tolist() == dying.losses + resumed.losses


@pytest.mark.filterwarnings("ignore")
def test_lightning_training_is_the_same_with_and_without(lightning, lightning_module, fit, tmp_path, monkeypatch):
    watched, plain = lightning_module(), lightning_module()
    fit(watched, tmp_path / "run.h5")
    with monkeypatch.context() as patch:
        patch.setattr(callbacks, "LoopscopeLightningCallback", lambda *args, **kwargs: lightning.Callback())
        fit(plain, tmp_path / "none.h5")
    assert watched.losses == plain.losses
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), plain.parameters(), strict=True))


# -- Accelerate -------------------------------------------------------------------------------------------------------


def test_attach_works_on_what_accelerate_prepared(tmp_path):
    """The recipe of docs/integrations.md."""
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # a singleton; trainers above set it up
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    torch.manual_seed(0)
    model = build("demo")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(Text(False), batch_size=4))
    losses, norms, given, norm = [], [], [], None
    with loopscope.attach(model, tmp_path / "run.h5") as probe:
        for index, batch in enumerate(loader):
            with accelerator.accumulate(model):
                logits = model(batch[:, :-1], num_loops=3)
                loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
                accelerator.backward(loss)
                losses.append(loss.detach())
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                probe.step(loss=torch.stack(losses).mean(), grad_norm=norm, lr=optimizer.param_groups[0]["lr"])
                given.append(float(torch.stack(losses).mean()))
                norms.append(float(norm))
                losses.clear()
            if index == 7:
                break
    with open_run(tmp_path / "run.h5") as run:
        assert run["step"].tolist() == [0, 1, 2, 3]
        np.testing.assert_array_equal(run["loss"], given)
        np.testing.assert_array_equal(run["grad_norm"], norms)
        assert run["depth"].tolist() == [3] * 4
        assert run.loops("tokens")[:, 0].tolist() == [4 * 16 * 2] * 4
        assert len(run.probe_steps) >= 1
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
