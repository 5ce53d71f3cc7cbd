"""The command line: a thin layer over functions that can do all that the commands do.

Results on stdout, progress on stderr. Exit 0 done, 2 the user's input or disk, 1 the job failed, 130 and 143
interrupted; every error is one line. Each command imports what it needs when it runs.
"""

import atexit
import errno
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from neurotally.jobs.commands.options import COUNT, JSON_FLAG, OUT, OUTPUT, PATH, STORE, by_name
from neurotally.jobs.commands.results import WithResults, show
from neurotally.jobs.interrupts import Interrupted, stopping_at_signals
from neurotally.jobs.starting import import_pytorch
from neurotally.profiler.errors import InputError
from neurotally.profiler.visible import visible


@click.group(cls=WithResults, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="neurotally")
def cli() -> None:
    """What the feed-forward neurons of code language models do.

    \b
    Try it:    neurotally demo
    Your own:  neurotally profile MODEL my.store --corpora sources/
               neurotally lape my.store
    """


@cli.command(short_help="Everything end to end, on this machine's own code")
@click.argument("folder", type=PATH, metavar="[DIR]", default="neurotally-demo")
@click.option("--workers", type=COUNT, default=2, show_default=True, help="Ray actors that profile.")
@JSON_FLAG
def demo(folder: Path, workers: int, as_json: bool) -> None:
    """Everything end to end, on this machine's own source code, in some minutes. DIR: neurotally-demo.

    Gathers a corpus, trains a small model on it, profiles its neurons, finds each language's neurons, switches
    them off and draws what that costs.

    \b
    Example:
      neurotally demo
    """
    import_pytorch()
    from neurotally.jobs.demo.run import demo as run_demo
    from neurotally.jobs.progress import Progress

    show(*run_demo(folder, workers, Progress()), as_json)


@cli.command(short_help="How far a store is")
@STORE
@JSON_FLAG
def status(store: Path, as_json: bool) -> None:
    """How far a store is, also while a run goes on.

    \b
    Example:
      neurotally status llama.store --json
    """
    from neurotally.jobs import status as statuses

    document = statuses.status(store)
    show(document, statuses.status_text(document), as_json)


@cli.command(name="import", short_help="A store of published counts")
@STORE
@click.argument("files", nargs=-1, required=True, callback=by_name, metavar="NAME=FILE...")
def import_(store: Path, files: dict[str, str]) -> None:
    """Make a store of published counts: torch files with {"n": int, "over_zero": int [layers, neurons]}.

    \b
    Example:
      neurotally import published.store en=activation.en.train.llama-7b zh=activation.zh.train.llama-7b
    """
    from neurotally.jobs.import_counts import import_counts

    for name, (tokens, layers, neurons) in import_counts(store, files).items():
        click.echo(f"{visible(name)}: {tokens:,} tokens, {layers} layers x {neurons} neurons")


@cli.command(short_help="What the statistics cost in time")
@click.argument("model", required=False)
@click.option(
    "--shape", metavar="NAME|FILE", help="A known shape such as llama-3.1-8b, or a config.json; random weights."
)
@click.option("--layers", type=COUNT, help="Cut the shape to so many layers.")
@click.option("--rows", type=COUNT, help="Default: 8 on the CPU, 16 on a GPU.")
@click.option("--row-tokens", type=COUNT, help="Default: 512 on the CPU, 2048 on a GPU.")
@click.option("--dtype", type=click.Choice(["bfloat16", "float16", "float32"]), default="bfloat16", show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--rounds", type=click.IntRange(min=2), default=30, show_default=True,
              help="Every variant once in each, in shuffled order.")  # fmt: skip
@click.option("--fused", is_flag=True, help="With `profile --fused` beside it; loads the model twice.")
@click.option("--csv", "csv_file", type=OUTPUT, metavar="FILE", help="Add a row per variant to a table.")
@OUT
@JSON_FLAG
def bench(csv_file: Path | None, out: Path | None, as_json: bool, **what: Any) -> None:
    """Measure what the statistics cost, as a ratio to the same model's bare forward pass.

    \b
    Example:
      neurotally bench --shape llama-34m
    """
    import_pytorch()
    from neurotally.jobs.bench.measure import append_csv, bench_table
    from neurotally.jobs.bench.measure import bench as measure

    document = measure(**what, on_terminal=sys.stderr.isatty())
    if csv_file is not None:
        append_csv(document, csv_file)
    show(document, bench_table(document), as_json, out)


def main() -> None:
    """The `neurotally` command."""
    status = 1

    def leave() -> None:
        """Without taking PyTorch's and transformers' objects down one by one, which takes a second."""
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(status)

    atexit.register(leave)  # first, so that it comes after all that others want done at the end
    status = _main(sys.argv[1:])
    for number in (signal.SIGINT, signal.SIGTERM):  # too late to stop anything: it ends as it did
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status)


@stopping_at_signals()
def _main(arguments: list[str]) -> int:
    """Run a command; the exit status."""
    try:
        result = cli.main(arguments, prog_name="neurotally", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        return _fail(error.format_message().replace("\n", " "), 2)
    except click.exceptions.Exit as done:
        return done.exit_code
    except InputError as error:
        return _fail(str(error), 2)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted; the same command goes on from the last checkpoint", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(_disk_message(error), 2)
    except Interrupted as error:
        return _fail(str(error), 128 + error.signal_number)
    except SystemError as error:  # what C code makes of a signal that met another error
        if not isinstance(error.__cause__, Interrupted):
            return _fail_job(error)
        return _fail(str(error.__cause__), 128 + error.__cause__.signal_number)
    except Exception as error:
        return _fail_job(error)


def _fail_job(error: Exception) -> int:
    from neurotally.jobs.engines.engine import JobError

    if isinstance(error, JobError):
        return _fail(str(error), 1)
    if os.environ.get("NEUROTALLY_DEBUG"):
        raise error
    return _fail(f"{type(error).__name__}: {error} (set NEUROTALLY_DEBUG=1 for the traceback)", 1)


def _fail(message: str, code: int) -> int:
    print(visible(f"neurotally: {' '.join(message.split())}"), file=sys.stderr)
    return code


def _disk_message(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{where}: make room, then the same command goes on from the last checkpoint"
    return f"{error.strerror or error}{where}"
