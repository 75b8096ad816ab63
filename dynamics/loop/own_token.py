"""A causal loop with the derivatives between its tokens cut: same values, block-diagonal Jacobian.

With ``o = softmax(s Q Kᵀ) V`` and ``P_ii`` the attention of a token to itself, the derivatives that stay are: with
respect to ``q_i`` as in fused attention with k and v detached; ``∂o_i/∂v_i = P_ii``; ``∂o_i/∂k_i = P_ii (v_i - o_i) s
q_iᵀ``; all other derivatives are zero.

An attention call is cut only where it was seen to attend from token to token: row r of its queries, keys and values
depends on token r alone. Attention over the heads or slots inside a token is left as it is, and so is attention to keys
of another number (sinks, a prefix, keys of ``[e; h]``), whose own key is unknown.

Legend: B batch, S positions, D width, L rows of one attention call.

Not covered: attention that does not run through ``scaled_dot_product_attention``; its derivatives stay whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from .jacobian import Step
from .krylov import random_start

__all__ = ["TokenStructure", "cut_off", "find_structure", "own_token_step"]

_FUSED = functional.scaled_dot_product_attention
CHUNK = 512
"""Query rows whose full attention row is in memory at a time when ``P_ii`` is computed."""


@dataclass(frozen=True, slots=True)
class TokenStructure:
    """How the tokens of one causal loop see each other.

    Attributes:
        coupled: Whether tokens still depend on each other with the cut made, so that every token needs backward passes
            of its own.
        whole: Attention calls, counted in running order, that are left whole.
    """

    coupled: bool
    whole: frozenset[int]


def own_token_step(step: Step, structure: TokenStructure | None = None) -> Step:
    """Return the same loop with the derivatives through other tokens' keys and values cut.

    Args:
        step: One causal loop ``(B, S, D) -> (B, S, D)``.
        structure: Which attention calls are left whole, from `find_structure`; none when None, which is right where
            every call attends from token to token.

    Returns:
        A step of equal values whose backward passes stay within each token, unless tokens mix elsewhere.

    Source: see the module text.

    >>> attend = lambda h: torch.nn.functional.scaled_dot_product_attention(h, h, h, is_causal=True)
    >>> h = torch.ones(1, 3, 2, requires_grad=True)
    >>> own_token_step(attend)(h)[0, 2].sum().backward()
    >>> h.grad[0, :, 0]                                        # only token 2, by its own share of 1/3
    tensor([0.0000, 0.0000, 0.3333])
    """
    whole = frozenset[int]() if structure is None else structure.whole

    def decoupled(state: Tensor) -> Tensor:
        with _OwnTokenAttention(whole):
            return step(state)

    return decoupled


def find_structure(step: Step, state: Tensor) -> TokenStructure:
    """Return how the tokens of a causal loop see each other, tested over all positions.

    Which calls attend from token to token is read from the gradients of three rows of their queries, keys and values.
    Whether anything else couples tokens is asked with one backward pass per binary digit of the position: of two
    tokens, the later one has a digit 1 where the earlier one has 0, so each pair is told apart by one of the passes.

    Costs two forwards and ``3 + log2(S)`` backward passes; three more per attention call where one is not from token
    to token.

    Args:
        step: One causal loop ``(B, S, D) -> (B, S, D)`` (see `check_causality`).
        state: Where to look.

    Returns:
        The structure, for `own_token_step` at this state and others of the same loop.

    Raises:
        ValueError: The result does not depend on the state, or attention has dropout.

    >>> find_structure(lambda h: h.cumsum(1), torch.ones(1, 5, 2)).coupled
    True
    >>> attend = torch.nn.functional.scaled_dot_product_attention
    >>> find_structure(lambda h: attend(h, h, h, is_causal=True), torch.ones(1, 5, 2))
    TokenStructure(coupled=False, whole=frozenset())
    """
    calls: list[tuple[Tensor, ...]] = []
    whole: frozenset[int] = frozenset()
    # A call is judged with all calls before it settled: what they mix would be taken for its own doing.
    while True:
        calls.clear()
        source = state.detach().clone().requires_grad_()
        with torch.enable_grad(), _OwnTokenAttention(whole, calls):
            output = step(source)
        if not output.requires_grad:
            raise ValueError("step: the result does not depend on the state (a detach or no_grad inside?)")
        stray = next((i for i, rows in enumerate(calls) if i not in whole and not _by_token(rows, source)), None)
        if stray is None:
            break
        whole |= {stray}
    return TokenStructure(_mixes(output, source), whole)


def _by_token(tensors: tuple[Tensor, ...], source: Tensor) -> bool:
    """Return whether row r of an attention call's inputs depends on token r alone, for three rows."""
    positions = source.shape[1]
    if len({tensor.shape[-2] for tensor in tensors}) > 1 or tensors[0].shape[-2] != positions:
        return False
    for row in {0, positions // 2, positions - 1}:
        seen = [tensor[..., row, :] for tensor in tensors if tensor.requires_grad]
        # The shares are irregular, so that the parts of a sum do not cancel.
        total = sum((random_start(1, part.numel(), part)[0] * part.reshape(-1)).sum() for part in seen)
        if not isinstance(total, Tensor):
            continue
        gradient = torch.autograd.grad(total, source, retain_graph=True, allow_unused=True)[0]
        if gradient is not None and bool((_without(gradient, row) != 0).any()):
            return False
    return True


def _without(gradient: Tensor, row: int) -> Tensor:
    """Return the gradient with one position left out."""
    return torch.cat([gradient[:, :row], gradient[:, row + 1 :]], dim=1)


def _mixes(output: Tensor, source: Tensor) -> bool:
    """Return whether any token of the output depends on an earlier one: exact zeros, one binary digit at a time."""
    positions = torch.arange(source.shape[1], device=source.device)
    weight = random_start(1, source.numel(), source).reshape(source.shape)
    for digit in range(max(source.shape[1] - 1, 0).bit_length()):
        ones = (positions >> digit & 1).bool()
        gradient = torch.autograd.grad(output, source, weight * ones[:, None], retain_graph=True)[0]
        if bool((gradient[:, ~ones] != 0).any()):
            return True
    return False


class _OwnTokenAttention(TorchFunctionMode):
    """Attention whose value is unchanged and whose gradient reaches each token's own query, key and value only.

    Args:
        whole: Calls, counted from 0, that keep all their derivatives.
        calls: Where the queries, keys and values of every call are kept, if anywhere.
    """

    def __init__(self, whole: frozenset[int], calls: list[tuple[Tensor, ...]] | None = None) -> None:
        super().__init__()
        self._whole, self._calls, self._count = whole, calls, 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace scaled_dot_product_attention; everything else passes."""
        if func is _FUSED:
            return self._attend(*args, **(kwargs or {}))
        if func is functional.multi_head_attention_forward:
            # It runs with this mode switched off and looks its attention up in its own module.
            with patch.object(functional, "scaled_dot_product_attention", self._attend):
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return one attention call, cut or whole."""
        number, self._count = self._count, self._count + 1
        if self._calls is not None:
            self._calls.append((query, key, value))
        # A key that is nobody's own, or everybody's, cannot be cut.
        whole = number in self._whole or (query.shape[-2] != key.shape[-2] and key.requires_grad)
        attend: Callable[..., Tensor] = _whole_attention if whole else _own_token_attention
        return attend(query, key, value, *args, **kwargs)


def _whole_attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return attention as it is, refused where it is random."""
    dropout = float(args[1]) if len(args) > 1 else float(kwargs.get("dropout_p", 0.0))
    _require_no_dropout(dropout)
    return _FUSED(query, key, value, *args, **kwargs)


def _require_no_dropout(dropout: float) -> None:
    """Raise where attention has dropout."""
    if dropout > 0:
        raise ValueError(f"attention dropout is {dropout}: a random step has no Jacobian; call model.eval() first")


def _own_token_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Fused attention for the value and the query's gradient, plus terms of value zero that carry the own key's and
    value's gradients.
    """
    _require_no_dropout(dropout_p)
    options: dict[str, Any] = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    out = _FUSED(query, cut_off(key), cut_off(value), **options)
    if not (key.requires_grad or value.requires_grad):
        return out
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], dim=-3)
    size = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    with torch.no_grad():
        own = _own_probability(query, key, attn_mask, is_causal, size)[..., None]
        by_key = own * size * (value - out)
    to_own_key = (cut_off(query) * (key - cut_off(key))).sum(-1, keepdim=True)
    return out + own * (value - cut_off(value)) + by_key * to_own_key


def cut_off(tensor: Tensor) -> Tensor:
    """Detach a tensor for a purpose of ours, which nobody takes for the model's own ``detach``.

    >>> cut_off(torch.ones(1, requires_grad=True)).requires_grad
    False
    """
    cut: Tensor = torch.ops.aten.detach.default(tensor)
    return cut


def _own_probability(query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, size: float) -> Tensor:
    """Return ``P_ii``, the share of its attention that each token gives to itself, ``(..., L)``."""
    length = query.shape[-2]
    own_shares = []
    for first in range(0, length, CHUNK):
        rows = torch.arange(first, min(first + CHUNK, length), device=query.device)
        score = size * query[..., rows, :] @ key.transpose(-1, -2)
        if is_causal:
            score = score.masked_fill(rows[:, None] < torch.arange(length, device=query.device)[None], -math.inf)
        if mask is not None:
            part = mask[..., rows, :] if mask.shape[-2] > 1 else mask
            score = score.masked_fill(~part, -math.inf) if part.dtype == torch.bool else score + part
        own = score.gather(-1, rows[:, None].expand(*score.shape[:-1], 1))[..., 0]
        total = torch.logsumexp(score, -1)
        own_shares.append(torch.where(torch.isneginf(total), 0.0, torch.exp(own - total)))
    return torch.cat(own_shares, -1)
