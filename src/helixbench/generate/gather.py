"""The end of stage `generate`: the records of all drawn blocks become manifest.csv, whoever drew
them. Needs no torch.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from helixbench import provenance
from helixbench.config import Slice
from helixbench.errors import UserError
from helixbench.records import Pair, inside, read_csv, write_csv

log = logging.getLogger(__name__)

_OLD = "manifest.old.csv"


@dataclass(frozen=True)
class Block:
    """Neighbouring pairs of the plan that are drawn together, redraws included: what a shard and a
    resumed run count in.

    identity: of configuration, data and model; number: from 0 to blocks - 1; settings,
    takes_raw_mask, device: of the method that drew; limits: of the mask gate, by defect type; cost:
    as in a manifest.json, of this block alone; drawn: drawings that it took, redraws included.
    """

    identity: str
    number: int
    blocks: int
    settings: str
    takes_raw_mask: bool
    limits: dict[str, dict[str, float]]
    device: str
    cost: dict[str, float]
    drawn: int
    pairs: list[Pair]

    def line(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True) + "\n"

    @classmethod
    def parse(cls, line: str) -> Block:
        """What `line` wrote; ValueError or TypeError for anything else."""
        values = json.loads(line)
        return cls(**{**values, "pairs": [Pair(**pair) for pair in values["pairs"]]})

    def damaged(self, out: Path) -> list[Path]:
        """Pictures below `out` that are missing or were changed since."""
        files = [
            (out / name, digest)
            for p in self.pairs
            for name, digest in ((p.image, p.sha256), (p.mask, p.mask_sha256))
        ]
        return [
            file
            for file, digest in files
            if not file.is_file() or provenance.sha256(file) != digest
        ]


def read_blocks(records: Sequence[Path]) -> list[Block]:
    """Blocks of all records, in the order of the plan; UserError unless they hold each block of one
    plan once.
    """
    try:
        lines = [
            line for record in records for line in record.read_text(encoding="utf-8").splitlines()
        ]
        blocks = sorted(map(Block.parse, lines), key=lambda block: block.number)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{records[0].parent}: not a record of generated pairs ({error}); generate them again"
        ) from None
    if (
        not blocks
        or len({block.identity for block in blocks}) != 1
        or [block.number for block in blocks] != list(range(blocks[0].blocks))
    ):
        raise UserError(
            f"{records[0].parent}: not every block of the plan once, from one configuration; "
            f"generate the pairs again"
        )
    return blocks


def total(costs: list[dict[str, float]]) -> dict[str, float]:
    """Seconds added up; of memory the peak."""
    return {
        key: max(c[key] for c in costs)
        if key.startswith("peak")
        else round(sum(c[key] for c in costs), 2)
        for key in costs[0]
    }


def withdraw_manifest(out: Path) -> None:
    """Nothing vouches for the pictures while they change; what it named is ours to remove."""
    with suppress(FileNotFoundError):
        os.replace(out / "manifest.csv", out / _OLD)


def _recorded(out: Path, state: Path) -> set[Path]:
    """Pictures below `out` that the manifest before this one, or a block of any plan, has named."""
    pairs: list[Pair] = []
    with suppress(UserError):
        pairs += read_csv(out / _OLD, Pair)
    for file in state.glob("block*.json"):
        with suppress(OSError, ValueError, TypeError, KeyError):
            pairs += Block.parse(file.read_text(encoding="utf-8")).pairs
    return {inside(out, name) for pair in pairs for name in (pair.image, pair.mask)}


def run(
    method: str, category: str, config: Slice, *, records: Sequence[Path], state: Path, out: Path
) -> None:
    """Check every picture against the records, remove those that earlier plans have recorded, write
    manifest.json and, last, manifest.csv.

    Raises UserError for an incomplete record, and for a picture that is missing or not as it was
    drawn.
    """
    provenance.check_own(state)  # it is removed in the end
    withdraw_manifest(out)
    blocks = read_blocks(records)
    damaged = [file for block in blocks for file in block.damaged(out)]
    if damaged:
        raise UserError(
            f"{damaged[0]}: missing or changed since it was drawn ({len(damaged)} such files); "
            f"remove {records[0].parent} to draw again"
        )
    pairs = [pair for block in blocks for pair in block.pairs]
    known = {inside(out, name) for pair in pairs for name in (pair.image, pair.mask)}
    for file in _recorded(out, state) - known:
        file.unlink(missing_ok=True)
    device = ", ".join(sorted({block.device for block in blocks}))
    first, cost = blocks[0], total([block.cost for block in blocks])
    facts = {
        "method": method,
        "settings": first.settings,
        "takes_raw_mask": first.takes_raw_mask,
        "device": device,
        "cost": cost,
    }
    with provenance.manifest(out / "manifest.json", "generate", config, **facts) as written:
        written["parts"] = len(records)
        written["drawn"] = sum(block.drawn for block in blocks)
        written["gate_limits"] = blocks[0].limits
        written["gate"] = dict(Counter(pair.gate for pair in pairs))
        written["redraws"] = sum(pair.redraws for pair in pairs)
        log.info(
            "%s %s: gate %s, %d redraws", method, category, written["gate"], written["redraws"]
        )
    write_csv(out / "manifest.csv", pairs, Pair)
    (out / _OLD).unlink(missing_ok=True)
    shutil.rmtree(state, ignore_errors=True)
