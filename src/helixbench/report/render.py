"""Laid-out tables as Markdown, HTML and LaTeX text: one walk, three ways of marking up."""

from __future__ import annotations

import html as _html
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from helixbench.report.layout import Block, Cell, Column, Row
from helixbench.report.metrics import about

LEGEND = (
    "Published numbers are the paper's, as printed; measured numbers are this run's, mean ± "
    "standard deviation over seeds "
    "(over scoring shuffles where there is one seed). Best bold, second underlined, among numbers "
    "of one kind and one scoring protocol. "
    "Higher is better."
)


def restored(categories: tuple[str, ...]) -> str:
    """A line about the published rows of these categories; empty without any."""
    if not categories:
        return ""
    rows = f"The published rows {', '.join(categories)} were scrambled in the source text"
    return f"{rows} and re-ordered; their column means agree with the paper."


# ------------------------------------------------------------------------------------------------
# what the three share


@dataclass(frozen=True)
class Panel:
    """Some columns of a block, and the rows and footnotes that have something to do with them.

    rows: name, whether it is an average, and its cells, None for the heading of a data set.
    """

    columns: list[Column]
    rows: list[tuple[str, bool, list[Cell | None] | None]]
    notes: dict[str, str]


def panel(block: Block, indices: Iterable[int]) -> Panel:
    """The columns of these indices."""
    indices = list(indices)
    columns = [block.columns[i] for i in indices]
    rows = []
    for row in _shown(block.rows, indices):
        cells = None if row.cells is None else [row.cells[i] for i in indices]
        rows.append((row.name, row.average, cells))
    marks = {column.mark for column in columns}
    marks.update(
        mark for _, _, cells in rows for cell in cells or () if cell for mark in cell.marks
    )
    notes = {mark: text for mark, text in block.notes.items() if mark in marks}
    return Panel(columns, rows, notes)


def _shown(rows: Sequence[Row], indices: Sequence[int]) -> list[Row]:
    """Rows with a number in one of these columns, and the headings that such a row follows."""
    rows = [row for row in rows if row.cells is None or any(row.cells[i] for i in indices)]
    return [
        row
        for row, after in itertools.zip_longest(rows, rows[1:])
        if row.cells or (after and after.cells)
    ]


def _by_metric(block: Block) -> Iterator[tuple[str, Panel]]:
    """Title and panel of each metric."""
    for metric in block.metrics:
        indices = [i for i, column in enumerate(block.columns) if column.metric == metric]
        yield about(metric).heading, panel(block, indices)


@dataclass(frozen=True)
class Markup:
    """How a format writes text, its best and second-best number, and the marks of footnotes."""

    escape: Callable[[str], str]
    best: str
    second: str
    superscript: str

    def marks(self, marks: Iterable[str]) -> str:
        """Marks as one superscript, empty without any."""
        joined = ",".join(mark for mark in marks if mark)
        return self.superscript.replace("@", joined) if joined else ""

    def cell(self, cell: Cell | None) -> str:
        """A number with its rank and marks."""
        if cell is None:
            return ""
        pattern = {1: self.best, 2: self.second}.get(cell.rank, "@")
        return pattern.replace("@", self.escape(cell.text)) + self.marks(cell.marks)

    def label(self, column: Column, kind: str = "") -> str:
        """Name of a column, with what is not the paper's about its network, and its mark."""
        network = f" ({column.substitute} network)" if column.substitute else ""
        return self.escape(kind + column.label + network) + self.marks([column.mark])


# ------------------------------------------------------------------------------------------------
# Markdown


def _md_escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


MARKDOWN = Markup(_md_escape, "**@**", "<u>@</u>", " <sup>@</sup>")


def markdown(title: str, blocks: list[Block], remarks: Sequence[str] = ()) -> str:
    """One Markdown table per metric, footnotes below each, remarks below the first block."""
    lines = [f"# {_md_escape(title)}", "", LEGEND, ""]
    for number, block in enumerate(blocks):
        if number:
            lines += ["## Also measured", "", "The paper prints none of these.", ""]
        for heading, part in _by_metric(block):
            lines += [f"##{'#' * bool(number)} {_md_escape(heading)}", ""]
            lines += _md_table(block.head, part)
            notes = [f"<sup>{mark}</sup> {_md_escape(text)}  " for mark, text in part.notes.items()]
            lines += ["", *notes, ""]
        if not number:
            lines += [line for text in remarks for line in (text, "")]
    return "\n".join(lines).rstrip("\n") + "\n"


def _md_table(head: str, part: Panel) -> list[str]:
    names = [
        MARKDOWN.label(column, "" if column.kind == "published" else "measured: ")
        for column in part.columns
    ]
    lines = [f"| {head} | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for row, average, cells in part.rows:
        name = _md_escape(row)
        if cells is None:
            lines.append(f"| **{name}** |" + " |" * len(names))
        else:
            name = f"*{name}*" if average else name
            lines.append(f"| {name} | {' | '.join(map(MARKDOWN.cell, cells))} |")
    return lines


# ------------------------------------------------------------------------------------------------
# HTML

HTML = Markup(_html.escape, "<b>@</b>", "<u>@</u>", "<sup>@</sup>")


def html(title: str, blocks: list[Block], remarks: Sequence[str] = ()) -> str:
    """A fragment: one table per metric, measured columns marked by a class, footnotes below."""
    lines = [f"<h3>{_html.escape(title)}</h3>"]
    for number, block in enumerate(blocks):
        also = " <small>(not in the paper)</small>" if number else ""
        for heading, part in _by_metric(block):
            lines.append(f"<h4>{_html.escape(heading)}{also}</h4>")
            lines += _html_table(block.head, part)
            notes = [f"<sup>{mark}</sup> {_html.escape(text)}" for mark, text in part.notes.items()]
            if notes:
                text = "<br>".join(notes)
                lines.append(f"<details><summary>notes</summary><p>{text}</p></details>")
        if not number:
            lines += [f"<p>{_html.escape(text)}</p>" for text in remarks]
    return "\n".join(lines) + "\n"


def _html_table(head: str, part: Panel) -> list[str]:
    spans = "".join(
        f'<th class="{kind}" colspan="{len(list(group))}">{kind}</th>'
        for kind, group in itertools.groupby(column.kind for column in part.columns)
    )
    names = "".join(
        f'<th class="{column.kind}">{HTML.label(column)}</th>' for column in part.columns
    )
    lines = [
        '<div class="wide"><table>',
        f"<thead><tr><th></th>{spans}</tr>",
        f"<tr><th>{head}</th>{names}</tr></thead><tbody>",
    ]
    for row, average, cells in part.rows:
        name = _html.escape(row)
        if cells is None:
            span = len(part.columns) + 1
            lines.append(f'<tr class="heading"><th colspan="{span}">{name}</th></tr>')
        else:
            kind = ' class="average"' if average else ""
            numbers = "".join(f"<td>{HTML.cell(cell)}</td>" for cell in cells)
            lines.append(f"<tr{kind}><th>{name}</th>{numbers}</tr>")
    return [*lines, "</tbody></table></div>"]


# ------------------------------------------------------------------------------------------------
# LaTeX

WIDE = 20
"""Columns of numbers that a page can show side by side: as many as the paper's widest table has."""

_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "²": r"\textsuperscript{2}",
    "–": "--",
    "γ": r"$\gamma$",
}


def escape(text: str) -> str:
    """Text as LaTeX prints it; characters that pdflatex has no glyph for become a question mark."""
    return "".join(_TEX.get(c, c if c.isascii() else "?") for c in text)


LATEX = Markup(escape, r"\textbf{@}", r"\underline{@}", r"\textsuperscript{@}")


def latex(label: str, title: str, blocks: list[Block], remarks: Sequence[str] = ()) -> str:
    r"""A fragment for \input: one booktabs table per block, in a two-column-wide float, in panels
    where it has more than WIDE columns.
    """
    lines = [r"% needs \usepackage{booktabs,graphicx}"]
    for number, block in enumerate(blocks):
        caption = re.sub(r"^Table [IVX]+: ", "", title) + (", also measured" if number else "")
        caption += ". " + " ".join([LEGEND, *([] if number else remarks)])
        lines += ["", *_tex_table(label + "-also" * bool(number), caption, block)]
    return "\n".join(lines) + "\n"


def _tex_table(label: str, caption: str, block: Block) -> list[str]:
    lines = [
        r"\begin{table*}",
        r"\centering",
        rf"\caption{{{escape(caption)}}}",
        rf"\label{{{label}}}",
    ]
    for number, indices in enumerate(_tex_panels(block.columns)):
        lines += [r"\par\medskip"] if number else []
        lines += _tex_panel(block.head, panel(block, indices))
    if block.notes:
        notes = [f"{LATEX.marks([mark])}\\,{escape(text)}" for mark, text in block.notes.items()]
        lines += [
            r"\par\smallskip",
            r"\begin{minipage}{\linewidth}\footnotesize",
            "\\quad\n".join(notes),
            r"\end{minipage}",
        ]
    return [*lines, r"\end{table*}"]


def _tex_panels(columns: list[Column]) -> list[list[int]]:
    """Indices of the columns of each panel: all in one up to WIDE, else each kind apart, cut
    between methods into like parts.
    """
    if len(columns) <= WIDE:
        return [list(range(len(columns)))]
    panels = []
    for _, kind in itertools.groupby(range(len(columns)), lambda i: columns[i].kind):
        methods = [
            list(group) for _, group in itertools.groupby(kind, lambda i: _tex_method(columns[i]))
        ]
        parts = math.ceil(sum(map(len, methods)) / WIDE)
        each = math.ceil(len(methods) / parts)
        panels += [
            list(itertools.chain(*methods[i : i + each])) for i in range(0, len(methods), each)
        ]
    return panels


def _tex_method(column: Column) -> tuple[str, str]:
    return column.kind, column.label + (f" ({column.substitute})" if column.substitute else "")


def _tex_spans(columns: list[Column], key: Callable[[Column], tuple[str, ...]]) -> list[str]:
    r"""A header row of \multicolumn groups, and the rules below it."""
    cells, rules, start = [], [], 2
    for name, group in itertools.groupby(columns, key):
        width = len(list(group))
        cells.append(rf"\multicolumn{{{width}}}{{c}}{{{escape(name[-1])}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        start += width
    return [" & ".join(["", *cells]).strip() + r" \\", "".join(rules)]


def _tex_panel(head: str, part: Panel) -> list[str]:
    """One tabular, made smaller where it is wider than the page."""
    columns, width = part.columns, len(part.columns)
    published = sum(column.kind == "published" for column in columns)
    between = "@{\\qquad}" if 0 < published < width else ""
    metrics = [escape(about(c.metric).heading) + LATEX.marks([c.mark]) for c in columns]
    lines = [
        r"\sbox0{%",
        rf"\begin{{tabular}}{{l{'c' * published}{between}{'c' * (width - published)}}}",
        r"\toprule",
        *_tex_spans(columns, lambda column: (column.kind,)),
        *_tex_spans(columns, _tex_method),
        " & ".join([head, *metrics]) + r" \\",
    ]
    for row, average, cells in part.rows:
        name = escape(row)
        if cells is None:
            span = rf"\multicolumn{{{width + 1}}}{{l}}{{\textit{{{name}}}}} \\"
            lines += [r"\midrule", span]
        else:
            lines += [rf"\cmidrule(lr){{1-{width + 1}}}"] if average else []
            lines.append(" & ".join([name, *map(LATEX.cell, cells)]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}%"]
    return [*lines, r"\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi"]
