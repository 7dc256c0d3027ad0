r"""Numbers for other programs: `numbers.tex`, so that a paper never retypes one, and `summary.json`
for `dvc metrics`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from helixbench.config import Slice
from helixbench.provenance import write_json, write_text
from helixbench.records import read_rows
from helixbench.report.measured import collect
from helixbench.report.published import AVERAGE
from helixbench.report.render import escape
from helixbench.report.tables import COLUMNS, DIGITS

_HEAD = r"""% Every number of the tables by its name:
%   \hbnum{II/MVTec-AD/bottle/DH-Diff/pixel_auroc/measured}
% Names are table/data set/category/method/metric/kind; kind is published, recomputed or measured.
% Where a number was measured under several protocols, their names end in :a, :b, ... An unknown
% name stops LaTeX.
\providecommand{\hbnum}[1]{\ifcsname hb@\detokenize{#1}\endcsname%
  \csname hb@\detokenize{#1}\endcsname%
  \else\errmessage{helixbench: no number \detokenize{#1}}\fi}
"""


def macros(tables: Iterable[Path], out: Path) -> None:
    r"""Write \hbnum and one definition a number of the tables' CSV files. UserError for a file that
    is no table.
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
                        else f"{float(row[kind]):.{DIGITS.get(row['metric'], 1)}f}"
                    )
                    found.setdefault(f"{name}/{kind}", []).append(text)
        for name, texts in found.items():
            for i, text in enumerate(texts):
                marked = name if len(texts) == 1 else f"{name}:{_letters(i)}"
                lines.append(
                    rf"\expandafter\def\csname "
                    rf"hb@\detokenize{{{marked}}}\endcsname{{{escape(text)}}}"
                )
    write_text(out, _HEAD + "\n".join(lines) + "\n")


def _letters(i: int) -> str:
    return ("" if i < 26 else _letters(i // 26 - 1)) + chr(97 + i % 26)


def summary(config: Slice, *, scores: Iterable[Path], out: Path) -> None:
    """Write data set -> method -> metric -> mean over categories and seeds; several protocols of
    one metric are told apart.

    Only complete averages are in it. Undefined numbers are left out: JSON has none.
    """
    entries = [
        entry
        for entry in collect(scores, config)
        if entry.category == AVERAGE and math.isfinite(entry.mean)
    ]
    count: dict[tuple, int] = {}
    tree: dict = {}
    for entry in entries:
        key = (entry.dataset, entry.label, entry.metric)
        count[key] = count.get(key, 0) + 1
        name = entry.metric if count[key] == 1 else f"{entry.metric} ({count[key]})"
        tree.setdefault(entry.dataset, {}).setdefault(entry.label, {})[name] = round(entry.mean, 6)
    write_json(out, tree)
