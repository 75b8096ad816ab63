"""The looped language model: prelude, recurrent block with an injection, read-out, coda. Read it top to bottom.

    e = prelude(tokens)                      once; the input that every loop sees
    h_0 = random state
    h_{t+1} = core(injection(h_t, e))        T times with the same weights, t = 0 .. T-1
    logits = head(coda(read_out(h_T)))       once

Three injections differ only in the linear part ``A h + B e`` that they put in front of the same transformer blocks:

    addition        h + e                    A = I                              ρ(A) = 1, marginal by design
    concatenation   W [h; e]                 A = W[:, :d], any matrix           ρ(A) can pass 1: unstable
    parcae          exp(-Δ exp(a)) h + Δ B e   A diagonal in (0, 1)             ρ(A) < 1 by construction

Shapes: B batch, S positions, D width, H heads, K head width, V vocabulary, T loops, R blocks in the core.

Source: Parcae (arXiv 2604.12946); concatenation and sandwich norm: recurrent-depth models (arXiv 2502.05171).

Not covered: key-value caches and generation, grouped-query attention, dropout, per-token depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .config import GATE_CHANNELS, LoopedConfig

HUGINN_SIGMA = 0.5  # spread of the log-normal in the log-normal Poisson depth distribution


# Injections: ``injection(h, e)`` is called once per loop with ``(B, S, D)`` tensors and returns A̅ h + B̅ e. The methods
# `a_bar` and `b_bar` give the matrices in float32 or better, differentiable where they are learned, in the form they
# have: 0-d (a scaled identity), 1-D (a diagonal) or 2-D (dense, acting on column vectors).


class AdditionInjection(nn.Module):
    """``h + e``: nothing is learned, A̅ = B̅ = I."""

    def __init__(self, config: LoopedConfig) -> None:
        super().__init__()
        # A buffer, so that A̅ is found on the device of the model.
        self.register_buffer("one", torch.ones(()), persistent=False)
        self.one: Tensor

    def reset_parameters(self) -> None:
        """Restore the constant after the model was built on the meta device."""
        self.one.fill_(1.0)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """Inject ``e`` into ``h``."""
        return h + e

    def a_bar(self) -> Tensor:
        """Return A̅ as it is now."""
        return _precise(self.one)

    def b_bar(self) -> Tensor:
        """Return B̅ as it is now."""
        return _precise(self.one)


class ConcatenationInjection(nn.Module):
    """``W [h; e]`` with a dense W of shape (D, 2D): A̅ = W[:, :D], B̅ = W[:, D:], both unconstrained."""

    def __init__(self, config: LoopedConfig) -> None:
        super().__init__()
        self.std = config.init_std
        self.width = config.width
        self.adapter = nn.Linear(2 * config.width, config.width, bias=False)

    def reset_parameters(self) -> None:
        """Draw from a truncated normal with std √(2 / 5D)."""
        _truncated_normal(self.adapter.weight, self.std)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """Inject ``e`` into ``h``."""
        return cast(Tensor, self.adapter(torch.cat([h, e], dim=-1)))

    def a_bar(self) -> Tensor:
        """Return A̅ as it is now."""
        return _precise(self.adapter.weight[:, : self.width])

    def b_bar(self) -> Tensor:
        """Return B̅ as it is now."""
        return _precise(self.adapter.weight[:, self.width :])


class ParcaeInjection(nn.Module):
    """Discretised ``dh/dt = -exp(log_a) h + B e`` with a learned step Δ per channel: ZOH for A̅, Euler for B̅."""

    def __init__(self, config: LoopedConfig) -> None:
        super().__init__()
        self.log_a = nn.Parameter(torch.empty(config.width))
        self.dt_bias = nn.Parameter(torch.empty(config.width))
        self.b = nn.Parameter(torch.empty(config.width, config.width))

    def reset_parameters(self) -> None:
        """Start every channel of A̅ at √(1/5), B at the identity."""
        step = -math.log(math.sqrt(1 / 5))
        nn.init.zeros_(self.log_a)
        nn.init.constant_(self.dt_bias, math.log(math.expm1(step)))  # inverse of softplus
        nn.init.eye_(self.b)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """Inject ``e`` into ``h``."""
        return h * self.a_bar() + self.delta() * F.linear(e, self.b)

    def delta(self) -> Tensor:
        """Return the step size Δ = softplus(dt_bias), shape (D,)."""
        return F.softplus(_precise(self.dt_bias))

    def a_bar(self) -> Tensor:
        """Return A̅ as it is now."""
        return torch.exp(-self.delta() * torch.exp(_precise(self.log_a)))

    def b_bar(self) -> Tensor:
        """Return B̅ as it is now."""
        return self.delta()[:, None] * _precise(self.b)


INJECTIONS: dict[str, type[AdditionInjection] | type[ConcatenationInjection] | type[ParcaeInjection]] = {
    "addition": AdditionInjection,
    "concatenation": ConcatenationInjection,
    "parcae": ParcaeInjection,
}


# Transformer block


class Attention(nn.Module):
    """Causal self-attention with rotary positions; a layer may add a gated table of token values."""

    def __init__(self, config: LoopedConfig, layer: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.qk_norm = config.qk_norm
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.key = nn.Linear(config.width, config.width, bias=False)
        self.value = nn.Linear(config.width, config.width, bias=False)
        self.output = nn.Linear(config.width, config.width, bias=False)
        reads_table = layer in config.value_embeddings
        self.gate = nn.Linear(GATE_CHANNELS, config.heads, bias=False) if reads_table else None

    def forward(self, x: Tensor, rope: Tensor, table: Tensor | None) -> Tensor:
        """Map ``(B, S, D)`` to ``(B, S, D)``; ``table`` holds the values of this layer's tokens, ``(B, S, D)``."""
        q, k, v = (rearrange(p(x), "b s (h k) -> b h s k", h=self.heads) for p in (self.query, self.key, self.value))
        if self.gate is not None and table is not None:
            gate = 2 * torch.sigmoid(self.gate(x[..., :GATE_CHANNELS]))
            v = v + rearrange(gate, "b s h -> b h s 1") * rearrange(table, "b s (h k) -> b h s k", h=self.heads)
        q, k = rotate(torch.cat([q, k], dim=1), rope).chunk(2, dim=1)
        if self.qk_norm:
            q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
        attended = F.scaled_dot_product_attention(q, k, v.to(q.dtype), is_causal=True)
        return cast(Tensor, self.output(rearrange(attended, "b h s k -> b s (h k)")))


class SwiGLU(nn.Module):
    """``output(silu(gate x) * (up x))``."""

    def __init__(self, config: LoopedConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up = nn.Linear(config.width, config.mlp_width, bias=False)
        self.output = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, S, D)`` to ``(B, S, D)``."""
        return cast(Tensor, self.output(F.silu(self.gate(x)) * self.up(x)))


class SquaredReLU(nn.Module):
    """``output(relu(up x)²)``."""

    def __init__(self, config: LoopedConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.mlp_width, bias=False)
        self.output = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, S, D)`` to ``(B, S, D)``."""
        return cast(Tensor, self.output(F.relu(self.up(x)).square()))


class Block(nn.Module):
    """Attention and MLP on a residual stream; sandwich norm normalises the stream again after each addition."""

    def __init__(self, config: LoopedConfig, layer: int) -> None:
        super().__init__()
        sandwich = config.norm == "sandwich"
        self.attention_norm = _norm(config)
        self.attention = Attention(config, layer)
        self.attention_post_norm = _norm(config) if sandwich else nn.Identity()
        self.mlp_norm = _norm(config)
        self.mlp = SwiGLU(config) if config.mlp == "swiglu" else SquaredReLU(config)
        self.mlp_post_norm = _norm(config) if sandwich else nn.Identity()

    def forward(self, x: Tensor, rope: Tensor, table: Tensor | None) -> Tensor:
        """Map ``(B, S, D)`` to ``(B, S, D)``; ``table`` holds the values of this layer's tokens, ``(B, S, D)``."""
        x = self.attention_post_norm(x + self.attention(self.attention_norm(x), rope, table))
        return cast(Tensor, self.mlp_post_norm(x + self.mlp(self.mlp_norm(x))))


def _norm(config: LoopedConfig) -> nn.Module:
    """Return an RMS norm with a learned weight."""
    return RMSNorm(config.width, eps=config.norm_eps)


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm in the precision of its input: a weight of another dtype would miss the fused kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x / rms(x) * weight`` over the last axis; the reduction is done in float32 or wider."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def rope_table(length: int, head_width: int, base: float) -> Tensor:
    """Return the cosine and sine of every position's angles, ``(2, S, K/2)``, float32."""
    frequencies = 1.0 / base ** (torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Turn neighbouring channels (2j, 2j+1) of ``(B, H, S, K)`` by their position's angle, in float32."""
    cos, sin = rope.unbind(0)
    even, odd = rearrange(_precise(x), "b h s (k pair) -> pair b h s k", pair=2)
    turned = [even * cos - odd * sin, odd * cos + even * sin]
    return cast(Tensor, rearrange(turned, "pair b h s k -> b h s (k pair)")).type_as(x)


# The model


class LoopedTransformer(nn.Module):
    """A language model that runs its core blocks T times with shared weights.

    Cost of one forward: ``prelude + T * (injection + core) + coda`` block evaluations; memory for gradients grows with
    ``min(T, backward_depth)`` only.

    Args:
        config: Everything that defines the model.

    >>> model = LoopedTransformer(LoopedConfig(vocab_size=256, width=32, heads=2))
    >>> tokens = torch.zeros(2, 5, dtype=torch.int64)
    >>> model(tokens, num_loops=3).shape
    torch.Size([2, 5, 256])
    >>> model(tokens, num_loops=torch.tensor([1, 4])).shape       # a depth for each sequence
    torch.Size([2, 5, 256])
    """

    def __init__(self, config: LoopedConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.value_tables = nn.ModuleDict(
            {str(layer): nn.Embedding(config.vocab_size, config.width) for layer in config.value_embeddings}
        )
        core_end = config.prelude_layers + config.core_layers
        self.prelude = nn.ModuleList(Block(config, layer) for layer in range(config.prelude_layers))
        self.prelude_norm = _norm(config) if config.prelude_norm else nn.Identity()
        self.injection = INJECTIONS[config.injection](config)
        self.core = nn.ModuleList(Block(config, layer) for layer in range(config.prelude_layers, core_end))
        self.read_out = nn.Linear(config.width, config.width, bias=False) if config.read_out else nn.Identity()
        self.coda = nn.ModuleList(Block(config, layer) for layer in range(core_end, config.layers))
        self.final_norm = _norm(config)
        # Tied weights are read from the embedding: one parameter under one name survives every move, shard and file.
        self.head = None if config.tie_embeddings else nn.Linear(config.width, config.vocab_size, bias=False)
        self.register_buffer(
            "rope", rope_table(config.max_length, config.width // config.heads, config.rope_base), persistent=False
        )
        self.rope: Tensor
        self.run_loop: Callable[..., Tensor] = self.loop  # `compile_loop` puts a compiled version here
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise all weights; this also completes a model built on the meta device and moved by ``to_empty``."""
        config = self.config
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                _truncated_normal(module.weight, config.init_std)
            elif isinstance(module, nn.RMSNorm):
                module.reset_parameters()
        effective_depth = config.prelude_layers + config.coda_layers + config.core_layers * config.mean_depth
        scale = 0.0 if config.output_init == "zero" else 1 / math.sqrt(2 * effective_depth)
        for block in self._blocks():
            block.attention.output.weight.mul_(scale)
            block.mlp.output.weight.mul_(scale)
            if block.attention.gate is not None:
                nn.init.zeros_(block.attention.gate.weight)  # every gate starts at 2 sigmoid(0) = 1
        for table in self.value_tables.values():
            nn.init.normal_(cast(nn.Embedding, table).weight)
        self.injection.reset_parameters()
        self.rope.copy_(rope_table(config.max_length, config.width // config.heads, config.rope_base))

    def forward(
        self, tokens: Tensor, *, num_loops: int | Tensor | None = None, initial_state: Tensor | None = None
    ) -> Tensor:
        """Compute next-token logits.

        Args:
            tokens: ``(B, S)`` int64, ``S <= max_length``.
            num_loops: Depth T for all sequences, or ``(B,)`` integers, all at least 1. Default: drawn from the
                configured distribution in training (torch's CPU generator), ``mean_depth`` in evaluation.
            initial_state: ``h_0`` of shape ``(B, S, D)``. Default: drawn as configured.

        Returns:
            ``(B, S, V)`` logits, float32 (float64 for a float64 model). Sequences with fewer loops skip the first ones,
            so that all finish together; gradients flow through the last ``min(T, backward_depth)`` loops of each.

        Raises:
            ValueError: A depth below 1, or a shape that does not fit.
        """
        batch, length = tokens.shape
        if length > self.config.max_length:
            raise ValueError(
                f"tokens: expected at most max_length = {self.config.max_length} positions, found {length}"
            )
        depths = self._depths(num_loops, batch)
        rope = self.rope[:, :length]
        tables = {int(layer): cast(Tensor, table(tokens)) for layer, table in self.value_tables.items()}

        e = cast(Tensor, self.embedding(tokens))
        for layer, block in enumerate(self.prelude):
            e = block(e, rope, tables.get(layer))
        e = self.prelude_norm(e)

        h = self.initial_state(e) if initial_state is None else initial_state
        if h.shape != e.shape:
            raise ValueError(f"initial_state: expected shape {tuple(e.shape)}, found {tuple(h.shape)}")
        x = self._recur(h, e, rope, tables, depths)

        for layer, block in enumerate(self.coda, start=self.config.layers - self.config.coda_layers):
            x = block(x, rope, tables.get(layer))
        head = self.embedding if self.head is None else self.head
        return _precise(F.linear(self.final_norm(x), head.weight))

    def _recur(self, h: Tensor, e: Tensor, rope: Tensor, tables: dict[int, Tensor], depths: list[int]) -> Tensor:
        """Run each sequence for its depth and return the read-out of the final states, in the order of the batch.

        Sequences are sorted, deepest first: those that take part in loop t are then always the first ``active`` ones.
        """
        longest, first = max(depths), self.config.prelude_layers
        core_tables = [tables.get(layer) for layer in range(first, first + self.config.core_layers)]
        order = torch.tensor(sorted(range(len(depths)), key=lambda b: -depths[b]), device=e.device)
        if mixed := len(set(depths)) > 1:
            h, e = h[order], e[order]
            core_tables = [None if table is None else table[order] for table in core_tables]
        waiting, h = h, h[:0]
        for t in range(longest):
            active = sum(depth >= longest - t for depth in depths)
            h = torch.cat([h, waiting[len(h) : active]]) if len(h) < active else h
            inputs = (h, e[:active], rope, *(None if table is None else table[:active] for table in core_tables))
            if t < longest - self.config.backward_depth:
                with torch.no_grad():
                    h = self.run_loop(*inputs)
            elif self.config.activation_checkpointing != "none" and torch.is_grad_enabled():
                reentrant = self.config.activation_checkpointing == "reentrant"
                h = checkpoint(self.run_loop, *inputs, use_reentrant=reentrant, preserve_rng_state=False)
            else:
                h = self.run_loop(*inputs)
        x = cast(Tensor, self.read_out(h))
        return x[torch.argsort(order)] if mixed else x

    def loop(self, h: Tensor, e: Tensor, rope: Tensor, *tables: Tensor | None) -> Tensor:
        """Run one loop, ``h_t -> h_{t+1}``: the injection, then the core blocks, each with its value table or None."""
        h = self.injection(h, e)
        for block, table in zip(self.core, tables, strict=True):
            h = block(h, rope, table)
        return h

    def compile_loop(self, **options: Any) -> None:
        """Compile one loop, so that the number of graphs does not grow with the depth, and the blocks around the loop.

        Attach probes before the first call: graphs that exist do not see later hooks.

        Args:
            options: Passed to ``torch.compile``.
        """
        self.run_loop = torch.compile(self.loop, **options)
        for block in (*self.prelude, *self.coda):
            block.compile(**options)

    def initial_state(self, like: Tensor) -> Tensor:
        """Draw ``h_0`` with the shape ``(B, S, D)``, dtype and device of ``like``, as ``state_init`` says."""
        state = torch.zeros_like(like, requires_grad=False)
        if self.config.state_init == "normal":
            return state.normal_()
        if self.config.state_init == "like-init":
            _truncated_normal(state, self.config.init_std)
        return state

    def sample_depths(self, batch: int) -> list[int]:
        """Draw the depth of each sequence of a batch from torch's CPU generator; all equal when sampled per batch."""
        count = batch if self.config.depth_sampling == "per-sequence" else 1
        mean = torch.full((count,), float(self.config.mean_depth), device="cpu")
        if self.config.depth_distribution == "poisson":
            depths = torch.poisson(mean).clamp_(min=1)
        elif self.config.depth_distribution == "lognormal-poisson":
            log_rate = torch.randn(count, device="cpu") * HUGINN_SIGMA + mean.log() - HUGINN_SIGMA**2 / 2
            depths = torch.poisson(log_rate.exp()) + 1
        else:
            depths = mean
        return [int(depth) for depth in depths.tolist()] * (batch // count)

    def _depths(self, num_loops: int | Tensor | None, batch: int) -> list[int]:
        """Return the depth of every sequence as plain integers."""
        if num_loops is None:
            return self.sample_depths(batch) if self.training else [self.config.mean_depth] * batch
        if isinstance(num_loops, Tensor) and num_loops.ndim == 1:
            depths = [int(depth) for depth in num_loops.tolist()]
        else:
            depths = [int(num_loops)] * batch
        if len(depths) != batch or min(depths) < 1:
            raise ValueError(f"num_loops: expected one depth or {batch}, all at least 1, found {num_loops}")
        return depths

    def _blocks(self) -> list[Any]:
        """Return all transformer blocks in order."""
        return [*self.prelude, *self.core, *self.coda]

    def loop_site(self) -> dict[str, object]:
        """Return where the loop is, for a probe: module names, argument positions, how to read A̅, B̅, C_out."""
        read_out = self.read_out
        return {
            "body": "injection",
            "after": "read_out",
            "state_argument": 0,
            "input_argument": 1,
            "a_bar": self.injection.a_bar,
            "b_bar": self.injection.b_bar,
            "c_out": (lambda: read_out.weight) if isinstance(read_out, nn.Linear) else None,
            "depth_argument": "num_loops",
            "mean_depth": self.config.mean_depth,
            "sublayers": ("injection", *(f"core.{i}" for i in range(len(self.core)))),
            "prelude": tuple(f"prelude.{i}" for i in range(len(self.prelude))),
        }


def _precise(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or in float64 when it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _truncated_normal(tensor: Tensor, std: float) -> None:
    """Draw from a normal with mean 0, cut at three standard deviations."""
    nn.init.trunc_normal_(tensor, std=std, a=-3 * std, b=3 * std)
