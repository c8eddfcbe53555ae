"""The command line: one small file a command; a command imports its stage when it is called.

Exit codes: 0 done, 1 failed or refused, 2 wrong usage. Data goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import os
import sys

import typer

import guardlearn
from guardlearn.cli import (
    ablate,
    adapters,
    amend,
    audit,
    backup,
    collect,
    compare,
    demo,
    doctor,
    evaluate,
    export,
    extract,
    impact,
    import_log,
    init,
    loop,
    redact,
    report,
    run,
    show,
    stats,
    train,
    ui,
    upgrade,
    verify,
    why,
)
from guardlearn.errors import GuardlearnError, write_failure

__all__ = ["app", "main"]

app = typer.Typer(
    name="guardlearn",
    help="Turn the retries of guard-checked LLM generation into a model that passes first time, and prove it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # else the name of a TOML table, as in [loop], is taken for markup and not shown
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("demo")(demo.command)
app.command("init")(init.command)
app.command("doctor")(doctor.command)
app.command("collect")(collect.command)
app.command("amend")(amend.command)
app.command("audit")(audit.command)
app.command("import")(import_log.command)
app.command("stats")(stats.command)
app.command("show")(show.command)
app.command("ui")(ui.command)
app.command("verify")(verify.command)
app.command("backup")(backup.command)
app.command("upgrade")(upgrade.command)
app.command("redact")(redact.command)
app.command("extract")(extract.command)
app.command("train")(train.command)
app.command("evaluate")(evaluate.command)
app.command("compare")(compare.command)
app.command("report")(report.command)
app.command("run")(run.command)
app.command("loop")(loop.command)
app.command("ablate")(ablate.command)
app.add_typer(adapters.app, name="adapters")
app.command("why")(why.command)
app.command("impact")(impact.command)
app.command("export")(export.command)


def _version(value: bool) -> None:
    if value:
        print(guardlearn.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Turn the retries of guard-checked LLM generation into a model that passes first time, and prove it."""


def main() -> None:
    """Run the command line; an expected error is one line on stderr, without a traceback."""
    try:
        app()
    except GuardlearnError as error:
        print(f"guardlearn: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("guardlearn: stopped; the same command continues", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        _stop_writing(error)
        sys.exit(1)


def _stop_writing(error: OSError) -> None:
    """End where nothing more can be written: the reader of stdout (head, less) has gone, or a disk is full."""
    reason = write_failure(error)
    if reason is not None:
        what = f"{error.filename} cannot be written" if error.filename else "cannot write"
        print(f"guardlearn: {what} ({reason}); make room, then run the same command again", file=sys.stderr)
    elif not isinstance(error, BrokenPipeError):
        raise error
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what waits in its buffer would fail at exit too


if __name__ == "__main__":
    main()
