"""The procedural data set: objects and surfaces with defects drawn into them, in any raw layout.

`scenes` paints what is whole, `defects` breaks it, `render` makes pictures of both, `writers` puts
pictures where each layout wants them. They are imported where something is drawn, not here.
"""

from __future__ import annotations

from helixbench.datasets.mvtec_ad import MVTecAD

DEFECTS: dict[str, tuple[str, ...]] = {
    "disc": ("bend", "missing_part", "scratch", "stain"),
    "capsule": ("bend", "missing_part", "scratch"),
    "plate": ("hole", "scratch", "stain"),
    "weave": ("bend", "hole", "stain"),
    "tile": ("hole", "scratch", "stain"),
}
"""Categories and the defect types of each."""


class Drawn(MVTecAD):
    """Drawn by the workflow, and read, unless told otherwise, as MVTec AD is."""

    name = "procedural"
    title = "the drawn pictures"
    published = ""
    drawn = tuple(sorted(DEFECTS))
