"""What all commands print with: one JSON document or text on stdout, and pictures to files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from neurotally.analysis.result import Result, finite
from neurotally.profiler.visible import visible
from neurotally.profiler.whole_files import write_whole


def show(document: Any, text: str, as_json: bool, out: Path | None = None) -> None:
    """Print a document as JSON or as text; `out` gets the JSON. Names and texts in it can't command the terminal."""
    as_text = json.dumps(finite(document), allow_nan=False)
    if out is not None:
        write_whole(out, as_text + "\n")
    click.echo(as_text if as_json else visible(text))


def finish(
    result: Result,
    as_json: bool,
    out: Path | None,
    full: bool = False,
    figures: Mapping[str | None, Path | None] = {},
) -> None:
    """The end of every study's command: its warnings, its figures by name (None: the first), its document or text."""
    for warning in result.warnings:
        click.echo(visible(f"warning: {warning}"), err=True)
    for name, path in figures.items():
        if path is not None:
            from neurotally.analysis.render.charts import save_figure

            save_figure(result.figure(name), path)
    show(result.document, "" if as_json else result.text(full), as_json, out)
