"""Small causal loops in float64, independent of our models, and the dense twin of every Jacobian."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev
from torch.nn import functional


class Block(nn.Module):
    """Pre-norm attention and MLP, with the variations of attention that foreign models use."""

    def __init__(self, width: int, heads: int, kind: str) -> None:
        super().__init__()
        self.heads, self.kind = heads, kind
        self.kv_heads = heads // 2 if kind == "gqa" else heads
        size = width // heads
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, self.kv_heads * size, bias=False)
        self.v = nn.Linear(width, self.kv_heads * size, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.rms_norm(x, x.shape[-1:])
        q, k, v = (p(y).unflatten(-1, (n, -1)).transpose(1, 2) for p, n in self._projections())
        o = self._attend(q, k, v).transpose(1, 2).flatten(-2)
        x = x + self.o(o)
        return x + self.down(functional.silu(self.up(functional.rms_norm(x, x.shape[-1:]))))

    def _projections(self):
        return (self.q, self.heads), (self.k, self.kv_heads), (self.v, self.kv_heads)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length = q.shape[-2]
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        sdpa = functional.scaled_dot_product_attention
        if self.kind == "bool-mask":
            return sdpa(q, k, v, attn_mask=mask)
        if self.kind == "float-mask":
            bias = torch.where(mask, torch.linspace(-1, 1, length, dtype=q.dtype), -torch.inf)
            return sdpa(q, k, v, attn_mask=bias[None, None], scale=0.3)
        if self.kind == "eager":
            score = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf)
            return torch.softmax(score, -1) @ v
        if self.kind == "bidirectional":
            return sdpa(q, k, v)
        if self.kind == "prefix":
            prefix = mask | (torch.arange(length) < 3)[None]
            return sdpa(q, k, v, attn_mask=prefix)
        return sdpa(q, k, v, is_causal=True, enable_gqa=self.kind == "gqa")


def make_step(
    layers: int = 1, kind: str = "causal", injection: str = "parcae", width: int = 8, gain: float = 1.0
) -> Callable:
    """One loop of a small float64 model with e bound; batch 2, 6 positions."""
    torch.manual_seed(layers)
    blocks = nn.Sequential(*(Block(width, 4, kind) for _ in range(layers))).double().requires_grad_(False)
    e = torch.randn(2, 6, width, dtype=torch.float64)
    dense = torch.randn(width, width, dtype=torch.float64) * 0.3 / width**0.5
    if injection == "addition":
        return lambda h: blocks(h + e)
    if injection == "concatenation":
        return lambda h: blocks(h @ dense.T + e)
    decay = torch.linspace(0.2, 0.7, width, dtype=torch.float64)
    return lambda h: blocks(decay * h + e)


def dense_jacobian(step: Callable, state: Tensor) -> Tensor:
    """The whole Jacobian, (n, n)."""
    n = state.numel()
    return jacrev(step)(state).reshape(n, n)


@pytest.fixture
def loop() -> Callable:
    return make_step


@pytest.fixture
def dense() -> Callable:
    return dense_jacobian


@pytest.fixture
def state() -> Tensor:
    return torch.randn(2, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
