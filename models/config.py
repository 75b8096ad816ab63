"""Every choice that defines a looped model, in one checked dataclass.

Not covered: training (see `TrainConfig`) and data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Injection = Literal["addition", "concatenation", "parcae"]
GATE_CHANNELS = 32  # a value embedding's gate reads this many channels of the attention input


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopedConfig:
    """Every choice that defines a looped model; checked when it is built.

    Args:
        vocab_size: Size V of the vocabulary.
        width: Width D of the residual stream and of the recurrent state.
        heads: Attention heads; ``width / heads`` must be even (rotary pairs).
        prelude_layers: Blocks before the loop.
        core_layers: Blocks in the loop.
        coda_layers: Blocks after the loop.
        max_length: Longest sequence the rotary tables cover.
        mlp: ``"swiglu"`` or ``"relu2"`` (squared ReLU).
        mlp_width: Inner width of the MLP.
        injection: How ``e`` enters the state: ``"addition"``, ``"concatenation"`` or ``"parcae"``.
        norm: ``"pre"``, or ``"sandwich"`` for a second norm after every residual addition.
        norm_eps: Added to the mean square in every RMS norm.
        prelude_norm: RMS-normalise ``e``; at 1.3B parameters it removes late loss spikes.
        read_out: A learned D × D matrix C_out on ``h_T``; otherwise the state goes to the coda as it is.
        value_embeddings: Layers, counted through prelude, core and coda, that add a gated token table to their values.
        qk_norm: RMS-normalise queries and keys (after the rotation, without a weight).
        tie_embeddings: Use the token embedding as the output head.
        rope_base: Base θ of the rotary frequencies.
        output_init: Initial matrices that write to the residual stream: ``"scaled"`` down by the depth, or ``"zero"``.
        state_init: ``h_0``: ``"like-init"`` (truncated normal, the embedding's std), ``"normal"`` (std 1), ``"zero"``.
        mean_depth: Mean number of loops in training (μ_rec), and the number run in evaluation.
        backward_depth: At most this many of the last loops carry gradients (μ_bwd).
        depth_distribution: ``"poisson"`` (at least 1), ``"lognormal-poisson"`` (Huginn's) or ``"fixed"``.
        depth_sampling: One depth ``"per-batch"``, or one for every sequence, ``"per-sequence"``.
        activation_checkpointing: Recompute loops in the backward pass: ``"none"``, ``"reentrant"``,
            ``"non-reentrant"``.

    Raises:
        ValueError: A field is out of range; the message names the field, what is expected and what was found.

    >>> LoopedConfig(vocab_size=256, width=32, heads=2).mean_depth
    8
    >>> LoopedConfig(vocab_size=256, width=30, heads=4)
    Traceback (most recent call last):
    ValueError: width: expected a multiple of 2 * heads = 8, found 30
    """

    vocab_size: int
    width: int
    heads: int
    prelude_layers: int = 1
    core_layers: int = 1
    coda_layers: int = 1
    max_length: int = 2048
    mlp: Literal["swiglu", "relu2"] = "swiglu"
    mlp_width: int = 64
    injection: Injection = "parcae"
    norm: Literal["pre", "sandwich"] = "pre"
    norm_eps: float = 1e-5
    prelude_norm: bool = False
    read_out: bool = False
    value_embeddings: tuple[int, ...] = ()
    qk_norm: bool = False
    tie_embeddings: bool = True
    rope_base: float = 50_000.0
    output_init: Literal["scaled", "zero"] = "scaled"
    state_init: Literal["like-init", "normal", "zero"] = "like-init"
    mean_depth: int = 8
    backward_depth: int = 4
    depth_distribution: Literal["poisson", "lognormal-poisson", "fixed"] = "poisson"
    depth_sampling: Literal["per-batch", "per-sequence"] = "per-batch"
    activation_checkpointing: Literal["none", "reentrant", "non-reentrant"] = "none"

    def __post_init__(self) -> None:
        """Check every field; a value read from a file may have any type."""
        for name in (
            "vocab_size",
            "width",
            "heads",
            "core_layers",
            "max_length",
            "mlp_width",
            "mean_depth",
            "backward_depth",
        ):
            self._expect(name, _is_count(getattr(self, name), least=1), "an integer of at least 1")
        for name in ("prelude_layers", "coda_layers"):
            self._expect(name, _is_count(getattr(self, name), least=0), "an integer of at least 0")
        for name in ("prelude_norm", "read_out", "qk_norm", "tie_embeddings"):
            self._expect(name, isinstance(getattr(self, name), bool), "true or false")
        for name in ("norm_eps", "rope_base"):
            self._expect(
                name, isinstance(getattr(self, name), int | float) and getattr(self, name) > 0, "a positive number"
            )
        for name, choices in _CHOICES.items():
            self._expect(name, getattr(self, name) in choices, "one of " + ", ".join(choices))
        self._expect("width", self.width % (2 * self.heads) == 0, f"a multiple of 2 * heads = {2 * self.heads}")
        self._expect("value_embeddings", isinstance(self.value_embeddings, tuple | list), "a list of layers")
        object.__setattr__(self, "value_embeddings", tuple(self.value_embeddings))
        inside = all(_is_count(layer, least=0) and layer < self.layers for layer in self.value_embeddings)
        self._expect("value_embeddings", inside, f"layers from 0 to {self.layers - 1}")
        if self.value_embeddings:
            self._expect(
                "width", self.width >= GATE_CHANNELS, f"at least {GATE_CHANNELS} for the value embeddings' gates"
            )

    def _expect(self, name: str, fine: bool, expected: str) -> None:
        """Report a bad field; the one place that does."""
        if not fine:
            raise ValueError(f"{name}: expected {expected}, found {getattr(self, name)!r}")

    @property
    def layers(self) -> int:
        """Distinct transformer blocks: prelude + core + coda."""
        return self.prelude_layers + self.core_layers + self.coda_layers

    @property
    def init_std(self) -> float:
        """Standard deviation √(2 / 5D) of the initial embeddings and matrices."""
        return math.sqrt(2 / (5 * self.width))


_CHOICES: dict[str, tuple[str, ...]] = {
    "injection": get_args(Injection),
    "mlp": ("swiglu", "relu2"),
    "norm": ("pre", "sandwich"),
    "output_init": ("scaled", "zero"),
    "state_init": ("like-init", "normal", "zero"),
    "depth_distribution": ("poisson", "lognormal-poisson", "fixed"),
    "depth_sampling": ("per-batch", "per-sequence"),
    "activation_checkpointing": ("none", "reentrant", "non-reentrant"),
}


def _is_count(value: object, *, least: int) -> bool:
    """Return whether a value is an integer (``True`` is not) of at least ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
