"""Nothing in the hot path reads a number off the device.

The whole step runs on torch's ``meta`` device, whose tensors have no numbers: an ``.item()``, a ``float(...)``, an
``if`` on a tensor or a copy to the host is an error there. Only `Transfer`, which starts copies that nobody waits for,
is replaced.
"""

import dataclasses

import numpy as np
import pytest
import torch
from loopscope.probes import attach, open_run
from loopscope.probes import probe as probe_module

META = torch.device("meta")


class Elsewhere:
    """Stands in for a copy from the device: keeps shapes, arrives with zeros."""

    started = 0

    def __init__(self, tensors):
        assert all(tensor.device == META for tensor in tensors.values())
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        Elsewhere.started += 1

    def ready(self):
        return True

    def wait(self):
        raise AssertionError("waited for the device")

    def arrays(self):
        return {name: np.zeros(shape, dtype=np.float32) for name, shape in self.shapes.items()}


@pytest.mark.parametrize("injection", ["addition", "concatenation", "parcae"])
@pytest.mark.parametrize("preset", ["watch", "study"])
def test_a_step_reads_nothing_off_the_device(injection, preset, demo_model, tmp_path, monkeypatch, caplog):
    model = demo_model(injection).to_empty(device=META)
    tokens = torch.zeros(4, 32, dtype=torch.int64, device=META)
    with pytest.raises(RuntimeError):  # the premise: reading a number is an error
        model(tokens, num_loops=2, initial_state=torch.empty(4, 32, 32, device=META)).sum().item()
    monkeypatch.setattr(probe_module, "Transfer", Elsewhere)
    Elsewhere.started = 0
    watched = probe_module.find_preset(preset)
    # Passes of the probe batch and of the full loop run beside training; here it is training that counts.
    watched = dataclasses.replace(watched, probe_batch=lambda step: False, full_loop=lambda step: False)
    probe = attach(model, tmp_path / "run.h5", preset=watched)
    for _ in range(3):
        logits = model(tokens, num_loops=5, initial_state=torch.empty(4, 32, 32, device=META))
        loss = logits.logsumexp(-1).mean()
        loss.backward()
        probe.step(loss=loss, grad_norm=loss.detach() * 2, lr=1e-3)
    monkeypatch.setattr(probe, "_run_probe_batch", lambda step: None)
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
