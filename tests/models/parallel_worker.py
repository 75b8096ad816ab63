"""Run by test_distributed.py under torchrun: trains tiny models on two ranks, saves the first one's end."""

import sys
from pathlib import Path

import torch
from loopscope.models import TrainConfig, build, standard_library
from loopscope.models.distributed import rank, started, whole
from loopscope.models.train import train

MODEL = {"mean_depth": 4, "backward_depth": 2, "depth_sampling": "per-sequence", "value_embeddings": (0, 2)}
MODEL |= {"activation_checkpointing": "non-reentrant"}
CASES = {
    "ddp-adamw": {"parallelism": "ddp"},
    "fsdp-adamw": {"parallelism": "fsdp"},
    "ddp-muon": {"parallelism": "ddp", "optimizer": "muon"},
    "fsdp-muon": {"parallelism": "fsdp", "optimizer": "muon"},
}


def run(out, name, micro_batches, options, *, steps=4, resume=False):
    """Losses, gradient norms, weights and held-out loss of one case."""
    torch.manual_seed(rank())  # ranks start with different weights: the first one's must win
    model = build("demo", **MODEL)
    told = []

    class Record:
        def flush(self):
            pass

        def step(self, *, step, loss, grad_norm, lr, tokens):
            told.append([loss.item(), grad_norm.item(), tokens])

    folder = Path(out) / f"{name}.checkpoint"
    text = standard_library(sequence_length=16)
    sizes = {"steps": steps, "batch_size": 2, "accumulation": micro_batches, "eval_every": 4}
    config = TrainConfig(lr=0.01, warmup_steps=2, cooldown=0.0, muon_weight_decay=0.0, **sizes, **options)
    result = train(model, text, config, observer=Record(), checkpoint_path=folder, resume=resume)
    weights = {key: whole(value).detach().clone() for key, value in model.state_dict().items()}
    return {"told": torch.tensor(told), "weights": weights, "evaluation": result.evaluations[steps][4]}


if __name__ == "__main__":
    with started("cpu"):
        for name, options in CASES.items():
            losses = run(sys.argv[1], name, 2, options)
            if rank() == 0:
                torch.save(losses, f"{sys.argv[1]}/{name}.pt")
