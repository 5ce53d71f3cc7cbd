"""What all commands print with: one JSON document or text on stdout."""

import json
from pathlib import Path
from typing import Any

import click

from neurotally.analysis.result import finite
from neurotally.profiler.visible import visible
from neurotally.profiler.whole_files import write_whole


def show(document: Any, text: str, as_json: bool, out: Path | None = None) -> None:
    """Print a document as JSON or as text; `out` gets the JSON. Names and texts in it can't command the terminal."""
    as_text = json.dumps(finite(document), allow_nan=False)
    if out is not None:
        write_whole(out, as_text + "\n")
    click.echo(as_text if as_json else visible(text))
