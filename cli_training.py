"""The part of the ``loopscope`` command that trains models and looks at the checkpoints of its training.

Declarations only, as in `cli`, which joins them to its own.
"""

# Without `from __future__ import annotations`, for the reason given in `cli`.

from pathlib import Path
from typing import Annotated, Literal

import typer

trained = typer.Typer(rich_markup_mode=None)

Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto for the first GPU where there is one.")]
Injection = Literal["addition", "concatenation", "parcae"]
Norm = Literal["pre", "sandwich"]
Measure = Literal["watch", "inspect", "study"]


@trained.command(epilog="Example: loopscope demo --no-serve")
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the runs; runs of an earlier demo in it are replaced.")] = Path(
        "runs/demo"
    ),
    serve: Annotated[bool, typer.Option("--serve/--no-serve", help="Open the dashboard at the end.")] = True,
    jobs: Annotated[int, typer.Option(min=1, help="Runs trained at the same time.")] = 2,
    port: Annotated[
        int | None, typer.Option(help="Port of the dashboard; default: the first free one from 8050.")
    ] = None,
) -> None:
    """Train three injections, see which loop is stable.

    Nine small runs on the Python standard library's own source (addition, concatenation and Parcae, three seeds each),
    recorded by probes; the verdicts are read off the recorded runs.
    """
    from .commands.demo import run_demo

    run_demo(out, jobs=jobs)
    if serve:
        from .commands.dash import dash as dash_command

        dash_command([out], port=port)


@trained.command(
    epilog="Example: loopscope train --preset demo --injection concatenation --norm pre --lr 0.05 --steps 200 "
    "--seed 0 --device auto --out runs/a.h5. Several GPUs: torchrun --nproc-per-node 8 -m loopscope.cli train ..."
)
def train(
    out: Annotated[Path, typer.Option(help="The run file to write; the checkpoint goes beside it.")],
    config: Annotated[Path | None, typer.Option(help="TOML file of the run; flags win over it.")] = None,
    preset: Annotated[str | None, typer.Option(help="Model preset; default: demo.")] = None,
    injection: Annotated[Injection | None, typer.Option(help="Default: the preset's.")] = None,
    norm: Annotated[Norm | None, typer.Option(help="Default: the preset's.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; default: the preset's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps in all, over resumes.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, data and depths; default: 0.")] = None,
    device: Device = "auto",
    checkpoint_every: Annotated[int | None, typer.Option(help="Default: as --config says, or every 50.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run of --out where its checkpoint ends.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run of --out.")] = False,
    probes: Annotated[bool, typer.Option("--probes/--no-probes", help="Record the loop.")] = True,
    measure: Annotated[
        Measure,
        typer.Option(
            help="watch: every step, cheap. inspect: also the full loop's Jacobian, every 50 to 400 steps. "
            "study: also blocks, gradients and tokens."
        ),
    ] = "watch",
    rules: Annotated[Path | None, typer.Option(help="TOML file that changes or adds rules.")] = None,
    stop_on: Annotated[
        list[str] | None, typer.Option(help="A rule or a severity that stops the training; may be given several times.")
    ] = None,
) -> None:
    """Train one looped model with probes on.

    Ctrl-C and SIGTERM save a checkpoint and leave a run file that reads as interrupted; --resume goes on from there,
    and after a kill from the last checkpoint. A training that a rule stops ends with exit code 1.
    """
    from .commands.training import TrainFlags, train_and_report

    flags = TrainFlags(preset, seed, injection, norm, lr, steps, checkpoint_every)
    code = train_and_report(
        out,
        flags,
        config=config,
        device=device,
        resume=resume,
        overwrite=overwrite,
        probes=probes,
        measure=measure,
        rules=rules,
        stop_on=stop_on or (),
    )
    raise typer.Exit(code)


@trained.command(
    epilog="The file is that of a run plus a table [grid], as lr = [0.01, 0.05]. "
    "Example: loopscope sweep grid.toml -o runs/sweep --jobs 2"
)
def sweep(
    grid: Annotated[Path, typer.Argument(metavar="GRID.toml", help="The sweep's TOML file.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run files; one file a cell.")],
    engine: Annotated[
        Literal["processes", "ray", "slurm"],
        typer.Option(help="processes of this machine, a Ray cluster, or a job array of Slurm."),
    ] = "processes",
    jobs: Annotated[int, typer.Option(min=0, help="Runs trained at the same time; 0: as many as fit.")] = 0,
    address: Annotated[str, typer.Option(help="Address of the Ray cluster; default: one is started here.")] = "",
    gpus: Annotated[float, typer.Option(min=0.0, help="GPUs of one run, on Ray or Slurm.")] = 0.0,
    device: Device = "cpu",
    measure: Annotated[Measure, typer.Option(help="What the probe measures, as for train.")] = "inspect",
    stop_lost: Annotated[
        bool, typer.Option("--stop-lost", help="End a run early when its risk says that it is lost (rule LS071).")
    ] = False,
    cell: Annotated[int | None, typer.Option(min=0, help="Train this cell alone, as a task of a job array.")] = None,
) -> None:
    """Train a grid of runs with probes on.

    What is done stays done: the same command goes on after Ctrl-C or a kill, and edits nothing that is finished. The
    exit code is 1 where a run failed to train.
    """
    from .commands import sweep as body

    if engine == "slurm" and cell is None:
        script, said = body.write_job_array(
            grid, out, jobs=jobs, gpus=int(gpus), device=device, measure=measure, stop_lost=stop_lost
        )
        typer.echo(f"{script}: {said}")
        return
    chosen = body.chosen_engine("processes" if engine == "slurm" else engine, jobs=jobs, address=address, gpus=gpus)
    board = body.sweep(grid, out, engine=chosen, device=device, measure=measure, stop_lost=stop_lost, only=cell)
    body.print_table(board)
    if failed := body.summary(board):
        typer.echo(failed, err=True)
        raise typer.Exit(1)


@trained.command(epilog="Example: loopscope linearize runs/a.checkpoint --loops 32 --json")
def linearize(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint folder that train wrote, or its run.")
    ],
    loops: Annotated[int, typer.Option(min=1, help="Loops run before the loop is linearised.")] = 16,
    text: Annotated[
        Path | None, typer.Option(help="File whose first bytes are the input; default: held-out text.")
    ] = None,
    positions: Annotated[int, typer.Option(min=1, help="Length of the input in tokens.")] = 32,
    sequences: Annotated[int, typer.Option(min=1, help="Sequences of the input.")] = 1,
    budget: Annotated[float, typer.Option(min=0.0, help="Seconds after which no further part is begun.")] = 150.0,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print every number as one JSON object.")] = False,
) -> None:
    """Say what kind of dynamical system a checkpoint's loop is.

    Spectra of the linear part and of the full loop, Lyapunov exponents, fixed points, safe depth: each number with its
    method and whether it converged; what was left out is named with its reason.
    """
    from .commands import analyses

    shape = (sequences, positions)
    analyses.linearize(checkpoint, loops=loops, text=text, shape=shape, budget=budget, device=device, as_json=as_json)


@trained.command(epilog="Example: loopscope depth runs/a.h5 --depths 1,2,4,8,16,32")
def depth(
    checkpoint: Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="A run, or its checkpoint folder.")],
    depths: Annotated[str, typer.Option(help="Numbers of loops, with commas; default: up to 4 times the mean.")] = "",
    batches: Annotated[int, typer.Option(min=1, help="Held-out batches of 8 sequences.")] = 32,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure held-out loss against test-time depth.

    Fits L(T) = L_inf + Z exp(-z T) and says whether the depths determine it.
    """
    from .commands import analyses

    analyses.depth(checkpoint, depths, batches=batches, device=device, as_json=as_json)


@trained.command(epilog="Example: loopscope rounding runs/a.h5 --formats bf16,int8,int6 --depths 1,4,16,32")
def rounding(
    checkpoint: Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="A run, or its checkpoint folder.")],
    formats: Annotated[
        str, typer.Option(help="Of the weights, with commas: bf16, int8, int6, int4.")
    ] = "bf16,int8,int6",
    depths: Annotated[str, typer.Option(help="Numbers of loops, with commas; default: up to 4 times the mean.")] = "",
    sequences: Annotated[int, typer.Option(min=1, help="Held-out sequences the loss is taken on.")] = 16,
    tolerance: Annotated[float, typer.Option(min=0.0, help="Loss gap in nats that counts as safe.")] = 0.02,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say which number format of the weights is safe at which depth.

    Rounds the weights, and gives the loss gap against test-time depth: predicted from the Jacobians of the loop, and
    measured beside it.
    """
    from .commands import rounding as body

    body.rounding(checkpoint, formats, depths, sequences=sequences, tolerance=tolerance, device=device, as_json=as_json)


@trained.command(epilog="Example: loopscope explain runs/a.h5 --at 120")
def explain(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run of loopscope train.")],
    at: Annotated[int | None, typer.Option(help="Step of the alert; default: the first error or warning.")] = None,
    after: Annotated[int, typer.Option(min=0, help="Steps that are run after it.")] = 80,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for the replays; default: beside the run.")
    ] = None,
    rules: Annotated[Path | None, typer.Option(help="TOML file that changes or adds rules.")] = None,
    device: Device = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Find the cause of an alert by experiment.

    Runs the steps around it again: unchanged first, which must give the recorded numbers bit for bit, then with one
    thing changed at a time: A_bar held, the rate halved, the batches replaced, other norms. The cause is the one change
    that removes all that went wrong. Where there is none, it says "cause not found".

    It needs the text of the run, and begins at a checkpoint at least 200 steps before the alert; where none is left, at
    step 0. A run keeps all of them with keep_checkpoints = 0 in [train]. Expect nine times as long as the run took.
    """
    from .commands import explain as body

    body.explain(run, at=at, after=after, out=out, rules=rules, device=device, as_json=as_json)


@trained.command(epilog="Example: loopscope tokenize my-text/ -o corpora/mine --vocab-size 32768")
def tokenize(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Text, JSONL or parquet files, or a hub data set.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write; give it to train as [data] source.")],
    vocab_size: Annotated[int, typer.Option(min=257, help="Tokens of the tokenizer that is trained.")] = 32768,
    tokenizer: Annotated[Path | None, typer.Option(help="Use this tokenizer file instead of training one.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Stop after so many tokens.")] = None,
) -> None:
    """Turn text into tokens for training.

    Needs the optional packages of loopscope[text].
    """
    from .commands import analyses

    analyses.tokenize(source, out, vocab_size=vocab_size, tokenizer=tokenizer, max_tokens=max_tokens)
