"""One self-contained HTML page about a run: tables, figures, galleries of pairs, gate counts, provenance. No network."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from helixbench.config import Slice
from helixbench.errors import UserError
from helixbench.provenance import write_text
from helixbench.records import GOOD, inside
from helixbench.report.figures import evenly
from helixbench.report.folder import Folder, Job

TILE = 128
"""Side of a picture of the gallery [pixel]."""
OUTLINE = (255, 32, 32)
_WORDS = {
    "overview": "Results at a glance",
    "training": "Training",
    "cost": "Cost",
    "detector": "Detectors on held-out real pictures",
    "masks": "Masks, real against generated",
    "figure": "Generated pairs",
}


def run(config: Slice, *, results: Path, tables: Iterable[Path], figures: Iterable[Path], out: Path) -> None:
    """Write the page.

    tables: .html fragments; figures: PNG files, all embedded. The gallery shows `report.gallery` pairs at most, spread
    evenly over methods, categories and defect types, with the outlines of their masks.
    Raises UserError for missing or damaged files.
    """
    folder = Folder(results, config)
    jobs = list(folder.jobs())
    pictures = gallery(folder, config["report"].gallery)
    fragments = []
    for file in tables:
        try:
            fragments.append(Path(file).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}; render the tables again") from None
    name = Path(results).name
    sections = [
        ("tables", "Tables", "\n".join(fragments)),
        ("figures", "Figures", "\n".join(_figure(Path(file)) for file in figures)),
        ("pairs", "Pairs", _GALLERY.replace("__DATA__", json.dumps(pictures, separators=(",", ":")).replace("</", "<\\/"))),
        ("gate", "Quality gate", gate_counts(folder)),
        ("provenance", "Where the numbers come from", provenance(jobs)),
    ]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in sections)
    body = "\n".join(f'<section id="{key}"><h2>{title}</h2>\n{text}\n</section>' for key, title, text in sections)
    about = ", ".join(f"{dataset} ({len(categories)})" for dataset, categories in folder.datasets.items())
    text = _PAGE.replace("__NAME__", html.escape(name)).replace("__ABOUT__", html.escape(about)).replace("__LINKS__", links)
    write_text(out, text.replace("__STYLE__", _STYLE).replace("__BODY__", body))


def _figure(file: Path) -> str:
    kind, _, rest = file.stem.partition("_")
    number, _, dataset = rest.partition("_")
    if kind != "figure":
        dataset, number = rest, ""
    title = _WORDS.get(kind, file.stem) + (f" (Figure {number})" if number else "") + (f", {dataset}" if dataset else "")
    try:
        data = base64.b64encode(file.read_bytes()).decode()
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; draw the figures again") from None
    name = html.escape(title)
    return f'<figure><img loading="lazy" alt="{name}" src="data:image/png;base64,{data}"><figcaption>{name}</figcaption></figure>'


# --------------------------------------------------------------------------------------------------------- gallery


def gallery(folder: Folder, limit: int) -> list[dict]:
    """Rows of the gallery: method, data set, category, defect, gate, name, and the picture as a data address."""
    groups: list[tuple[dict, list[tuple[Path, Path | None, str, str]]]] = []
    for d, c in folder.places():
        root, samples = folder.prepared(d, c)
        for defect in sorted({s.defect for s in samples if s.defect_trains and s.defect != GOOD}):
            about = {"d": d, "c": c, "t": defect}
            real = [s for s in samples if s.defect == defect and s.defect_trains]
            groups.append(({"m": "real", **about}, [(inside(root, s.image), inside(root, s.mask), "ok", s.id) for s in real]))
            for key, label in folder.labels.items():
                home, pairs = folder.pairs(key, d, c)
                own = [p for p in pairs if p.defect == defect]
                rows = [(inside(home, p.image), inside(home, p.mask), p.gate, f"{defect}/{Path(p.image).name} seed {p.seed}") for p in own]
                groups.append(({"m": label, **about}, rows))
    share = max(1, limit // max(1, len(groups)))
    return [
        {**about, "g": gate, "n": name, "s": tile(image, mask)} for about, rows in groups for image, mask, gate, name in evenly(rows, share)
    ]


def tile(image: Path, mask: Path) -> str:
    """A pair as one WebP data address: the picture with the outline of its mask beside the plain picture."""
    try:
        with Image.open(image) as opened, Image.open(mask) as mask_opened:
            how = Image.Resampling.BICUBIC if opened.width < TILE else Image.Resampling.BOX
            picture = np.asarray(opened.convert("RGB").resize((TILE, TILE), how))
            inside_mask = np.asarray(mask_opened.convert("L").resize((TILE, TILE), Image.Resampling.BILINEAR)) > 127
    except (OSError, ValueError) as error:
        raise UserError(f"{image}: cannot be read with its mask ({error}); run its stage again") from None
    marked = picture.copy()
    marked[inside_mask & ~ndimage.binary_erosion(inside_mask)] = OUTLINE
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate([picture, marked], axis=1)).save(buffer, format="WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


# ---------------------------------------------------------------------------------------------- gate and provenance


def _table(head: list[str], rows: Iterable[list]) -> str:
    names = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    cells = ("".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in cells)
    return f'<div class="wide"><table class="plain"><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'


def gate_counts(folder: Folder) -> str:
    """How many pairs passed the mask gate, were drawn again, or failed, by method and data set."""
    rows = []
    for key, label in folder.labels.items():
        for dataset in folder.datasets:
            pairs = [pair for d, c in folder.places(dataset) for pair in folder.pairs(key, d, c)[1]]
            failed = {reason: sum(p.gate == reason for p in pairs) for reason in ("empty", "small", "large", "border")}
            redrawn = sum(p.redraws > 0 for p in pairs)
            rows.append([label, dataset, len(pairs), sum(p.gate == "ok" for p in pairs), redrawn, *failed.values()])
    return _table(["method", "data set", "pairs", "passed", "drawn again", "empty", "small", "large", "border"], rows)


def provenance(jobs: list[Job]) -> str:
    """Versions and splits, then one row a job: what it ran from, on what, and what it cost."""
    versions = sorted({f"{name} {version}" for job in jobs for name, version in job.facts.get("versions", {}).items()})
    splits = sorted(
        {
            (job.dataset, job.category, split["rule"], split["sha256"][:16])
            for job in jobs
            if (split := job.facts.get("split")) and "sha256" in split
        }
    )
    rows = []
    for job in jobs:
        spent, seed = job.facts["cost"], "" if job.seed is None else job.seed
        made = [job.facts.get(key) or "" for key in ("device", "commit", "config_digest")]
        rows.append(
            [job.stage, job.method, job.dataset, job.category, seed, *made, f"{spent['wall_s']:.0f}", f"{spent['peak_rss_mib']:.0f}"]
        )
    head = ["stage", "method", "data set", "category", "seed", "device", "commit", "config", "seconds", "MiB"]
    text = f"<p>{html.escape(', '.join(versions))}</p>"
    text += "<h3>Splits</h3>" + _table(["data set", "category", "split", "sha256"], map(list, splits))
    return text + f"<h3>Jobs</h3><details><summary>{len(rows)} jobs</summary>{_table(head, rows)}</details>"


# ------------------------------------------------------------------------------------------------------------ page

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881;--ours:#0072b218}
body{font:15px/1.45 system-ui,sans-serif;margin:0 auto;max-width:1180px;padding:0 20px 60px}
header{padding:26px 0 8px}h1{margin:0;font-size:26px}
h2{margin:38px 0 8px;font-size:20px;border-bottom:1px solid var(--line);padding-bottom:4px}
h3{margin:26px 0 4px;font-size:16px}h4{margin:14px 0 4px;font-size:14px}
nav{position:sticky;top:0;background:Canvas;padding:8px 0;border-bottom:1px solid var(--line);z-index:1}nav a{margin-right:18px}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13px}
td,th{padding:2px 8px;text-align:right;white-space:nowrap}tbody th,.plain td,.plain th{text-align:left;font-weight:normal}
thead th{border-bottom:1px solid var(--line);font-weight:600;vertical-align:bottom;white-space:normal;max-width:120px}
th[colspan]{text-align:center}th.measured{background:var(--ours)}
tr.heading th{text-align:left;font-weight:600;padding-top:8px}
tr.average th,tr.average td{border-top:1px solid var(--line);font-style:italic}
tbody tr:hover{background:var(--soft)}figure{margin:18px 0}figure img{max-width:100%;background:#fff}figcaption,small,summary{color:#777}
.bar{display:flex;gap:10px;flex-wrap:wrap;align-items:center;margin:8px 0}select,button{font:inherit;padding:2px 6px}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(256px,1fr));gap:10px}
.tiles div{font-size:12px;overflow-wrap:anywhere}.tiles img{width:100%;display:block;image-rendering:auto}.bad{color:#c33}
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>HelixBench: __NAME__</title><link rel="icon" href="data:,"><style>__STYLE__</style></head><body>
<header><h1>HelixBench: __NAME__</h1><p>Few-shot industrial anomaly generation. Categories: __ABOUT__.</p></header>
<nav>__LINKS__</nav>
__BODY__
</body></html>
"""

_GALLERY = """<p>Left: the picture; right: with the outline of its mask.</p>
<div class="bar" id="filters"></div><div class="tiles" id="tiles"></div>
<div class="bar"><button id="back">previous</button><span id="where"></span><button id="next">next</button></div>
<script type="application/json" id="pictures">__DATA__</script>
<script>
(() => {
  const all = JSON.parse(document.getElementById("pictures").textContent), size = 24, chosen = {};
  const names = {d: "data set", c: "category", t: "defect", m: "method", g: "gate"};
  const $ = id => document.getElementById(id);
  let first = 0;
  const shown = () => all.filter(p => Object.keys(chosen).every(k => !chosen[k] || p[k] === chosen[k]));
  function draw() {
    const found = shown();
    if (first >= found.length) first = 0;
    $("tiles").replaceChildren(...found.slice(first, first + size).map(p => {
      const box = document.createElement("div"), image = document.createElement("img"), text = document.createElement("span");
      image.src = p.s; image.alt = `${p.m}, ${p.c}, ${p.t}`;
      text.textContent = `${p.m} · ${p.c} · ${p.n}` + (p.g === "ok" ? "" : ` · ${p.g}`);
      if (p.g !== "ok") text.className = "bad";
      box.append(image, text);
      return box;
    }));
    $("where").textContent = found.length ? `${first + 1} to ${Math.min(first + size, found.length)} of ${found.length}` : "none";
  }
  for (const key in names) {
    const label = document.createElement("label"), select = document.createElement("select");
    select.id = "filter-" + key;
    select.append(new Option("all", ""), ...[...new Set(all.map(p => p[key]))].map(v => new Option(v, v)));
    select.onchange = () => { chosen[key] = select.value; first = 0; draw(); };
    label.append(names[key] + " ", select);
    $("filters").append(label);
  }
  $("back").onclick = () => { first = Math.max(0, first - size); draw(); };
  $("next").onclick = () => { if (first + size < shown().length) { first += size; draw(); } };
  draw();
})();
</script>"""
