"""Universal transformers: one with ACT, slowrun's over a U-Net, and the looped middle of parameter-golf's record."""

import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from runner import Published, Training, edited, importable, pair, returned, stand_in
from torch import Tensor
from torch.nn import functional as F

OLD_FLOAT = "np.exp(np.arange(num_timescales).astype(np.float)"
RECORD = "records/track_10min_16mb/2026-04-05_SP8192_GPTQ-Embeddings_SDClip_Loop45x2/train_gpt_human.py"


def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, window_size: Any = None) -> Tensor:
    """Attention of torch in the place of flash attention's: ``(B, T, H, D)``, no window shorter than the sequence."""
    heads = q.shape[2] // k.shape[2]
    k, v = (part.repeat_interleave(heads, dim=2) for part in (k, v))
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), is_causal=causal).transpose(1, 2)


def story(number: int, batch: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Stories of six sentences of seven words, a question, and an answer, as bAbI has them."""
    draw = torch.Generator().manual_seed(1000 + number)
    told, asked = torch.randint(1, 40, (batch, 6, 7), generator=draw), torch.randint(1, 40, (batch, 7), generator=draw)
    return told, asked, told[:, 0, 0]


def make_act(checkout: Path) -> Training:
    """Halting moves its tensors to a GPU; here they stay."""
    importable(checkout)
    layers = checkout / "models" / "common_layer.py"
    edited("models.common_layer", layers, {OLD_FLOAT: OLD_FLOAT.replace("np.float", "float")})
    shape = "torch.zeros(inputs.shape[0],inputs.shape[1])"
    names = ["halting_probability", "remainders", "n_updates"]
    changes = {f"{name} = {shape}.cuda()": f"{name} = {shape}" for name in names}
    changes["torch.zeros_like(inputs).cuda()"] = "torch.zeros_like(inputs)"
    code = edited("models.on_cpu", checkout / "models" / "UTransformer.py", changes)
    model = code.BabiUTransformer(
        num_vocab=40, embedding_size=32, hidden_size=32, num_layers=6, num_heads=2, total_key_depth=32,
        total_value_depth=32, filter_size=64, act=True,
    ).train()  # fmt: skip

    def loss(called: Any, number: int) -> Tensor:
        told, asked, answer = story(number)
        guess, _, (remainders, updates) = called(told, asked)
        return F.cross_entropy(guess, answer) + 1e-3 * (remainders + updates).mean().item()

    def by_hand() -> dict[str | None, list[Tensor]]:
        return {None: returned(model.transformer_enc.enc)}

    told, asked, _ = story(0)
    return Training(model, loss, call={"story": told, "query": asked}, by_hand=by_hand)


def make_slowrun(checkout: Path) -> Training:
    """Its model is the first part of a training script, which reads the command line; a mark behind every layer."""
    stand_in("tiktoken")
    path = checkout / "research" / "universal_transformer" / "train.py"
    kept = "            x = x_in + keep * (x - x_in)\n        return x\n"
    changes = {
        "import wandb\n": "import loopscope\n",
        kept: kept.replace("return x", 'return loopscope.mark(x, "x")'),
    }
    words, sys.argv = sys.argv, ["train.py", "--n_head", "2", "--n_embd", "64"]
    try:
        with TemporaryDirectory() as folder:
            model_only = Path(folder) / path.name
            model_only.write_text(
                path.read_text(encoding="utf-8").partition("# Optimizer: MuonAdamW")[0], encoding="utf-8"
            )
            code = edited("slowrun_universal", model_only, changes)
    finally:
        sys.argv = words
    code.flash_attn.flash_attn_func = flash_attn_func
    code.print0 = lambda *_, **__: None
    config = code.GPTConfig(
        sequence_len=32, vocab_size=64, n_layer=8, initial_n_layer=8, n_head=2, n_kv_head=2, n_embd=64, dropout=0.1,
        use_iha=True,
    )  # fmt: skip
    model = code.GPT(config)
    model.init_weights()

    def loss(called: Any, number: int) -> Tensor:
        return called(*pair(number))

    def by_hand() -> dict[str | None, list[Tensor]]:
        states: list[Tensor] = []
        layer = model._run_layer

        def noted(*given: Any) -> Tensor:
            out = layer(*given)
            states.append(out.detach().clone())
            return out

        model._run_layer = noted
        return {None: states}

    return Training(model.train(), loss, call=pair(0, 2)[0], by_hand=by_hand)


def make_record(checkout: Path, *, since: int) -> Training:
    """Blocks 4 and 5 are run three times, from a step of the training on: in the record, from its half on."""
    stand_in("sentencepiece", SentencePieceProcessor=None)
    stand_in("flash_attn_interface", flash_attn_func=flash_attn_func)
    code = edited("parameter_golf", checkout / RECORD, {})
    sizes = code.Hyperparameters()
    small = {"vocab_size": 64, "model_dim": 32, "embedding_dim": 32, "num_heads": 2, "num_kv_heads": 2, "rope_dims": 8}
    for name, value in small.items():
        setattr(sizes, name, value)
    model = code.GPT(sizes).train()
    model.looping_active = since == 0

    def loss(called: Any, number: int) -> Tensor:
        model.looping_active = number >= since
        return called(*pair(number))

    def by_hand() -> dict[str | None, list[Tensor]]:
        return {None: returned(model.blocks[sizes.loop_end])}

    given, targets = pair(0, 2)
    return Training(model, loss, call={"input_ids": given, "target_ids": targets}, by_hand=by_hand)


MODELS = [
    Published("Universal Transformer with ACT", "andreamad8/Universal-Transformer-Pytorch", "e6b0637", make_act),
    Published("slowrun, universal transformer", "qlabs-eng/slowrun", "fd342f0", make_slowrun),
    Published(
        "parameter-golf, record 2026-04-05 `Loop45x2`",
        "openai/parameter-golf",
        "4908dc4",
        partial(make_record, since=0),
    ),
    Published(
        "parameter-golf, the same, looped since step 5",
        "openai/parameter-golf",
        "4908dc4",
        partial(make_record, since=5),
    ),
]
