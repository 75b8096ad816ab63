"""Stand-in for Ouro, whose code lives in its model repository: same module structure and names.

The whole stack and its norm are looped. Given labels, the head reads the state of every loop, weighted by a learned
exit gate; without, that of the last one only. ``visited`` holds the states of the last forward.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn


class OuroDecoderLayer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.input_layernorm, self.input_layernorm_2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, hidden_states, position_embeddings=None, current_ut=0):
        return hidden_states + self.input_layernorm_2(self.mlp(self.input_layernorm(hidden_states)))


class OuroModel(nn.Module):
    def __init__(self, config, width, vocabulary):
        super().__init__()
        self.config, self.total_ut_steps = config, config.total_ut_steps
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList([OuroDecoderLayer(width) for _ in range(3)])
        self.norm = nn.RMSNorm(width)
        self.early_exit_gate = nn.Linear(width, 1)
        self.visited = []

    def forward(self, input_ids):
        hidden_states = self.embed_tokens(input_ids)
        states, gates, visited = [], [], [hidden_states]
        for current_ut in range(self.total_ut_steps):
            for layer in self.layers:
                hidden_states = layer(hidden_states, position_embeddings=None, current_ut=current_ut)
            hidden_states = self.norm(hidden_states)
            states.append(hidden_states)
            gates.append(self.early_exit_gate(hidden_states))
            visited.append(hidden_states)
        self.visited = [state.detach() for state in visited]
        return {"last_hidden_state": hidden_states}, states, gates


class OuroForCausalLM(nn.Module):
    def __init__(self, width=16, vocabulary=64):
        super().__init__()
        self.config = SimpleNamespace(hidden_size=width, total_ut_steps=4)
        self.model = OuroModel(self.config, width, vocabulary)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)

    @property
    def visited(self):
        return self.model.visited

    def forward(self, input_ids, labels=None, logits_to_keep=0):
        outputs, states, gates = self.model(input_ids)
        if labels is None:
            return SimpleNamespace(loss=None, logits=self.lm_head(outputs["last_hidden_state"][:, slice(-0, None), :]))
        left, logits = torch.ones_like(gates[0]), 0
        for i, (state, gate) in enumerate(zip(states, gates, strict=True)):
            share = left if i == len(states) - 1 else torch.sigmoid(gate) * left
            left = left - share
            logits = logits + share * self.lm_head(state)
        return SimpleNamespace(loss=F.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits=logits)
