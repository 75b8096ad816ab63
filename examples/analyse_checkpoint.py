"""Analyse the loop of a checkpoint, cell by cell: open it in an editor that knows `# %%` cells, or run it as a script.

    python examples/analyse_checkpoint.py                         # trains a small model first (a few seconds)
    python examples/analyse_checkpoint.py runs/a.checkpoint       # a folder that `loopscope train` wrote

The same in one command: loopscope linearize runs/a.checkpoint
"""

# %% A checkpoint: the one given, or a small one made now
import sys
import tempfile
from pathlib import Path

import loopscope
import torch
from loopscope.commands.training import train_run
from loopscope.dynamics import LTISystem, certify_radius, kreiss_constant, peak_growth, verdict
from loopscope.models import load_model, loss_at_depths, standard_library
from loopscope.models.run_config import RunConfig

if len(sys.argv) > 1:
    checkpoint = Path(sys.argv[1])
else:
    folder = tempfile.TemporaryDirectory()
    config = RunConfig(model={"injection": "concatenation", "norm": "pre"}, train={"lr": 0.01, "steps": 60})
    train_run(Path(folder.name) / "small.h5", config, device="cpu")
    checkpoint = Path(folder.name) / "small.checkpoint"

model = load_model(checkpoint)
text = standard_library(sequence_length=model.config.max_length)
tokens = next(text.held_out(2))[:, :-1]
print(f"{checkpoint.name}: {model.config.injection}, width {model.config.width}, {tokens.shape[1]} tokens of text")

# %% The linear part alone. Every number is an Estimate: value [lower, upper] (method)
linear = LTISystem(model.injection.a_bar())
certificate = certify_radius(linear.a_bar)
peak = peak_growth(linear)
print("spectral radius ", linear.spectral_radius())
print("  proven bounds ", certificate, "->", verdict(certificate))
print("spectral norm   ", linear.spectral_norm())
print("RMS gain        ", f"{linear.rms_gain():.4g}")
print("peak growth     ", peak.growth, f"at loop {peak.loop}")
print("Kreiss constant ", kreiss_constant(linear))

# %% The full loop, near the states that this text visits
linearization = loopscope.linearize(model, tokens, num_loops=16)
print(linearization.verdict)
print(linearization.disagreement or "the three views agree")
loop = linearization.loop
if loop is not None:
    print("radius of J     ", loop.radius, f"({loop.spectrum})")
    print("norm of J       ", loop.norm)
    print("gap to A        ", loop.gap)
    print(f"lambda_1         {loop.lyapunov_max:+.3f} ± {loop.lyapunov_error:.3f} nats per loop")
    for share in loop.sublayers:
        print(f"  {share.name:12s} gives {share.log_gain:+.3f} of log rho_J")

# %% Where it comes to rest, and what it depends on
for point in linearization.fixed_points:
    near = f", near a {' and a '.join(point.near)}" if point.near else ""
    print(f"{point.kind} (radius {point.radius:.3f}{near}), reached from {point.starts} starts")
if linearization.start is not None and linearization.input is not None:
    print("depends on its start:", linearization.start.depends, "| on its input:", linearization.input.depends)
print("tokens:", linearization.tokens.counts())
for part, reason in linearization.skipped.items():
    print(f"not measured: {part} ({reason})")

# %% What depth does to the loss
with torch.no_grad():
    losses = loss_at_depths(model, text, [1, 2, 4, 8, 16, 32], batches=4)
for depth, loss in losses.items():
    print(f"depth {depth:3d}: {loss:.4f} nats")
