"""Looped language models, their data and their training. Networks import nothing else of this project.

    config.py       every choice that defines a model
    looped.py       the model, one file to read top to bottom
    presets.py      the paper's models by name, and their training recipes
    parcae_lm.py    weights of the authors' implementation, in and out
    data.py         text as numbered batches; the standard library's source
    documents.py    texts from files and from the hub
    tokenizer.py    a byte-pair tokenizer
    packed.py       tokenised text in a file, packed into sequences
    train.py        the training loop, which knows an observer and no probe
    train_config.py every choice that defines a training run
    run_config.py   a run described in TOML
    optimizers.py   parameter groups and schedules
    muon.py         orthogonalised momentum
    distributed.py  several processes: DDP and FSDP2
    checkpoint.py   atomic checkpoints
    depth.py        held-out loss against the number of loops
    flops.py        training compute and utilisation
    acting.py       models that act when they are looked at, for `loopscope selfcheck`

Names resolve on first use, so that importing this package costs nothing. The function `train` stays in its module of
the same name: ``from loopscope.models.train import train``.
"""

from ..lazy import names

__getattr__, __dir__, __all__ = names(__name__, __file__)
