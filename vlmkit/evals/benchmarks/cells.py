"""Cells of a benchmark's row, in the forms that published tables have them: texts, lists of texts, numbers."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from vlmkit.data.samples import BadSample


def text(row: Mapping[str, Any], column: str) -> str:
    """A cell as text; numbers are written out. Raises BadSample if there is none."""
    cell = row.get(column)
    if isinstance(cell, bool) or not isinstance(cell, str | int | float):
        raise BadSample(f"the cell {column} is not a text: {cell!r}")
    return str(cell)


def optional_text(row: Mapping[str, Any], column: str) -> str:
    """A cell as text without blanks around it; "" where it is missing, or "nan" (as pandas writes missing cells)."""
    cell = row.get(column)
    return "" if cell is None or cell != cell or str(cell) == "nan" else str(cell).strip()


def texts(row: Mapping[str, Any], column: str) -> tuple[str, ...]:
    """A cell that is a list of texts, or a text that is one (written as in Python or JSON); a text alone is a list of
    one. Numbers are written out. Raises BadSample if there is none."""
    cell = row.get(column)
    if isinstance(cell, str):
        cell = _list_in(cell) if cell.lstrip().startswith("[") else [cell]
    if not isinstance(cell, Sequence) or not cell or not all(isinstance(one, str | int | float) for one in cell):
        raise BadSample(f"the cell {column} is not a list of texts: {cell!r}")
    return tuple(str(one) for one in cell)


def option(row: Mapping[str, Any], column: str, choices: Sequence[str]) -> str:
    """The letter of the right choice in a cell that numbers it from 0. Raises BadSample if there is no such choice."""
    try:
        number = int(text(row, column))
    except ValueError as error:
        raise BadSample(f"the cell {column} is not the number of a choice: {row[column]!r}") from error
    if not 0 <= number < len(choices):
        raise BadSample(f"the cell {column} is {number}, of {len(choices)} choices")
    return chr(ord("A") + number)


def _list_in(cell: str) -> Any:
    try:
        return ast.literal_eval(cell)
    except (ValueError, SyntaxError):
        return [cell]  # a text that happens to begin with a bracket
