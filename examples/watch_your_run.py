"""Watch a looped model of your own: write a `LoopSite`, attach, train as always, read the verdict.

    python examples/watch_your_run.py                 # a healthy learning rate
    python examples/watch_your_run.py --lr 0.1        # watch rho leave the unit circle

The model below knows nothing of loopscope. What loopscope has to know is in `site`: which module starts a loop,
which comes after the loop, and where A (what the state is multiplied by before the blocks) is stored.
"""

import argparse
from pathlib import Path

import loopscope
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

WIDTH, MODULUS = 32, 31


class Mix(nn.Module):
    """Puts state and input together: W [h; e]."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        return self.linear(torch.cat([h, e], dim=-1))


class MyLoopedModel(nn.Module):
    """An embedding, one block that runs `num_loops` times, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(MODULUS, WIDTH)
        self.mix = Mix()
        self.block = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, MODULUS)

    def forward(self, tokens: Tensor, num_loops: int = 6) -> Tensor:
        e = self.embedding(tokens)
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        h = torch.zeros_like(e)
        for _ in range(num_loops):
            h = self.block(self.mix(h, e), src_mask=mask, is_causal=True)
        return self.head(self.norm(h))


def site(model: MyLoopedModel) -> loopscope.LoopSite:
    """Where the loop of this model is."""
    return loopscope.LoopSite(
        body="mix",  # first module of the loop: called once per loop, its first argument is h
        input_argument=1,  # and its second is e
        after="norm",  # first module after the loop: its argument is the last h
        a_bar=lambda: model.mix.linear.weight[:, :WIDTH],
        b_bar=lambda: model.mix.linear.weight[:, WIDTH:],
        depth_argument="num_loops",
        mean_depth=6,
    )


def batch(generator: torch.Generator) -> Tensor:
    """Sequences in which the next number is 3 n + 1 modulo 31, or one time in five any number: (32, 17)."""
    numbers = [torch.randint(MODULUS, (32,), generator=generator)]
    for _ in range(16):
        surprise = torch.rand(32, generator=generator) < 0.2
        anything = torch.randint(MODULUS, (32,), generator=generator)
        numbers.append(torch.where(surprise, anything, (3 * numbers[-1] + 1) % MODULUS))
    return torch.stack(numbers, dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/mine.h5"), help="the run file to write")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--lr", type=float, default=3e-3)
    options = parser.parse_args()

    torch.manual_seed(0)
    model, generator = MyLoopedModel(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    with loopscope.attach(model, options.out, site=site(model), overwrite=True) as probe:
        for _ in range(options.steps):
            sequences = batch(generator)
            logits = model(sequences[:, :-1])
            loss = cross_entropy(logits.flatten(0, 1), sequences[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            probe.step(loss=loss, grad_norm=norm, lr=options.lr)  # the second and last line of loopscope

    with loopscope.open_run(options.out) as run:
        diagnosis = loopscope.diagnose(run)
        print(f"loss           {run['loss'][0]:.2f} -> {run['loss'][-1]:.2f}")
        print(f"rho(A)         {run['a_bar_radius'][0]:.2f} -> {run['a_bar_radius'][-1]:.2f}")
        print(f"last step size {run['last_residual_norm'][0]:.3g} -> {run['last_residual_norm'][-1]:.3g}")
        print(f"regimes        {diagnosis.regimes}")
        for finding in diagnosis.findings:
            print(f"{finding.rule} {finding.name}, step {finding.step}: {finding.message}")
        print(diagnosis.summary)
    print(f"\nnow try: loopscope dash {options.out.parent}   or   loopscope check {options.out}")


if __name__ == "__main__":
    main()
