"""Nothing in the hot path reads a number off the device.

The whole step runs on torch's ``meta`` device, whose tensors have no numbers: an ``.item()``, a ``float(...)``, an
``if`` on a tensor or a copy to the host is an error there. Only `Transfer`, which starts copies that nobody waits for,
is replaced.
"""

import dataclasses

import pytest
import torch
from loopscope.probes import attach, open_run, row_sender
from loopscope.probes import probe as probe_module
from loopscope.probes.measure.transfer import Copy, Transfer
from loopscope.probes.schedule import find_preset

META = torch.device("meta")


class Elsewhere(Transfer):
    """Stands in for copies from the device: keeps shapes, arrives with zeros."""

    started = 0

    def copy(self, tensor, *, own=False):
        assert tensor.device == META
        return Copy(torch.zeros(tensor.shape))

    def sent(self):
        Elsewhere.started += 1

    def wait(self):
        raise AssertionError("waited for the device")


@pytest.mark.parametrize("injection", ["addition", "concatenation", "parcae"])
@pytest.mark.parametrize("preset", ["watch", "study"])
def test_a_step_reads_nothing_off_the_device(injection, preset, demo_model, tmp_path, monkeypatch, caplog):
    model = demo_model(injection).to_empty(device=META)
    tokens = torch.zeros(4, 32, dtype=torch.int64, device=META)
    with pytest.raises(RuntimeError):  # the premise: reading a number is an error
        model(tokens, num_loops=2, initial_state=torch.empty(4, 32, 32, device=META)).sum().item()
    monkeypatch.setattr(row_sender, "Transfer", Elsewhere)
    monkeypatch.setattr(probe_module, "_is_without_values", lambda model: False)  # for which attach would wait
    Elsewhere.started = 0
    watched = find_preset(preset)
    # Passes of the probe batch and of the full loop run beside training; here it is training that counts.
    watched = dataclasses.replace(watched, probe_batch=lambda step: False, full_loop=lambda step: False)
    probe = attach(model, tmp_path / "run.h5", preset=watched)
    for _ in range(3):
        logits = model(tokens, num_loops=5, initial_state=torch.empty(4, 32, 32, device=META))
        loss = logits.logsumexp(-1).mean()
        loss.backward()
        probe.step(loss=loss, grad_norm=loss.detach() * 2, lr=1e-3)
    monkeypatch.setattr(probe, "_run_fixed_batch", lambda step, last: None)
    monkeypatch.setattr(probe._sender, "deliver_all", probe._sender.deliver)
    probe.close()
    assert not caplog.records, caplog.text
    assert Elsewhere.started == 3
    with open_run(tmp_path / "run.h5") as run:
        assert run["depth"].tolist() == [5, 5, 5]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_step_on_a_gpu_makes_nobody_wait(precision, demo_model, tmp_path):
    device = torch.device("cuda")
    model = demo_model("concatenation").to(device)
    tokens = torch.zeros(4, 32, dtype=torch.int64, device=device)
    with attach(model, tmp_path / "run.h5", preset="watch") as probe:
        for step in range(6):
            torch.cuda.set_sync_debug_mode("error" if step > 2 else "default")  # the first steps compile the kernel
            try:
                with torch.autocast("cuda", precision, enabled=precision != torch.float32):
                    logits = model(tokens, num_loops=5, initial_state=torch.empty(4, 32, 32, device=device))
                loss = logits.logsumexp(-1).mean()
                loss.backward()
                probe.step(loss=loss, grad_norm=loss.detach() * 2, lr=1e-3)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    with open_run(tmp_path / "run.h5") as run:
        assert run["depth"].tolist() == [5] * 6
