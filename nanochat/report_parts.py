"""What reports are made of, each as Markdown and as HTML; and the page that holds them, which needs no network."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Protocol

Row = tuple[str, ...]


class Part(Protocol):
    """A piece of a report."""

    def markdown(self) -> str: ...

    def html(self) -> str: ...


@dataclass(frozen=True)
class Table:
    """A heading, column names and rows of text."""

    title: str
    columns: Row
    rows: tuple[Row, ...]

    def markdown(self) -> str:
        lines = [self.columns, tuple("---" for _ in self.columns), *self.rows]
        return f"## {self.title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"

    def html(self) -> str:
        head = "".join(f'<th scope="col">{escape(column)}</th>' for column in self.columns)
        rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in self.rows)
        table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>"
        return f'{_heading(self.title)}<div class="wide">{table}</div>\n'


@dataclass(frozen=True)
class Text:
    """Paragraphs, with a heading or without."""

    paragraphs: Row
    title: str = ""

    def markdown(self) -> str:
        heading = f"## {self.title}\n\n" if self.title else ""
        return heading + "\n\n".join(self.paragraphs) + "\n"

    def html(self) -> str:
        return _heading(self.title) + "".join(f"<p>{escape(text)}</p>\n" for text in self.paragraphs)


@dataclass(frozen=True)
class Lines:
    """A heading and a list."""

    title: str
    lines: Row

    def markdown(self) -> str:
        return f"## {self.title}\n\n" + "\n".join(f"- {line}" for line in self.lines) + "\n"

    def html(self) -> str:
        return f"{_heading(self.title)}<ul>{''.join(f'<li>{escape(line)}</li>' for line in self.lines)}</ul>\n"


@dataclass(frozen=True)
class Talk:
    """A heading, and questions with their answers."""

    title: str
    said: tuple[tuple[str, str], ...]

    def markdown(self) -> str:
        return f"## {self.title}\n\n" + "\n".join(f"> **{prompt}**\n>\n> {text}\n" for prompt, text in self.said)

    def html(self) -> str:
        turns = (f"<dt>{escape(prompt)}</dt><dd>{escape(text)}</dd>" for prompt, text in self.said)
        return f"{_heading(self.title)}<dl>{''.join(turns)}</dl>\n"


@dataclass(frozen=True)
class Figure:
    """A heading, and a drawing that Markdown leaves out."""

    title: str
    svg: str

    def markdown(self) -> str:
        return ""

    def html(self) -> str:
        return f'{_heading(self.title)}<figure role="img" aria-label="{escape(self.title)}">{self.svg}</figure>\n'


def page(title: str, parts: Sequence[Part]) -> str:
    """All of it in one file: style and figures are within."""
    body = "".join(part.html() for part in parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head>\n<body><main><h1>{escape(title)}</h1>\n{body}</main></body></html>\n"
    )


def _heading(title: str) -> str:
    return f"<h2>{escape(title)}</h2>\n" if title else ""


STYLE = """
:root { color-scheme: light dark; --line: #d5d8dc; --soft: #5d6570; --ink: #16191d; --paper: #fff; --tint: #f4f6f8 }
@media (prefers-color-scheme: dark) {
  :root { --line: #3a4048; --soft: #a2abb6; --ink: #e8eaed; --paper: #15181c; --tint: #1e2329 }
}
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem }
h1 { font-size: 1.7rem; margin: 0 0 .5rem }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
th { color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--line) }
tbody tr:nth-child(even) { background: var(--tint) }
figure { margin: 0; background: #fff; border-radius: 6px; padding: .5rem }
figure svg { width: 100%; height: auto; display: block }
dt { font-weight: 600; margin-top: .8rem } dd { margin: .1rem 0 0 1rem; white-space: pre-wrap }
ul { padding-left: 1.2rem; overflow-wrap: anywhere } p { overflow-wrap: anywhere }
@media print { body { font-size: 11px } h2 { break-after: avoid } figure, table { break-inside: avoid } }
"""
