"""Stand-in for the Parcae authors' ``parcae_lm`` (its code is on no registry): same module structure and names.

Only what finding and recording the loop meets is here: the three injections, depth per batch and per sequence (the
mean in evaluation mode, per batch), loops without gradients first. The blocks are much simpler than the original's.
``visited`` holds the states of the last forward, as the forward itself knows them.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn


class DiagonalInjection(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.A_log = nn.Parameter(0.1 * torch.randn(width))
        self.dt_bias = nn.Parameter(0.1 * torch.randn(width))
        self.B = nn.Parameter(torch.eye(width))

    def forward(self, x_t, e):
        step = F.softplus(self.dt_bias)
        return x_t * torch.exp(-step * torch.exp(self.A_log)) + step * (e @ self.B.T)


class LinearInjection(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.adapter = nn.Linear(2 * width, width, bias=False)

    def forward(self, x, input_embeds):
        return self.adapter(torch.cat([x, input_embeds], dim=-1))


class AdditiveInjection(nn.Module):
    def __init__(self, width):
        super().__init__()

    def forward(self, x, input_embeds):
        return x + input_embeds


INJECTIONS = {"diagonal": DiagonalInjection, "linear": LinearInjection, "add": AdditiveInjection}


class TransformerPreNormBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm_2 = nn.RMSNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, x, freqs_cis, mask=None):
        return x + self.mlp(self.norm_2(x) + freqs_cis)


class Parcae(nn.Module):
    def __init__(self, injection="diagonal", recurrent_iteration_method="per-batch", width=16, vocabulary=64):
        super().__init__()
        self.config = SimpleNamespace(
            injection_type=injection, recurrent_iteration_method=recurrent_iteration_method,
            mean_recurrence=4, mean_backprop_depth=2,
        )  # fmt: skip
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocabulary, width),
                "prelude": nn.ModuleList([TransformerPreNormBlock(width)]),
                "adapter": INJECTIONS[injection](width),
                "core_block": nn.ModuleList([TransformerPreNormBlock(width) for _ in range(2)]),
                "C": nn.Linear(width, width, bias=False),
                "coda": nn.ModuleList([TransformerPreNormBlock(width)]),
                "ln_f": nn.RMSNorm(width),
            }
        )
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.register_buffer("freqs_cis", 0.1 * torch.randn(1, 64, width))
        self.step = 0
        self.visited = []

    def forward(self, input_ids, labels=None):
        freqs = self.freqs_cis[:, : input_ids.shape[1]]
        e = self.transformer["wte"](input_ids)
        for block in self.transformer["prelude"]:
            e = block(e, freqs)
        x = self.transformer["C"](self.iterate_forward(e, freqs))
        for block in self.transformer["coda"]:
            x = block(x, freqs)
        logits = self.lm_head(self.transformer["ln_f"](x)).float()
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits}

    def iterate_forward(self, e, freqs):
        x = torch.randn_like(e)
        visited = [x]
        per_sequence = self.config.recurrent_iteration_method == "per-sequence"
        depths = self.sample(e.shape[0] if per_sequence else 1)
        for grad, count in ((False, depths[0]), (True, depths[1])):
            for step in range(int(count.max())):
                with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
                    active = step < count
                    new = self.update_recurrent_state(x, e, freqs)
                    x = torch.where(active[:, None, None], new, x) if per_sequence else new
                    visited.append(x)
        self.visited = [state.detach() for state in visited]
        return x

    def update_recurrent_state(self, x, e, freqs):
        x = self.transformer["adapter"](x, e)
        for block in self.transformer["core_block"]:
            x = block(x, freqs)
        return x

    def sample(self, count):
        if not self.training and self.config.recurrent_iteration_method == "per-batch":
            return torch.tensor([self.config.mean_recurrence]), torch.tensor([0])
        generator = torch.Generator().manual_seed(1 + self.step)
        total = torch.poisson(torch.full((count,), 4.0), generator=generator).clamp(min=2).long()
        return total - total.clamp(max=2), total.clamp(max=2)
