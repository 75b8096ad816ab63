"""The ``loopscope`` command.

Every import of ours happens inside a command, so that ``--help`` and ``check`` start at once and never load torch.
Errors are one line on stderr that says what was wrong and what to do; ``--debug`` shows the traceback.

Exit codes: 0 passed · 1 a rule fired · 2 usage · 3 internal error · 4 unreadable run · 5 nothing to evaluate.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

app = typer.Typer(
    name="loopscope",
    help="Stability analysis and diagnostics for looped language models.",
    epilog="Start with: loopscope demo",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

USAGE, INTERNAL, UNREADABLE = 2, 3, 4

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run file.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto for the first GPU where there is one.")]


Injection = Literal["addition", "concatenation", "parcae"]
Norm = Literal["pre", "sandwich"]
Measure = Literal["watch", "inspect", "study"]
Severity = Literal["note", "warning", "error"]
Format = Literal["text", "json", "markdown", "github", "junit", "sarif", "gitlab"]
Table = Literal["steps", "loops", "probe", "spectra", "events"]


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from . import __version__

        typer.echo(__version__)
        raise typer.Exit


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
        _serve([out], host="127.0.0.1", port=port)


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
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints; default: 50.")] = None,
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
) -> None:
    """Train one looped model with probes on.

    Ctrl-C saves a checkpoint and seals the run file; --resume goes on from there, also after a kill.
    """
    from .commands.progress import step_progress
    from .commands.training import train_run
    from .models.run_config import RunConfig, load_run_config

    run = load_run_config(config) if config is not None else RunConfig(train={"checkpoint_every": 50})
    run = run.updated(
        **_given(preset=preset, seed=seed),
        model=_given(injection=injection, norm=norm),
        train=_given(lr=lr, steps=steps, checkpoint_every=checkpoint_every),
    )
    total = run.train_config().steps
    with step_progress(total) as report:
        result = train_run(
            out,
            run,
            device=device,
            resume=resume,
            overwrite=overwrite,
            probes=probes,
            measure=measure,
            rules=rules,
            on_progress=report,
        )
    if int(os.environ.get("RANK", "0")) > 0:  # under torchrun the first rank speaks for all
        return
    if result.interrupted:
        typer.echo(f"interrupted after step {result.step} of {total}; go on with the same command and --resume")
        raise typer.Exit(130)
    typer.echo(f"{result.step} steps, loss {result.loss:.3f}, {result.tokens} tokens in {result.seconds:.0f} s")
    if probes:
        from .gate.check import check_runs
        from .gate.text import as_text

        typer.echo(as_text(check_runs([out], rules_file=rules)))


@app.command(epilog="Example: loopscope dash runs/")
def dash(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Run files, or folders of them.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; anything but 127.0.0.1 lets others in who have the printed link.")
    ] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Default: the first free one from 8050.")] = None,
) -> None:
    """Show runs in the browser, live or finished.

    New files in the folders appear by themselves; nothing outside the paths given here is served.
    """
    _serve(paths, host=host, port=port)


@app.command(
    epilog="Exit codes: 0 passed, 1 a rule at or above --fail-on fired, 2 usage or rule-file error, 3 internal error, "
    "4 unreadable or damaged run, 5 something that should have been judged was not. "
    "Example: loopscope check runs/*.h5 --format json"
)
def check(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run files.")],
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
) -> None:
    """Apply the rules to runs: the gate of a CI job."""
    from .gate.check import check_runs
    from .gate.formats import default_format, render, write_reports
    from .gate.github import publish

    result = check_runs(runs, rules_file=rules, fail_on=fail_on, min_steps=min_steps)
    chosen = output or default_format(os.environ)
    written = write_reports(result, report or [])
    typer.echo(render(result, chosen))
    if chosen == "github":
        publish(result, os.environ, written[0] if written else None)
    raise typer.Exit(0 if exit_zero else result.exit_code)


@app.command(
    epilog="People are told through apprise where LOOPSCOPE_NOTIFY holds the URLs of services. "
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


@app.command(epilog="Example: loopscope describe my_project.models:build_model")
def describe(
    factory: Annotated[
        str, typer.Argument(metavar="MODULE:FACTORY", help="A function without arguments that returns the model.")
    ],
) -> None:
    """Find the loop of a model of your own, and say what was found.

    Imports the module from where you are, builds the model and runs it once or twice on random tokens.
    """
    import importlib

    from .loops.description import describe as describe_model

    module, _, name = factory.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        build = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise typer.BadParameter(f"{factory}: {error}; expected MODULE:FACTORY, as my_project.models:build") from None
    found = describe_model(build())
    typer.echo(str(found))
    if found.site is None:
        raise typer.Exit(1)


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
    from .commands.checkpoints import linearize_checkpoint
    from .commands.progress import part_progress

    with part_progress() as report:
        found = linearize_checkpoint(
            checkpoint,
            num_loops=loops,
            text=text,
            shape=(sequences, positions),
            budget=budget,
            device=device,
            progress=report,
        )
    typer.echo(found.to_json() if as_json else found.verdict)
    if not as_json:
        for part, reason in found.skipped.items():
            typer.echo(f"left out: {part}: {reason}")


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
    import json

    from .commands.checkpoints import depth_curve

    try:
        chosen = [int(word) for word in depths.split(",") if word.strip()]
    except ValueError:
        raise typer.BadParameter(f"--depths {depths}: expected whole numbers with commas, as 1,2,4,8") from None
    curve = depth_curve(checkpoint, chosen, batches=batches, device=device)
    typer.echo(json.dumps(curve.as_dict(), indent=2) if as_json else curve.text())


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
    import json

    from .models.packed import tokenize as write_tokens

    folder = write_tokens(source, out, vocab_size=vocab_size, tokenizer=tokenizer, max_tokens=max_tokens)
    said = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    typer.echo(f"{folder}: {said['documents']} documents, {said['tokens']} tokens, vocabulary {said['vocab_size']}")


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
    from .runfile.export import export as export_run
    from .runfile.open import open_run

    if out.exists() and not force:
        raise FileExistsError(f"{out}: exists; replace it with --force")
    with open_run(run) as opened:
        export_run(opened, out, table=table, force=force)
        typer.echo(f"{out}: {len(opened)} steps")


@app.command(epilog="Example: loopscope repair runs/a.h5")
def repair(run: RunPath) -> None:
    """Make a damaged run file whole again.

    A kill or a full disk can leave a file that other HDF5 programs refuse; every committed row of it is kept.
    """
    from .runfile.disk.repair import repair as repair_run

    report = repair_run(run, in_place=True)
    for action in report.actions:
        typer.echo(action)
    kept = f"; the file as it was is {report.backup}" if report.backup else ""
    typer.echo(f"{report.path}: was {report.found}, holds {report.rows} rows, lost {report.rows_lost}{kept}")


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
    import json

    import torch

    from .commands.training import checked_device
    from .models import build
    from .models.presets import preset as build_config
    from .probes.selfcheck import selfcheck as check_training

    where = checked_device(device)
    kind = torch.device("cuda" if where == "auto" and torch.cuda.is_available() else where.replace("auto", "cpu"))

    def make_model() -> Any:
        model = build(preset, activation_checkpointing=checkpointing).to(kind)
        if compile_what == "body":
            model.compile_loop()
        return torch.compile(model) if compile_what == "whole" else model

    config = build_config(preset)
    length = min(config.max_length, 256)
    # A whole-model graph holds one depth; drawing one per step would compile until Dynamo gives up, probe or not.
    depth = {"num_loops": config.mean_depth} if compile_what == "whole" else {}

    def make_batch(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(step)
        return torch.randint(config.vocab_size, (batch, length + 1), generator=generator).to(kind)

    def loss(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        with torch.autocast(kind.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = model(tokens[:, :-1], **depth)
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    found = check_training(make_model, make_batch, loss, tolerance=2e-2 if precision == "bf16" else 1e-3)
    typer.echo(json.dumps(found.as_dict(), indent=2) if as_json else found.text())
    raise typer.Exit(0 if found.passed else 1)


def _given(**flags: Any) -> dict[str, Any]:
    """The flags that were given."""
    return {name: value for name, value in flags.items() if value is not None}


def _serve(paths: list[Path], *, host: str, port: int | None) -> None:
    """Serves the dashboard until Ctrl-C and says where."""
    from .dashboard.app import serve

    def ready(address: str) -> None:
        typer.echo(f"dashboard at {address}  (Ctrl-C ends it)")
        if host not in ("127.0.0.1", "localhost", "::1"):
            typer.echo(f"loopscope: listening on {host}: whoever has this link can read these runs", err=True)

    serve(paths, host=host, port=port, on_ready=ready)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command and turns every error into one line and its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result: Any = app(words, standalone_mode=False)
    except KeyboardInterrupt:
        _exit("interrupted", 130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; nothing is left to say
        sys.exit(141)
    except Exception as error:
        if "--debug" in words:
            raise
        _exit(*_explain(error))
    sys.exit(result if isinstance(result, int) else 0)


def _explain(error: Exception) -> tuple[str, int]:
    """One line for an error, and its exit code."""
    text = " ".join(str(getattr(error, "format_message", lambda: error)()).split())
    name = type(error).__name__
    if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # a usage error of the command line parser
        context = getattr(error, "ctx", None)
        return f"{text} Try: {context.command_path if context else 'loopscope'} --help", USAGE
    if name == "Abort":
        return "interrupted", 130
    if any(base.__name__ == "RunFileError" for base in type(error).__mro__):
        return text, UNREADABLE
    if isinstance(error, ValueError | OSError | ModuleNotFoundError):
        return text, USAGE
    return f"internal error: {name}: {text} (run again with --debug for the traceback)", INTERNAL


def _exit(message: str, code: int) -> None:
    print(f"loopscope: {message}", file=sys.stderr)  # noqa: T201 - the one place that reports errors
    sys.exit(code)


if __name__ == "__main__":
    main()
