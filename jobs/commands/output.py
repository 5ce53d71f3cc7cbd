"""What all commands print with: one JSON document or text on stdout, and pictures to files."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from neurotally.profiler.visible import visible
from neurotally.profiler.whole_files import write_whole


def show(document: Any, text: str, as_json: bool, out: Path | None = None) -> None:
    """Print a document as JSON or as text; `out` gets the JSON. Names and texts in it can't command the terminal."""
    as_text = json.dumps(_finite(document), allow_nan=False)
    if out is not None:
        write_whole(out, as_text + "\n")
    click.echo(as_text if as_json else visible(text))


def _finite(value: Any) -> Any:
    """The same document with null for numbers that JSON can't spell."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def draw(figure: Path | None, draw_document: Callable[[Any], Any], document: Any) -> None:
    """Draw a document to `figure`, if asked for."""
    if figure is not None:
        from neurotally.analysis.figures.charts import save_figure

        save_figure(draw_document(document), figure)
