"""Tables of a load test's report as HTML: heads with groups, cells with something small below, facts. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a column; neighbours of one `group` stand below its name."""

    text: str
    group: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure, and its spread in small letters below."""

    text: str
    small: str = ""


def html_table(heads: Sequence[Head], rows: Sequence[Sequence[Cell]], caption: str, marked: int | None = None) -> str:
    """A table whose first column names its rows; `marked` is the number of a row that stands out."""
    grouped = any(head.group for head in heads)
    first = _begins(heads)
    top = ""
    if grouped:
        groups = [(name, len(list(several))) for name, several in itertools.groupby(heads, key=lambda head: head.group)]
        cells = [
            f'<th class="group" colspan="{count}" scope="colgroup">{escape(name)}</th>' if name else "<td></td>"
            for name, count in groups
        ]
        top = f"<tr>{''.join(cells)}</tr>"
    titles = "".join(
        f'<th scope="col"{_class(begins and grouped)}>{escape(head.text)}</th>'
        for head, begins in zip(heads, first, strict=True)
    )
    body = []
    for number, row in enumerate(rows):
        cells = [f'<th scope="row">{_content(row[0])}</th>']
        cells += [
            f"<td{_class(first[place] and grouped)}>{_content(cell)}</td>" for place, cell in enumerate(row) if place
        ]
        kind = ' class="best"' if number == marked else ""
        body.append(f"<tr{kind}>{''.join(cells)}</tr>")
    return (
        f'<table class="stick" aria-label="{escape(caption)}"><thead>{top}<tr>{titles}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def scrolled(table: str, name: str) -> str:
    """A region of its own that scrolls sideways where the screen is narrow, by the keyboard too."""
    return f'<div class="scroll" role="region" aria-label="{escape(name)}, scrolls sideways" tabindex="0">{table}</div>'


def facts_table(title: str, this: Mapping[str, str], other: Mapping[str, str]) -> str:
    """Names and values under a heading, those of two tests side by side; empty where nothing is known."""
    names = [*this, *(name for name in other if name not in this)]
    if not names:
        return ""
    rows = []
    for name in names:
        values = [this.get(name, "–")] + ([other.get(name, "–")] if other else [])
        differs = len(set(values)) > 1 and name != "Finished"
        kind = ' class="differs"' if differs else ""
        cells = "".join(f"<td{kind}>{escape(value)}</td>" for value in values)
        mark = ' <span class="mark">differs</span>' if differs else ""
        rows.append(f'<tr><th scope="row">{escape(name)}{mark}</th>{cells}</tr>')
    head = ""
    if other:
        head = (
            '<thead><tr><td></td><th class="left" scope="col">this test</th><th scope="col">the other</th></tr></thead>'
        )
    return (
        f'<div><h2>{escape(title)}</h2><div class="panel"><table class="facts" aria-label="{escape(title)}">{head}'
        f"<tbody>{''.join(rows)}</tbody></table></div></div>"
    )


def _begins(heads: Sequence[Head]) -> list[bool]:
    """Whether a column is the first of its group."""
    return [
        bool(head.group) and (not place or heads[place - 1].group != head.group) for place, head in enumerate(heads)
    ]


def _class(first_of_group: bool) -> str:
    return ' class="group"' if first_of_group else ""


def _content(cell: Cell) -> str:
    return escape(cell.text) + (f"<small>{escape(cell.small)}</small>" if cell.small else "")
