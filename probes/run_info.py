"""What is true of a whole run, written once into its file."""

from __future__ import annotations

import platform
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from ..loops.site import LoopSite
from ..runfile.commit import commit_of
from ..runfile.rank_names import rank_of
from .loop_code import loop_code
from .measure.internals import norms_of
from .measure.sharded import own_part
from .schedule import Preset

HIDDEN: Final = "***"
_SECRET_NAME: Final = re.compile(
    r"(^|[^a-z])(api|access|secret|private|auth|hf|wandb)?[-_.]?"
    r"(token|secret|password|passwd|passphrase|credential|credentials|apikey|api[-_.]?key|access[-_.]?key|private[-_.]?key"
    r"|secret[-_.]?key|auth[-_.]?key|key)$",
    re.IGNORECASE,
)
_SECRET_VALUE: Final = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{12,}|AIza[\w-]{30,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*|[0-9a-f]{40}(?![0-9a-f]))"
)
_IN_URL: Final = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)[^/@\s]+@", re.IGNORECASE)
_IN_QUERY: Final = re.compile(
    r"(?P<name>[?&](?:[\w-]*(?:token|key|secret|password|sig|signature))=)[^&\s]+", re.IGNORECASE
)


def _parameter_dtype(model: nn.Module) -> str | None:
    """Return the type of most of the model's floating-point numbers, as torch names it; None without any."""
    sizes: dict[str, int] = {}
    for p in model.parameters():
        if p.is_floating_point():
            name = str(p.dtype).removeprefix("torch.")
            sizes[name] = sizes.get(name, 0) + p.numel()
    return max(sizes, key=sizes.__getitem__, default=None)


def run_info(model: nn.Module, site: LoopSite | None, preset: Preset, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is true of the whole run."""
    return {
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameter_names": list(_with_norm(model)),
        "parameter_dtype": _parameter_dtype(model),
        **site_info(model, site),
        "preset": preset.name,
        "config": dict(config),
        "command": without_secrets(sys.argv),
        "commit": commit_of(Path.cwd()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(next((p.device for p in model.parameters()), "cpu")),
        "host": platform.node(),
        "started": time.time(),
    }


def site_info(model: nn.Module, site: LoopSite | None) -> dict[str, Any]:
    """Return what is true of a run because of where its loop is; None: that is not known yet."""
    a_bar = site.a_bar() if site is not None and site.a_bar is not None else None
    structure = {0: "scaled identity", 1: "diagonal", 2: "dense"}
    return {
        "site": None if site is None else site.describe(),
        "variables": [] if site is None else [variable.name for variable in site.variables],
        "a_bar_structure": None if a_bar is None else structure[a_bar.ndim],
        # A fixed A̅ is marginal (or not) by design; only a learned one can become unstable in training.
        "a_bar_learned": None if a_bar is None else a_bar.requires_grad,
        **loop_code(model, site, a_bar),
    }


def without_secrets(command: Sequence[str]) -> list[str]:
    """Return the words of a command line with what looks like a secret replaced: a run file is made to be shared.

    Hidden are the values of options named like a secret (``--hf-token X``, ``api_key=X``), known forms of tokens, and
    the credentials in URLs.

    >>> without_secrets(["train.py", "--hf-token", "abc", "--lr", "0.1", "wandb.api_key=abc", "https://me:pw@host/x"])
    ['train.py', '--hf-token', '***', '--lr', '0.1', 'wandb.api_key=***', 'https://***@host/x']
    """
    words: list[str] = []
    secret_follows = False
    for word in command:
        name, equals, value = word.partition("=")
        named = _SECRET_NAME.search(name) is not None
        if secret_follows and not word.startswith("--"):
            words.append(HIDDEN)
        elif named and equals and value:
            words.append(f"{name}={HIDDEN}")
        else:
            word = _IN_QUERY.sub(rf"\g<name>{HIDDEN}", _IN_URL.sub(rf"\g<scheme>{HIDDEN}@", word))
            words.append(_SECRET_VALUE.sub(HIDDEN, word))
        secret_follows = named and not equals and word.startswith("-")
    return words


@torch.no_grad()
def parameter_norms(model: nn.Module) -> Tensor:
    """Return ‖p‖₂ of every parameter ``(P,)``; of a sharded one, of this rank's shard, which takes no collective."""
    norms = norms_of([own_part(p.detach()) for p in _with_norm(model).values()])
    return torch.stack([norm.float().to(norms[0].device) for norm in norms]) if norms else torch.empty(0)


def _with_norm(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that have a norm: quantised ones have none."""
    kinds = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    return {name: p for name, p in model.named_parameters() if p.dtype in kinds}


def device_of(model: nn.Module) -> torch.device:
    """Return where a model computes."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def refuse_lazy(model: nn.Module) -> None:
    """Refuse a model whose parameters have no shape yet, which cannot even be looked at.

    Raises:
        ValueError: It has lazy modules.
    """
    if any(isinstance(parameter, UninitializedParameter) for parameter in model.parameters()):
        raise ValueError("the model has lazy modules that have no shape yet: call attach() after a first forward")


def rank_and_world_size(path: Path) -> tuple[int, int | None]:
    """Return this process among those of ``torch.distributed``; without it, the rank of the path and no number."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return rank_of(path), None
