"""The causal test: is ρ(A̅) the cause of the divergence, or its companion?

    python examples/studies/held_radius.py      # five seeds, each with and without a clamp; about a minute

Pre-norm concatenation at the hot rate 0.05, 200 steps. Beside each run stands its twin, equal in every draw, in which
ρ(A̅) is scaled back to 0.95 after every step of the optimizer. Nothing else differs.
"""

from __future__ import annotations

import math

import torch
from loopscope.causes.trained import ChangedTraining, hold_radius
from loopscope.dynamics import spectral_radius
from loopscope.models.run_config import RunConfig
from loopscope.models.train import NullObserver

STEPS = 200
LOOPS = 16


@torch.no_grad()
def state_after(model: torch.nn.Module, tokens: torch.Tensor) -> float:
    """Return the mean norm of the state after `LOOPS` loops."""
    states: list[torch.Tensor] = []
    handle = model.read_out.register_forward_pre_hook(lambda module, inputs: states.append(inputs[0]))
    torch.manual_seed(0)
    model.eval()(tokens, num_loops=LOOPS)
    handle.remove()
    return float(states[0].double().norm(dim=-1).mean())


def trained(seed: int, hold: bool) -> tuple[float, float, float]:
    """Train one run; return the mean loss of the last ten steps, ρ(A̅) and the state norm at its end."""
    model_fields = {"injection": "concatenation", "norm": "pre"}
    config = RunConfig(preset="demo", seed=seed, model=model_fields, train={"lr": 0.05, "steps": STEPS})
    model, data = config.build_model(), config.open_data()
    updates = [hold_radius] if hold else []
    training = ChangedTraining(model, data, config, NullObserver(), updates)
    losses = []
    for _ in range(STEPS):
        training.advance()
        losses.append(float(training.loss))
    radius = float(spectral_radius(model.injection.a_bar().detach().double().numpy()))
    return math.fsum(losses[-10:]) / 10, radius, state_after(model, next(data.held_out(4))[:, :-1])


def main() -> None:
    """Print both tables side by side."""
    print("| seed | loss | ρ(A̅) | ‖h‖ after 16 loops | loss, held | ρ(A̅), held | ‖h‖, held |")
    print("|---" * 7 + "|")
    for seed in range(5):
        free, held = trained(seed, hold=False), trained(seed, hold=True)
        cells = [f"{loss:.2f} | {radius:.2f} | {state:.3g}" for loss, radius, state in (free, held)]
        print(f"| {seed} | {cells[0]} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    main()
