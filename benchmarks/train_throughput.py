"""Training throughput of our model beside the Parcae authors' implementation: same weights, shapes, depths, optimizer.

    git clone https://github.com/sandyresearch/parcae /path/to/parcae
    python benchmarks/train_throughput.py /path/to/parcae --preset parcae-140m --batch 32 --compile     # on a GPU
    python benchmarks/train_throughput.py /path/to/parcae --preset parcae-tiny --batch 8                # anywhere

Both models get the same initial weights and, in every step, the same tokens and depths. A step is forward, loss,
backward, clipping and AdamW. Rounds of the two alternate, so that a machine that warms up or is shared treats them
alike; the median round is reported. Without a checkout only ours is measured. What is compiled is what each is made
for: our loop body, their whole model (whose loop they exclude themselves).

Not covered: Muon, data loading, several devices.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from loopscope.models import LoopedTransformer, build, to_parcae_lm
from loopscope.models.flops import training_flops, utilisation

Step = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]


def depths_of_step(model: LoopedTransformer, batch: int, step: int) -> torch.Tensor:
    """Depth of every sequence, drawn as the authors draw them (their seed formula), so that both run the same ones."""
    config = model.config
    if config.depth_sampling == "per-batch":
        return torch.full((batch,), config.mean_depth)
    generator = torch.Generator().manual_seed(514_229 + step)
    return torch.poisson(torch.full((batch,), float(config.mean_depth)), generator=generator).clamp(min=1).long()


def our_loss(model: LoopedTransformer, compiled: bool) -> Step:
    """Return the loss of one step with our model."""
    cross_entropy = torch.compile(F.cross_entropy) if compiled else F.cross_entropy

    def loss(inputs: torch.Tensor, targets: torch.Tensor, step: int) -> torch.Tensor:
        logits = model(inputs, num_loops=depths_of_step(model, len(inputs), step))
        return cross_entropy(logits.flatten(0, 1), targets.flatten())

    return loss


def their_loss(ours: LoopedTransformer, checkout: Path, device: torch.device, compiled: bool) -> tuple[Any, Step]:
    """Return the authors' model with the same weights, and the loss of one step with it."""
    sys.path.insert(0, str(checkout))
    from parcae_lm.models.parcae.config import ParcaeConfig

    state, config = to_parcae_lm(ours)
    if ours.config.depth_sampling == "per-batch":
        config["sampling_scheme"] = "fixed"
    config["init_orthogonal"] = True  # their zero initialisation needs it; the weights are replaced anyway
    model = ParcaeConfig(**config).construct_model()
    model.load_state_dict(state)
    model = model.to(device).train()
    called = torch.compile(model) if compiled else model

    def loss(inputs: torch.Tensor, targets: torch.Tensor, step: int) -> torch.Tensor:
        model.step = step  # seeds their depths
        value = called(inputs, labels=targets.contiguous())["loss"]
        assert isinstance(value, torch.Tensor)
        return value

    return model, loss


class Contender:
    """One implementation: its loss, its optimizer, its times."""

    def __init__(self, name: str, model: torch.nn.Module, loss: Step, arguments: argparse.Namespace) -> None:
        self.name, self.model, self.loss, self.arguments = name, model, loss, arguments
        self.device = next(model.parameters()).device
        fused = True if self.device.type == "cuda" else None
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=fused)
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.peak_bytes = 0

    def round(self, steps: range, vocab: int, length: int) -> None:
        """Run some steps and note the time of each, on average."""
        arguments = self.arguments
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._wait()
        began = time.perf_counter()
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            tokens = torch.randint(vocab, (arguments.batch, length + 1), generator=generator).to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=not arguments.fp32):
                loss = self.loss(tokens[:, :-1], tokens[:, 1:], step)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self._wait()
        self.seconds.append((time.perf_counter() - began) / len(steps))
        self.losses.append(loss.item())
        if self.device.type == "cuda":
            self.peak_bytes = max(self.peak_bytes, torch.cuda.max_memory_allocated())

    def _wait(self) -> None:
        """Wait until the device has done its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run alternating rounds of all contenders; the numbers come as plain values."""
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    overrides = {"depth_sampling": "per-batch", "depth_distribution": "fixed"} if arguments.fixed_depth else {}
    model = build(arguments.preset, output_init="scaled", **overrides)
    contenders = []
    if arguments.checkout:
        theirs, loss = their_loss(model, arguments.checkout, device, arguments.compile)
        contenders.append(Contender("parcae_lm", theirs, loss, arguments))
    model = model.to(device).train()
    if arguments.compile:
        model.compile_loop()
    contenders.insert(0, Contender("loopscope", model, our_loss(model, arguments.compile), arguments))
    length = arguments.length or model.config.max_length
    for number in range(arguments.rounds + arguments.warmup):
        steps = range(number * arguments.steps, (number + 1) * arguments.steps)
        for contender in contenders:
            contender.round(steps, model.config.vocab_size, length)
    tokens = arguments.batch * length
    rows = {}
    for contender in contenders:
        seconds = statistics.median(contender.seconds[arguments.warmup :])
        rows[contender.name] = {
            "tokens_per_second": tokens / seconds,
            "seconds_per_step": seconds,
            "spread": max(contender.seconds[arguments.warmup :]) / min(contender.seconds[arguments.warmup :]),
            "teraflops_per_second": training_flops(model.config, length, tokens / seconds) / 1e12,
            "utilisation": utilisation(model.config, length, tokens / seconds, device),
            "peak_gib": contender.peak_bytes / 2**30,
            "last_loss": contender.losses[-1],
        }
    hardware = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    )
    setting = {"preset": arguments.preset, "batch": arguments.batch, "length": length, "compile": arguments.compile}
    setting |= {"precision": "fp32" if arguments.fp32 else "bf16", "depth": model.config.depth_sampling}
    when = datetime.now(UTC).strftime("%Y-%m-%d")
    return {"hardware": hardware, "torch": torch.__version__, "date": when, "setting": setting, "results": rows}


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, nargs="?", help="a checkout of sandyresearch/parcae")
    parser.add_argument("--preset", default="parcae-tiny")
    parser.add_argument("--batch", type=int, default=8, help="sequences in a step")
    parser.add_argument("--length", type=int, default=0, help="positions in a sequence (default: the model's longest)")
    parser.add_argument("--steps", type=int, default=10, help="steps in a round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before those, for compilation")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--fp32", action="store_true", help="without bfloat16 autocast")
    parser.add_argument("--fixed-depth", action="store_true", help="every sequence runs the mean depth")
    parser.add_argument("--device", help="as torch names it (default: CUDA where there is one)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    measured = measure(arguments)
    if arguments.json:
        print(json.dumps(measured, indent=2))
        return
    print(f"{measured['hardware']}, torch {measured['torch']}, {measured['date']}, {measured['setting']}")
    for name, row in measured["results"].items():
        used = f"{row['utilisation']:.1%}" if row["utilisation"] == row["utilisation"] else "peak not known"
        print(
            f"{name:10} {row['tokens_per_second']:12,.0f} tokens/s  {row['seconds_per_step'] * 1e3:8.1f} ms/step  "
            f"slowest/fastest {row['spread']:.2f}  {used}  {row['peak_gib']:.1f} GiB  loss {row['last_loss']:.5f}"
        )


if __name__ == "__main__":
    main()
