"""Results as text for a terminal: the lead, each table under its title, the notes."""

from typing import TYPE_CHECKING

from neurotally.analysis.parts import Example, Table
from neurotally.analysis.render.numbers import cell_text

if TYPE_CHECKING:
    from neurotally.analysis.result import Result


def result_text(result: "Result", full: bool = False) -> str:
    """The whole result; long tables only if `full`, else their titles."""
    blocks = [result.lead]
    blocks += ["\n".join(result.findings)] if result.findings else []
    blocks += [table_text(table) for table in result.tables if table.rows and (full or not table.is_long)]
    blocks += [_example_text(example) for example in result.examples]
    notes = [*(f"* {warning}" for warning in result.warnings), *result.notes]
    blocks += ["\n".join(notes)] if notes else []
    if not full and (hidden := [table.title for table in result.tables if table.rows and table.is_long]):
        blocks.append("with --full: " + "; ".join(hidden))
    return "\n\n".join(blocks)


def _example_text(example: Example) -> str:
    """Its lines, indented, the token marked."""
    if example.reason:
        return f"{example.place}: no text: {example.reason}"
    token = example.token.replace("\n", "⏎\n")
    lines = f"{example.before}«{token}»{example.after}".removesuffix("\n").split("\n")
    return "\n".join([example.place, *(f"    {line}" for line in lines)])


def table_text(table: Table) -> str:
    """A table in plain columns under its title: text to the left, numbers to the right."""
    from tabulate import tabulate

    rows = [[cell_text(column, cell) for column, cell in zip(table.columns, row, strict=True)] for row in table.rows]
    header = [column.name for column in table.columns]
    sides = ["left" if column.kind == "text" else "right" for column in table.columns]
    laid_out = tabulate(rows, header, tablefmt="plain", disable_numparse=True, colalign=sides if rows else None)
    return f"{table.title}\n{laid_out}" if table.title else laid_out
