"""Laid-out tables as Markdown, HTML and LaTeX text."""

from __future__ import annotations

import html as _html
import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from helixbench.report.tables import Block, Cell, Column, Row

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


def _marks_used(columns: Iterable[tuple[int, Column]], rows: Iterable[Row]) -> set[str]:
    used = set()
    for index, column in columns:
        used.add(column.mark)
        used.update(
            mark
            for row in rows
            if row.cells and row.cells[index]
            for mark in row.cells[index].marks
        )
    return used


def _shown(rows: list[Row], columns: Iterable[int]) -> list[Row]:
    """Rows with a number in one of these columns, and the headings that such a row follows."""
    columns = list(columns)
    rows = [row for row in rows if row.cells is None or any(row.cells[i] for i in columns)]
    return [
        row
        for row, after in itertools.zip_longest(rows, rows[1:])
        if row.cells or (after and after.cells)
    ]


# ------------------------------------------------------------------------------------------------
# Markdown


def _md(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def _md_sup(marks: Iterable[str]) -> str:
    joined = ",".join(mark for mark in marks if mark)
    return f" <sup>{joined}</sup>" if joined else ""


def _md_cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    text = {1: f"**{cell.text}**", 2: f"<u>{cell.text}</u>"}.get(cell.rank, cell.text)
    return text + _md_sup(cell.marks)


def _md_header(column: Column) -> str:
    text = column.label if column.kind == "published" else f"measured: {column.label}"
    if column.substitute:
        text += f" ({column.substitute} network)"
    return _md(text) + _md_sup([column.mark])


def markdown(
    title: str, blocks: list[Block], names: dict[str, str], remarks: Sequence[str] = ()
) -> str:
    """One Markdown table a metric, footnotes below each, remarks below the first block."""
    lines = [f"# {_md(title)}", "", LEGEND, ""]
    for number, block in enumerate(blocks):
        if number:
            lines += ["## Also measured", "", "The paper prints none of these.", ""]
        for metric in block.metrics:
            columns = [
                (i, column) for i, column in enumerate(block.columns) if column.metric == metric
            ]
            rows = _shown(block.rows, (i for i, _ in columns))
            lines += [f"##{'#' * bool(number)} {_md(names.get(metric, metric))}", ""]
            lines.append(
                f"| {block.head} | "
                + " | ".join(_md_header(column) for _, column in columns)
                + " |"
            )
            lines.append("|---|" + "---:|" * len(columns))
            for row in rows:
                if row.cells is None:
                    lines.append(f"| **{_md(row.name)}** |" + " |" * len(columns))
                    continue
                name = f"*{_md(row.name)}*" if row.average else _md(row.name)
                lines.append(
                    f"| {name} | " + " | ".join(_md_cell(row.cells[i]) for i, _ in columns) + " |"
                )
            used = _marks_used(columns, rows)
            notes = [
                f"<sup>{mark}</sup> {_md(text)}"
                for mark, text in block.notes.items()
                if mark in used
            ]
            lines += ["", *(f"{note}  " for note in notes), ""]
        if not number:
            lines += [line for text in remarks for line in (text, "")]
    return "\n".join(lines).rstrip("\n") + "\n"


# ------------------------------------------------------------------------------------------------
# HTML


def _html_cell(cell: Cell | None) -> str:
    if cell is None:
        return "<td></td>"
    text = {1: "<b>{}</b>", 2: "<u>{}</u>"}.get(cell.rank, "{}").format(_html.escape(cell.text))
    return f"<td>{text}{_html_sup(cell.marks)}</td>"


def _html_sup(marks: Iterable[str]) -> str:
    joined = ",".join(mark for mark in marks if mark)
    return f"<sup>{joined}</sup>" if joined else ""


def html(
    title: str, blocks: list[Block], names: dict[str, str], remarks: Sequence[str] = ()
) -> str:
    """A fragment: one table a metric, measured columns marked by a class, footnotes below each."""
    lines = [f"<h3>{_html.escape(title)}</h3>"]
    for number, block in enumerate(blocks):
        for metric in block.metrics:
            columns = [
                (i, column) for i, column in enumerate(block.columns) if column.metric == metric
            ]
            rows = _shown(block.rows, (i for i, _ in columns))
            also = " <small>(not in the paper)</small>" if number else ""
            lines += [
                f"<h4>{_html.escape(names.get(metric, metric))}{also}</h4>",
                '<div class="wide"><table>',
            ]
            heads = []
            for _, column in columns:
                label = column.label + (
                    f" ({column.substitute} network)" if column.substitute else ""
                )
                mark = _html_sup([column.mark])
                heads.append(f'<th class="{column.kind}">{_html.escape(label)}{mark}</th>')
            kinds = [
                (kind, len(list(group)))
                for kind, group in itertools.groupby(column.kind for _, column in columns)
            ]
            spans = "".join(f'<th class="{kind}" colspan="{n}">{kind}</th>' for kind, n in kinds)
            lines += [
                f"<thead><tr><th></th>{spans}</tr>",
                f"<tr><th>{block.head}</th>{''.join(heads)}</tr></thead><tbody>",
            ]
            for row in rows:
                name = _html.escape(row.name)
                if row.cells is not None:
                    kind = ' class="average"' if row.average else ""
                    cells = "".join(_html_cell(row.cells[i]) for i, _ in columns)
                    lines.append(f"<tr{kind}><th>{name}</th>{cells}</tr>")
                else:
                    lines.append(
                        f'<tr class="heading"><th colspan="{len(columns) + 1}">{name}</th></tr>'
                    )
            lines.append("</tbody></table></div>")
            used = _marks_used(columns, rows)
            notes = [
                f"<sup>{mark}</sup> {_html.escape(text)}"
                for mark, text in block.notes.items()
                if mark in used
            ]
            if notes:
                lines.append(
                    f"<details><summary>notes</summary><p>{'<br>'.join(notes)}</p></details>"
                )
        if not number:
            lines += [f"<p>{_html.escape(text)}</p>" for text in remarks]
    return "\n".join(lines) + "\n"


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


def _tex_sup(marks: Iterable[str]) -> str:
    joined = ",".join(mark for mark in marks if mark)
    return rf"\textsuperscript{{{joined}}}" if joined else ""


def _tex_cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    text = escape(cell.text)
    return {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(cell.rank, text) + _tex_sup(
        cell.marks
    )


def _spans(columns: list[Column], key: Callable) -> tuple[str, str]:
    r"""A header row of \multicolumn groups, and the rules below it."""
    cells, rules, start = [], [], 2
    for name, group in itertools.groupby(columns, key):
        width = len(list(group))
        cells.append(rf"\multicolumn{{{width}}}{{c}}{{{escape(name[-1])}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        start += width
    return " & ".join(["", *cells]).strip() + r" \\", "".join(rules)


def _panels(columns: list[Column]) -> list[list[int]]:
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


def _tex_panel(block: Block, indices: list[int], names: dict[str, str]) -> list[str]:
    """One tabular, made smaller where it is wider than the page; rows without a number in it are
    left out.
    """
    columns = [block.columns[i] for i in indices]
    kinds, kinds_rule = _spans(columns, lambda c: (c.kind,))
    methods, methods_rule = _spans(columns, _tex_method)
    metrics = (
        " & ".join(
            [
                block.head,
                *(escape(names.get(c.metric, c.metric)) + _tex_sup([c.mark]) for c in columns),
            ]
        )
        + r" \\"
    )
    published = sum(column.kind == "published" for column in columns)
    between = "@{\\qquad}" if 0 < published < len(columns) else ""
    shape = "l" + "c" * published + between + "c" * (len(columns) - published)
    lines = [
        r"\sbox0{%",
        rf"\begin{{tabular}}{{{shape}}}",
        r"\toprule",
        kinds,
        kinds_rule,
        methods,
        methods_rule,
        metrics,
    ]
    for row in _shown(block.rows, indices):
        if row.cells is not None:
            rule = [r"\cmidrule(lr){1-" + f"{len(columns) + 1}}}"] if row.average else []
            lines += [
                *rule,
                " & ".join([escape(row.name), *(_tex_cell(row.cells[i]) for i in indices)])
                + r" \\",
            ]
        else:
            lines += [
                r"\midrule",
                rf"\multicolumn{{{len(columns) + 1}}}{{l}}{{\textit{{{escape(row.name)}}}}} \\",
            ]
    lines += [r"\bottomrule", r"\end{tabular}}%"]
    return [*lines, r"\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi"]


def _tex_table(label: str, caption: str, block: Block, names: dict[str, str]) -> list[str]:
    lines = [
        r"\begin{table*}",
        r"\centering",
        rf"\caption{{{escape(caption)}}}",
        rf"\label{{{label}}}",
    ]
    for number, indices in enumerate(_panels(block.columns)):
        lines += [*([r"\par\medskip"] if number else []), *_tex_panel(block, indices, names)]
    if block.notes:
        notes = [
            rf"\textsuperscript{{{mark}}}\,{escape(text)}" for mark, text in block.notes.items()
        ]
        lines += [
            r"\par\smallskip",
            r"\begin{minipage}{\linewidth}\footnotesize",
            "\\quad\n".join(notes),
            r"\end{minipage}",
        ]
    return [*lines, r"\end{table*}"]


def latex(
    label: str, title: str, blocks: list[Block], names: dict[str, str], remarks: Sequence[str] = ()
) -> str:
    r"""A fragment for \input: one booktabs table a block, in a two-column-wide float, in panels
    where it has more than WIDE columns.
    """
    lines = [r"% needs \usepackage{booktabs,graphicx}"]
    for number, block in enumerate(blocks):
        caption = (
            re.sub(r"^Table [IVX]+: ", "", title) + (", also measured" if number else "") + ". "
        )
        caption += " ".join([LEGEND, *([] if number else remarks)])
        lines += ["", *_tex_table(label + "-also" * bool(number), caption, block, names)]
    return "\n".join(lines) + "\n"
