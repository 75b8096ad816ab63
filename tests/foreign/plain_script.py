"""A training script that knows nothing of loopscope."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm = nn.LayerNorm(d)
        self.mix = nn.Linear(2 * d, d)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

    def forward(self, h, e):
        h = self.mix(torch.cat([h, e], -1))
        return h + self.mlp(self.norm(h))


class Net(nn.Module):
    def __init__(self, d=32, loops=6):
        super().__init__()
        self.embed = nn.Embedding(64, d)
        self.block = Block(d)
        self.head = nn.Linear(d, 64)
        self.loops = loops

    def forward(self, x):
        e = self.embed(x)
        h = torch.zeros_like(e)
        for _ in range(self.loops):
            h = self.block(h, e)
        return self.head(h)


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--steps", type=int, default=1000)
    a = p.parse_args()
    torch.manual_seed(0)
    model = Net()
    opt = torch.optim.AdamW(model.parameters(), lr=a.lr)
    for _ in range(a.steps):
        x = torch.randint(0, 64, (8, 17))
        x[:, 1:] = (x[:, :1] * 3 + torch.arange(1, 17)) % 64
        loss = F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
    print("done")
