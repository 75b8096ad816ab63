"""Makes the numbers that our conversion of the Parcae authors' weights is tested against.

Runs the authors' own code from a checkout that you give; nothing of it is in this project:

    git clone https://github.com/sandyresearch/parcae /path/to/parcae
    python benchmarks/parcae_reference.py /path/to/parcae tests/models/fixtures

Weights come from a closed formula (see `formula`), so that the fixture holds only tokens, initial states, logits and
the names and shapes of the weights. One file per injection. Each model has prelude norm, QK-norm, value embeddings and
gates; the linear one also has a SwiGLU MLP and untied embeddings.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

DEPTHS = (1, 2, 5, 8)
BASE = {
    "block_size": 16,
    "vocab_size": 64,
    "padded_vocab_size": 64,
    "n_embd": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "tie_embeddings": True,
    "norm_class_name": "RMSNorm",
    "mlp_class_name": "BaseMLP",
    "nonlin_name": "ReLU2",
    "qk_norm": True,
    "prelude_norm": True,
    "init_strategy": "scaled-zero",
    "init_orthogonal": True,
    "recurrent_embedding_dimension": 32,
    "recurrent_intermediation_embedding_dimension": 64,
    "n_layers_in_prelude": 2,
    "n_layers_in_recurrent_block": 2,
    "n_layers_in_coda": 2,
    "mean_recurrence": 8,
    "mean_backprop_depth": 4,
    "recurrent_iteration_method": "per-sequence",
}
CASES = {
    "diagonal": {"injection_type": "diagonal"},
    "linear": {
        "injection_type": "linear",
        "mlp_class_name": "GatedMLP",
        "nonlin_name": "SiLU",
        "tie_embeddings": False,
        "recurrent_iteration_method": "per-batch",
    },
    # one block each: value tables and gates fall on different layers, so that most of them have no effect
    "add": {"injection_type": "add", "n_layers_in_prelude": 1, "n_layers_in_recurrent_block": 1, "n_layers_in_coda": 1},
}


def formula(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return a tensor's weights: a chirp over the index (so that matrices have full rank) started by the name, float32.

    Matrices have entries of size 1/sqrt(columns) so that activations keep their size; embeddings 0.5; norms are near 1.
    """
    count = int(np.prod(shape))
    key = sum((i + 1) * ord(letter) for i, letter in enumerate(name)) % 9973
    index = np.arange(count, dtype=np.float64)
    wave = np.sin(index * index * (0.7 + key / 9973) + key)
    if len(shape) == 1:
        values = 0.2 * wave + (1.0 if "norm" in name or "ln_" in name else 0.0)
    else:
        values = wave * (0.5 if "wte" in name or "value_embeds" in name else 1.2 / np.sqrt(shape[1]))
    return values.reshape(shape).astype(np.float32)


def reference(checkout: Path, case: str) -> dict[str, np.ndarray]:
    """Run the authors' model of one case and return everything the test needs."""
    sys.path.insert(0, str(checkout))
    from parcae_lm.models.parcae.config import ParcaeConfig

    config = {**BASE, **CASES[case]}
    model = ParcaeConfig(**config).construct_model().float().eval()
    shapes = {}
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name == "freqs_cis" or (name == "lm_head.weight" and config["tie_embeddings"]):
                continue
            shapes[name] = list(tensor.shape)
            tensor.copy_(torch.from_numpy(formula(name, tuple(tensor.shape))))
    tokens = torch.from_numpy((np.arange(2 * 12).reshape(2, 12) * 37 + 11) % 64)
    state = torch.from_numpy(formula("h0", (2, 12, 32)) * 4)
    model.initialize_state = lambda embedding: state.clone()
    logits = []
    for depth in DEPTHS:
        with torch.no_grad():
            pair = (torch.tensor(depth), torch.tensor(0))
            logits.append(model(tokens, num_steps_pair=pair, return_logits=True)["logits"].numpy())
    commit = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    provenance = {
        "made_by": "benchmarks/parcae_reference.py",
        "source": "https://github.com/sandyresearch/parcae",
        "commit": commit or "not a git checkout",
        "torch": torch.__version__,
        "config": config,
        "shapes": shapes,
    }
    return {
        "tokens": tokens.numpy(),
        "initial_state": state.numpy(),
        "depths": np.array(DEPTHS),
        "logits": np.stack(logits),
        "provenance": np.array(json.dumps(provenance)),
    }


def main() -> None:
    """Write one fixture per injection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a checkout of sandyresearch/parcae")
    parser.add_argument("out", type=Path, help="folder for the fixtures")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        target = arguments.out / f"parcae_{case}.npz"
        arrays = reference(arguments.checkout, case)
        np.savez_compressed(target, **arrays)
        print(f"{target}: {target.stat().st_size} bytes, logits of size {np.abs(arrays['logits']).mean():.3f}")


if __name__ == "__main__":
    main()
