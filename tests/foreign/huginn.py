"""Stand-in for Huginn, whose ``raven`` code lives in its model repository: same module structure and names.

A linear adapter called directly on ``[x; e]``, core blocks with a norm on either side of each addition, and a final
norm that is used behind the loop and again behind the coda. ``visited`` holds the states of the last forward.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn


class SandwichBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm_3, self.norm_4 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, x, freqs_cis, step_idx, mask=None, past_key_values=None):
        return self.norm_4(self.mlp(self.norm_3(x) + freqs_cis) + x)


class RavenForCausalLM(nn.Module):
    def __init__(self, width=16, vocabulary=64):
        super().__init__()
        self.config = SimpleNamespace(n_embd=width, mean_recurrence=4)
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocabulary, width),
                "prelude": nn.ModuleList([SandwichBlock(width)]),
                "adapter": nn.Linear(2 * width, width, bias=False),
                "core_block": nn.ModuleList([SandwichBlock(width) for _ in range(2)]),
                "coda": nn.ModuleList([SandwichBlock(width)]),
                "ln_f": nn.RMSNorm(width),
            }
        )
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.register_buffer("freqs_cis", 0.1 * torch.randn(1, 64, width))
        self.visited = []

    def forward(self, input_ids, labels=None, num_steps=None):
        freqs = self.freqs_cis[:, : input_ids.shape[1]]
        block_idx = torch.tensor(-1)
        e = self.transformer["wte"](input_ids)
        for block in self.transformer["prelude"]:
            block_idx += 1
            e = block(e, freqs, block_idx)
        x, block_idx = self.iterate_forward(e, freqs, block_idx, num_steps)
        for block in self.transformer["coda"]:
            x = block(x, freqs, block_idx)
        logits = self.lm_head(self.transformer["ln_f"](x)).float()
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return SimpleNamespace(loss=loss, logits=logits)

    def iterate_forward(self, e, freqs, block_idx, num_steps):
        x = torch.randn_like(e)
        visited = [x]
        if num_steps is None:
            num_steps = int(torch.poisson(torch.tensor(3.0))) + 1 if self.training else self.config.mean_recurrence
        for step in range(num_steps):
            with torch.set_grad_enabled(torch.is_grad_enabled() and step >= num_steps - 2):
                x = self.transformer["adapter"](torch.cat([x, e.to(x.device)], dim=-1))
                for block in self.transformer["core_block"]:
                    block_idx += 1
                    x = block(x, freqs, block_idx)
            visited.append(x)
        self.visited = [state.detach() for state in visited]
        return self.transformer["ln_f"](x), block_idx
