"""Models on no registry at all: a loop without an injection module, and one without any module in it.

``visited`` holds the states of the last forward, as the forward itself knows them.
"""

import torch
import torch.nn.functional as F
from torch import nn


class BareParameters(nn.Module):
    """``h ← block(a ⊙ h + B e)`` with bare parameters a and B: no module receives ``h``, unless ``marked``."""

    def __init__(self, marked=False, width=16, vocabulary=64):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.a = nn.Parameter(torch.full((width,), 0.5))
        self.b = nn.Parameter(torch.eye(width))
        self.loop_state = nn.Identity() if marked else None
        self.block = nn.Sequential(nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, width))
        self.head = nn.Linear(width, vocabulary)
        self.visited = []

    def forward(self, tokens, labels=None, depth=5):
        e = self.embed(tokens)
        h = torch.zeros_like(e)
        visited = [h]
        for _ in range(depth):
            h = h if self.loop_state is None else self.loop_state(h)
            h = self.block(self.a * h + e @ self.b.T)
            visited.append(h)
        self.visited = [state.detach() for state in visited]
        logits = self.head(h)
        return logits if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())


class NoModules(nn.Module):
    """``h ← tanh(h W) + e``: operations alone; with ``marked`` an Identity is called on the state, as we advise."""

    def __init__(self, marked=False, width=16, vocabulary=64):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.weight = nn.Parameter(torch.randn(width, width) / width**0.5)
        self.loop_state = nn.Identity() if marked else None
        self.head = nn.Linear(width, vocabulary)
        self.visited = []

    def forward(self, tokens, labels=None):
        e = self.embed(tokens)
        h = e
        visited = [h]
        for _ in range(5):
            h = h if self.loop_state is None else self.loop_state(h)
            h = torch.tanh(h @ self.weight) + e
            visited.append(h)
        self.visited = [state.detach() for state in visited]
        logits = self.head(h)
        return logits if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
