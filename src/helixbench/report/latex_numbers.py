r"""All numbers of the tables as one LaTeX macro, so that a paper never retypes one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from helixbench.provenance import write_text
from helixbench.records import read_rows
from helixbench.report.metrics import about
from helixbench.report.render import escape
from helixbench.report.tables import COLUMNS

_HEAD = r"""% Every number of the tables by its name:
%   \hbnum{II/MVTec-AD/bottle/DH-Diff/pixel_auroc/measured}
% Names are table/data set/category/method/metric/kind; kind is published, recomputed or measured.
% In names, each of \ { } % # ~ ! is written as ! and its code: `50 !25 paste`.
% Where a number was measured under several protocols, their names end in :a, :b, ... An unknown
% name stops LaTeX.
\providecommand{\hbnum}[1]{\ifcsname hb@\detokenize{#1}\endcsname%
  \csname hb@\detokenize{#1}\endcsname%
  \else\errmessage{helixbench: no number \detokenize{#1}}\fi}
"""


def run(tables: Iterable[Path], out: Path) -> None:
    r"""Write \hbnum and one definition per number of the tables' CSV files.

    UserError for a file that is no table.
    """
    lines = []
    for file in tables:
        found: dict[str, list[str]] = {}
        for _, row in read_rows(file, COLUMNS, "render the table again"):
            name = "/".join(
                row[key] for key in ("table", "dataset", "category", "method", "metric")
            )
            for kind in ("published", "recomputed", "measured"):
                if row[kind] and (kind == "measured" or f"{name}/{kind}" not in found):
                    text = (
                        row[kind]
                        if kind == "published"
                        else f"{float(row[kind]):.{about(row['metric']).digits}f}"
                    )
                    found.setdefault(f"{name}/{kind}", []).append(text)
        for name, texts in found.items():
            for i, text in enumerate(texts):
                marked = key_of(name if len(texts) == 1 else f"{name}:{_letters(i)}")
                lines.append(
                    rf"\expandafter\def\csname "
                    rf"hb@\detokenize{{{marked}}}\endcsname{{{escape(text)}}}"
                )
    write_text(out, _HEAD + "\n".join(lines) + "\n")


def key_of(name: str) -> str:
    """The name as TeX can hold it in braces: `!` and its code for what would be read as code."""
    return re.sub(r"[\\{}%#~!\x00-\x1f\x7f]", lambda c: f"!{ord(c[0]):02x}", name)


def _letters(i: int) -> str:
    return ("" if i < 26 else _letters(i // 26 - 1)) + chr(97 + i % 26)
