"""The ``loopscope`` command.

Every import of ours happens inside a command, so that ``--help`` and ``check`` start at once and never load torch.
Errors are one line on stderr that says what was wrong and what to do; ``--debug`` shows the traceback.

Exit codes: 0 passed · 1 a rule fired · 2 usage · 3 internal error · 4 unreadable run · 5 something was not judged.
"""

# Without `from __future__ import annotations`: typer would compile every annotation of every command anew.

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

app = typer.Typer(
    name="loopscope",
    help="Stability analysis and diagnostics for looped language models.",
    epilog="Start with: loopscope demo",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

USAGE, INTERNAL, UNREADABLE, INTERRUPTED, CLOSED_PIPE = 2, 3, 4, 130, 141

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run file.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto for the first GPU where there is one.")]


Injection = Literal["addition", "concatenation", "parcae"]
Norm = Literal["pre", "sandwich"]
Measure = Literal["watch", "inspect", "study"]
Severity = Literal["note", "warning", "error"]
Format = Literal["text", "json", "markdown", "github", "junit", "sarif", "gitlab"]
Table = Literal["steps", "loops", "probe", "spectra", "events"]


def _version(wanted: bool) -> None:
    """Print the version and exit."""
    if wanted:
        from . import __version__
        from .commands.output import say

        say(__version__)
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take the options of all commands; `main` looks for --debug wherever it stands."""


@app.command(epilog="Example: loopscope demo --no-serve")
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


@app.command(
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


@app.command(
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


@app.command(epilog="Example: loopscope dash runs/")
def dash(
    paths: Annotated[list[Path] | None, typer.Argument(metavar="PATH", help="Run files, or folders of them.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; anything but 127.0.0.1 lets others in who have the printed link.")
    ] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Default: the first free one from 8050.")] = None,
    example: Annotated[
        bool, typer.Option("--example", help="Show the recorded runs that ship with loopscope.")
    ] = False,
) -> None:
    """Show runs in the browser, live or finished.

    New files in the folders appear by themselves; nothing outside the paths given here is served.
    """
    from .commands.dash import dash as dash_command

    dash_command(paths or [], host=host, port=port, example=example)


@app.command(epilog="Example: loopscope report runs/a.h5 -o a.html")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run files, or folders of them, as a sweep's.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The HTML file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the file where there is one.")] = False,
) -> None:
    """Write one self-contained HTML file about runs, to attach to a pull request or a paper.

    For one run everything that explains its verdict, for several a comparison, and the map of a sweep with its
    boundary. It needs no network and no server.
    """
    from .commands.report import write_report

    typer.echo(write_report(runs, out, force=force))


@app.command(
    epilog="Exit codes: 0 passed, 1 a rule at or above --fail-on fired, 2 usage or rule-file error, 3 internal error, "
    "4 unreadable or damaged run, 5 something that should have been judged was not. Example: "
    "loopscope check runs/*.h5 --format json · loopscope check runs/ --baseline baseline.json · "
    "loopscope check runs/a.h5 --replay · loopscope check a.h5 b.h5 c.h5 --compare · "
    "loopscope check out/trainer_state.json"
)
def check(
    context: typer.Context,
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Run files, folders of them, patterns; or logs of other tools: trainer_state.json, TensorBoard, CSV, "
            "JSONL, W&B offline. Those are judged by their loss only.",
        ),
    ],
    rules: Annotated[Path | None, typer.Option(help="TOML file that changes or adds rules.")] = None,
    fail_on: Annotated[Severity, typer.Option(help="Least severity that fails.")] = "error",
    output: Annotated[
        Format | None,
        typer.Option("--format", help="What is printed; default: text, or github in a job of GitHub Actions."),
    ] = None,
    report: Annotated[
        list[str] | None,
        typer.Option(metavar="[FORMAT:]FILE", help="Write a report too; may be given several times."),
    ] = None,
    exit_zero: Annotated[bool, typer.Option("--exit-zero", help="Exit with 0 whatever was found.")] = False,
    min_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steps a run must have; an interrupted run that has them may pass."),
    ] = None,
    at_step: Annotated[
        int | None, typer.Option(min=0, help="Judge every run as if it had ended after this step.")
    ] = None,
    replay: Annotated[
        bool, typer.Option("--replay", help="Tell when each rule would have fired, how long before the loss.")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Tell which of the runs is the odd one, and in what.")
    ] = False,
    baseline: Annotated[Path | None, typer.Option(help="Committed JSON to compare the runs with.")] = None,
    update_baseline: Annotated[
        bool, typer.Option("--update-baseline", help="Learn --baseline from these runs, where all of them pass.")
    ] = False,
) -> None:
    """Apply the rules to runs: the gate of a CI job."""
    from .commands.check import Asked
    from .commands.check import check as check_command

    code = check_command(
        runs,
        rules=rules,
        fail_on=fail_on,
        output=output,
        reports=report or (),
        min_steps=min_steps,
        debug=bool(context.obj and context.obj["debug"]),
        asked=Asked(at_step, replay, compare, baseline, update_baseline),
    )
    raise typer.Exit(0 if exit_zero else code)


@app.command(epilog="Exit codes: 0 something can be judged, 5 nothing can. Example: loopscope doctor out/ --json")
def doctor(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that your training writes to.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what there is to judge in a folder, what cannot be judged, and what would change that.

    Looks for run files, for logs of other tools, and for training scripts; runs and imports nothing.
    """
    from .commands.doctor import doctor as body

    raise typer.Exit(body(folder, as_json=as_json))


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="Exit codes: as check; 5 too where the command fails or trains no loop. LOOPSCOPE_MODEL=module:object names "
    "the model where the first looped one is not meant. "
    "Example: loopscope smoke --steps 200 -- python train.py --lr 1e-3 · "
    "loopscope smoke -- torchrun --nproc-per-node 2 train.py",
)
def smoke(
    command: Annotated[list[str], typer.Argument(metavar="-- CMD...", help="Your training, as you run it.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps after which it is stopped.")] = 200,
    out: Annotated[Path, typer.Option(help="The run file; that of an earlier smoke training is replaced.")] = Path(
        "runs/smoke.h5"
    ),
    rules: Annotated[Path | None, typer.Option(help="TOML file that changes or adds rules.")] = None,
    fail_on: Annotated[Severity, typer.Option(help="Least severity that fails.")] = "error",
    output: Annotated[Format | None, typer.Option("--format", help="What is printed; default: as check.")] = None,
    timeout: Annotated[float | None, typer.Option(min=1, help="Seconds after which the command is stopped.")] = None,
) -> None:
    """Run your own training for some steps with a probe attached, then check it. No line of it is changed."""
    from .commands.smoke import smoke as body

    code = body(command, steps=steps, out=out, rules=rules, fail_on=fail_on, output=output, timeout=timeout)
    raise typer.Exit(code)


@app.command(
    epilog="Exit codes: 0 passed, 1 a check at or above --fail-on warned, 2 usage, 5 no loop was found or no check "
    "could look. Example: loopscope lint run.toml · loopscope lint my_project.models:build --lr 1e-3"
)
def lint(
    target: Annotated[
        str,
        typer.Argument(metavar="CONFIG|MODULE:FACTORY", help="A TOML file of a run, or what builds a model."),
    ],
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; default: the configuration's.")] = None,
    loops: Annotated[int | None, typer.Option(min=1, help="Loops at test time.")] = None,
    fail_on: Annotated[Severity, typer.Option(help="Least severity that fails.")] = "error",
    output: Annotated[Literal["text", "json"], typer.Option("--format", help="What is printed.")] = "text",
) -> None:
    """Say what is known to go wrong with a loop like this, before any training."""
    from .commands.lint import lint as body

    raise typer.Exit(body(target, lr=lr, loops=loops, fail_on=fail_on, output=output))


@app.command(
    epilog="Sends notifications through apprise where LOOPSCOPE_NOTIFY holds the URLs of services. "
    "Example: loopscope watch runs/ --until-finished"
)
def watch(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Run files, or folders of them.")],
    rules: Annotated[Path | None, typer.Option(help="TOML file that changes or adds rules.")] = None,
    fail_on: Annotated[Severity, typer.Option(help="Least severity that fails.")] = "error",
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks at a run.")] = 2.0,
    until_finished: Annotated[
        bool, typer.Option("--until-finished", help="End when no run is live any more, with check's exit code.")
    ] = False,
) -> None:
    """Follow live runs in the terminal and raise alerts.

    Runs from any process or node that sees the files. Piped output is one plain line for each change.
    """
    from .commands.watch import watch as body

    code = body(paths, rules=rules, fail_on=fail_on, interval=interval, until_finished=until_finished)
    raise typer.Exit(code)


@app.command(
    epilog="Exit codes of a test: 0 none fired, 1 one did, 2 usage or rule-file error, 4 unreadable run, 5 no data. "
    "Example: loopscope rules test loopscope.toml runs/"
)
def rules(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID | test FILE RUN... | validate FILE...]", help="What to do; default: list them."),
    ] = None,
    rules: Annotated[
        Path | None, typer.Option(help="TOML file that changes or adds rules; default: the project's.")
    ] = None,
    fail_on: Annotated[Severity, typer.Option(help="Least severity that fails a test.")] = "error",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the rules, explain one, or try a rule file on runs.

    Without --rules, those of loopscope.toml or of [tool.loopscope] in pyproject.toml are used, found from the working
    directory up.
    """
    from .commands.rules import rules as rules_command

    raise typer.Exit(rules_command(words or [], file=rules, fail_on=fail_on, as_json=as_json))


@app.command(epilog="Example: loopscope describe my_project.models:build_model")
def describe(
    factory: Annotated[
        str, typer.Argument(metavar="MODULE:FACTORY", help="A function without arguments that returns the model.")
    ],
) -> None:
    """Find the loop of a model of your own, and say what was found.

    Imports the module from where you are, builds the model and runs it once or twice on random tokens.
    """
    from .commands.describe import describe as describe_command

    raise typer.Exit(describe_command(factory))


@app.command(epilog="Example: loopscope linearize runs/a.checkpoint --loops 32 --json")
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


@app.command(epilog="Example: loopscope depth runs/a.h5 --depths 1,2,4,8,16,32")
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


@app.command(epilog="Example: loopscope rounding runs/a.h5 --formats bf16,int8,int6 --depths 1,4,16,32")
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


@app.command(epilog="Example: loopscope explain runs/a.h5 --at 120")
def explain(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run of loopscope train.")],
    at: Annotated[int | None, typer.Option(help="Step of the alert; default: the first error, or warning.")] = None,
    after: Annotated[int, typer.Option(min=0, help="Steps that are run after it.")] = 80,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for the replays; default: beside the run.")
    ] = None,
    rules: Annotated[Path | None, typer.Option(help="TOML file that changes or adds rules.")] = None,
    device: Device = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Find the cause of an alert by experiment.

    Runs the steps around it again, unchanged first and then with one thing changed at a time: A_bar held, the rate
    halved, the batches replaced, other norms. The cause is the one change that takes everything away.
    """
    from .commands import explain as body

    body.explain(run, at=at, after=after, out=out, rules=rules, device=device, as_json=as_json)


@app.command(epilog="Example: loopscope tokenize my-text/ -o corpora/mine --vocab-size 32768")
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


@app.command(epilog="Example: loopscope export runs/a.h5 -o a.csv")
def export(
    run: RunPath,
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write; its ending chooses: .csv, .parquet, .json.")],
    table: Annotated[Table | None, typer.Option(help="Table of a CSV or Parquet file; default: steps.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file where there is one.")] = False,
) -> None:
    """Write a run as a table for other programs.

    CSV and Parquet hold one table: steps (one row per step) or one of the tidy ones; JSON holds everything.
    """
    from .commands import tables

    tables.export(run, out, table=table, force=force)


@app.command(epilog="Example: loopscope repair runs/a.h5")
def repair(run: RunPath) -> None:
    """Make a damaged run file whole again.

    A kill or a full disk can leave a file that other HDF5 programs refuse; every committed row of it is kept.
    """
    from .commands import tables

    tables.repair(run)


@app.command(epilog="Exit codes: 0 nothing changed, 1 something did. Example: loopscope selfcheck --compile body")
def selfcheck(
    preset: Annotated[str, typer.Option(help="Model preset.")] = "demo",
    device: Device = "auto",
    compile_what: Annotated[
        Literal["none", "body", "whole"], typer.Option("--compile", help="What is compiled.")
    ] = "none",
    checkpointing: Annotated[
        Literal["none", "reentrant", "non-reentrant"], typer.Option(help="Activation checkpointing.")
    ] = "none",
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="bf16 is autocast.")] = "fp32",
    batch: Annotated[int, typer.Option(min=1, help="Sequences in a batch.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check on this machine that a probe changes nothing in training.

    Trains the same few steps with and without; for your own model call loopscope.probes.selfcheck.selfcheck.
    """
    from .commands.selfcheck import selfcheck as selfcheck_command

    code = selfcheck_command(
        preset,
        device=device,
        compile_what=compile_what,
        checkpointing=checkpointing,
        precision=precision,
        batch=batch,
        as_json=as_json,
    )
    raise typer.Exit(code)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and turn every error into one line and its exit code."""
    from .commands.output import accept_any_text, complain, show_traceback

    accept_any_text()
    words = list(sys.argv[1:] if arguments is None else arguments)
    end = words.index("--") if "--" in words else len(words)
    debug = "--debug" in words[:end]
    words = [word for word in words[:end] if word != "--debug"] + words[end:]
    try:
        result: Any = app(words, standalone_mode=False, obj={"debug": debug})
    except KeyboardInterrupt:
        complain("interrupted")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; nothing is left to say
        sys.exit(CLOSED_PIPE)
    except Exception as error:
        if debug:
            show_traceback(error)
        message, code = _explain(error)
        complain(message)
        sys.exit(code)
    sys.exit(result if isinstance(result, int) else 0)


def _explain(error: Exception) -> tuple[str, int]:
    """Return one line for an error, and its exit code."""
    text = " ".join(str(getattr(error, "format_message", lambda: error)()).split())
    name = type(error).__name__
    if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # a usage error of the command line parser
        context = getattr(error, "ctx", None)
        return f"{text} Try: {context.command_path if context else 'loopscope'} --help", USAGE
    if name == "Abort":
        return "interrupted", INTERRUPTED
    if any(base.__name__ == "RunFileError" for base in type(error).__mro__):
        return text, UNREADABLE
    if isinstance(error, ModuleNotFoundError):
        return f"{text}: this command needs it, install it with pip", USAGE
    if isinstance(error, ValueError | OSError):
        return text, USAGE
    return f"internal error: {name}: {text} (run again with --debug for the traceback)", INTERNAL


if __name__ == "__main__":
    main()
