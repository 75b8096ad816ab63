"""Cost of the exact per-token spectrum against the dense Jacobian, and of a whole linearisation at 140M parameters.

    python benchmarks/jacobians.py dense                 # n = B S D = 2048: per-token spectrum and dense eigenvalues
    python benchmarks/jacobians.py linearize             # parcae-140m with random weights, 32 tokens
    python benchmarks/jacobians.py linearize --preset parcae-370m --device cuda

Random weights at initialisation are nearly linear, so ``linearize`` first scales the blocks' output matrices up
(``--gain``).

Not covered: trained checkpoints; memory (about three times the activations of one loop, and 41 states per token).
"""

import argparse
import platform
import time
from collections.abc import Callable
from datetime import date
from typing import Any

import numpy as np
import torch
from loopscope.dynamics import linearize_loop, token_spectra
from loopscope.models import build
from torch import Tensor

Step = Callable[[Tensor], Tensor]


def bound(model: Any, tokens: Tensor) -> tuple[Step, Tensor]:
    """Return one loop of a model with everything but the state bound, and a first state."""
    seen: list[tuple[Any, ...]] = []

    def keep(*inputs: Any) -> Tensor:
        seen.append(inputs)
        return model.loop(*inputs)

    model.run_loop = keep
    with torch.no_grad():
        model(tokens, num_loops=1)
    model.run_loop = model.loop
    state, *rest = seen[0]
    return lambda h: model.loop(h, *rest), state


def compare_with_dense() -> None:
    """Compare both ways at n = 2048, each from a step to eigenvalues, best of three for the cheap one."""
    torch.manual_seed(0)
    model = build("demo", width=64, heads=2, mlp_width=128).eval().requires_grad_(False)
    step, state = bound(model, torch.randint(256, (1, 32)))
    state = torch.randn(state.shape)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        ours = token_spectra(step, state, count=64)
        times.append(time.perf_counter() - began)
    began = time.perf_counter()
    source = state.clone().requires_grad_()
    output = step(source).reshape(-1)
    rows = [torch.autograd.grad(component, source, retain_graph=True)[0].reshape(-1) for component in output]
    formed = time.perf_counter() - began
    values = np.linalg.eigvals(torch.stack(rows).double().numpy())
    dense = time.perf_counter() - began
    print(f"n = {state.numel()}: per token {min(times):.3f} s, dense {dense:.1f} s ({formed:.1f} s to form it)")
    print(f"ratio {dense / min(times):.0f}; radius {ours.radius.max():.6f} and {np.abs(values).max():.6f}")


def linearize(preset: str, device: str, tokens: int, loops: int, gain: float) -> None:
    """Return a whole linearisation, with the time of every part."""
    torch.manual_seed(0)
    model = build(preset).eval().requires_grad_(False)
    for block in model.core:
        block.attention.output.weight.copy_(gain * torch.randn_like(block.attention.output.weight))
        block.mlp.output.weight.copy_(gain * torch.randn_like(block.mlp.output.weight))
    model.to(device)
    step, state = bound(model, torch.randint(model.config.vocab_size, (1, tokens), device=device))
    sublayers = {"injection": model.injection, **{f"block {i}": block for i, block in enumerate(model.core)}}
    began = time.perf_counter()
    result = linearize_loop(
        step,
        state,
        loops=loops,
        a_bar=model.injection.a_bar(),
        b_bar=model.injection.b_bar(),
        c_out=model.read_out.weight,
        starts=[torch.randn_like(state)],
        sublayers=sublayers,
        budget=float("inf"),
        progress=lambda part, share: print(
            f"{time.perf_counter() - began:7.1f} s {100 * share:3.0f} % {part}", flush=True
        ),
    )
    total = time.perf_counter() - began
    print(f"{preset}, {tokens} tokens, {loops} loops: {total:.1f} s in all")
    print(result.verdict)
    for name, reason in result.skipped.items():
        print(f"left out: {name}: {reason}")
    for name, seconds in sorted(result.seconds.items(), key=lambda item: -item[1]):
        print(f"  {seconds:7.2f} s  {name}")


def main() -> None:
    """Read the arguments, say on what it runs, and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["dense", "linearize"])
    parser.add_argument("--preset", default="parcae-140m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--loops", type=int, default=16)
    parser.add_argument("--gain", type=float, default=0.02)
    options = parser.parse_args()
    hardware = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    print(f"{date.today()}, torch {torch.__version__}, {hardware}, {torch.get_num_threads()} CPU threads")
    if options.what == "dense":
        compare_with_dense()
    else:
        linearize(options.preset, options.device, options.tokens, options.loops, options.gain)


if __name__ == "__main__":
    main()
