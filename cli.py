"""The ``loopscope`` command.

Declarations only: here of commands that work on any run, in `cli_training` of those that train or read our checkpoints;
bodies are in `commands/`. A body is imported when its command runs, so that ``--help`` and ``check`` start at once and
never load torch. Errors are one line on stderr: what was wrong and what to do; ``--debug`` shows the traceback.

Exit codes: 0 passed · 1 a rule fired · 2 usage · 3 internal error · 4 unreadable run · 5 something was not judged.
"""

# Without `from __future__ import annotations`: typer would compile every annotation of every command anew.

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .cli_training import Device, demo, depth, linearize, tokenize, train, trained  # noqa: F401 - public here before

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


app.add_typer(trained)


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
