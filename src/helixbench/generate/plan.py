"""The plan: what pair i of a defect type is asked to be. A pure function of the root seed and the
prepared data.
"""

from __future__ import annotations

import numpy as np

from helixbench.diffusion.data import Pictures
from helixbench.methods.method import Conditions
from helixbench.pictures.raw_mask import BLANK, cells_to_mask, raw_mask_cells
from helixbench.pictures.transforms import shift, symmetries, to_tensor, transform
from helixbench.records import Plan, derive_seed, format_cells, parse_cells
from helixbench.schema import Generate


def _moved(array: np.ndarray, plan: Plan, cells: int, fill: int = 0) -> np.ndarray:
    side = array.shape[0] / cells
    return shift(
        transform(array, plan.symmetry),
        round(plan.shift_y * side),
        round(plan.shift_x * side),
        fill,
    )


def make_plan(data: Pictures, config: Generate, seed: int) -> list[Plan]:
    """Plans of all pairs of a category, by defect type and index.

    Donor and background are uniform over the generator half and the normals; the donor is moved by
    a uniform symmetry and by a uniform shift of whole cells that keeps its raw mask inside the
    picture.
    """
    first = data.samples[0]
    k, names = data.cells, symmetries(config.symmetries)
    plans = []
    for defect in data.defects:
        donors = [i for i in data.defective if data.samples[i].defect == defect]
        for index in range(config.pairs):
            pair_seed = derive_seed(seed, first.dataset, first.category, defect, index)
            rng = np.random.default_rng(derive_seed(pair_seed, "plan"))
            donor, background = (
                donors[rng.integers(len(donors))],
                data.normal[rng.integers(len(data.normal))],
            )
            symmetry = names[rng.integers(len(names))]
            rows, columns = np.divmod(raw_mask_cells(transform(data.masks[donor], symmetry), k), k)
            low_y, high_y = (
                max(-config.max_shift, -rows.min()),
                min(config.max_shift, k - 1 - rows.max()),
            )
            low_x, high_x = (
                max(-config.max_shift, -columns.min()),
                min(config.max_shift, k - 1 - columns.max()),
            )
            plan = Plan(
                index=index,
                dataset=first.dataset,
                category=first.category,
                defect=defect,
                seed=pair_seed,
                donor=data.samples[donor].id,
                background=data.samples[background].id,
                symmetry=symmetry,
                shift_y=int(rng.integers(low_y, high_y + 1)),
                shift_x=int(rng.integers(low_x, high_x + 1)),
                raw_mask="",
            )
            cells = raw_mask_cells(_moved(data.masks[donor], plan, k), k)
            plans.append(Plan(**{**plan.__dict__, "raw_mask": format_cells(k, cells)}))
    return plans


def conditions(data: Pictures, plans: list[Plan], control: str = "none") -> Conditions:
    """Tensors of planned pairs; control: `none`, or `raw` or `detailed` mask as graphical guidance
    (reading 12).
    """
    k = data.cells
    donors = [data.index[plan.donor] for plan in plans]
    masks = [_moved(data.masks[i], plan, k) for i, plan in zip(donors, plans, strict=True)]
    raw = [cells_to_mask(*parse_cells(plan.raw_mask), data.size) for plan in plans]
    return Conditions(
        category=plans[0].category,
        defects=[plan.defect for plan in plans],
        background=to_tensor([data.images[data.index[plan.background]] for plan in plans]),
        donor=to_tensor(
            [_moved(data.images[i], plan, k, BLANK) for i, plan in zip(donors, plans, strict=True)]
        ),
        donor_mask=to_tensor(masks),
        raw_mask=to_tensor(raw),
        control={"none": None, "raw": to_tensor(raw), "detailed": to_tensor(masks)}[control],
        normals=data.normals,
    )
