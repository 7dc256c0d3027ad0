"""Commands in this process, small raw folders, and what spoils them."""

from __future__ import annotations

import json
import shutil
import struct
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import pytest

from helixbench import cli
from helixbench.datasets.procedural.render import draw
from helixbench.schema import Procedural

PICTURE, MASK = "test/hole/001.png", "ground_truth/hole/001_mask.png"
VALUES = {"prepare.size": 32, "prepare.split": "half", "prepare.raw_mask_cells": 5}


class Done(NamedTuple):
    returncode: int
    lines: list[str]
    stdout: str


@pytest.fixture
def helixbench(monkeypatch, capsys):
    """Call the command line as the console script does."""

    def call(*arguments) -> Done:
        monkeypatch.setattr(sys, "argv", ["helixbench", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return Done(code, captured.err.splitlines(), captured.out)

    return call


@pytest.fixture
def prepare(helixbench, tmp_path):
    """`helixbench prepare Any tile` of the raw folder, into `<tmp>/out/tile`."""

    def call(root: Path, layout: str = "mvtec_ad", split: str = "half") -> Done:
        config = tmp_path / "slice.json"
        config.write_text(json.dumps({**VALUES, "prepare.split": split}))
        done = helixbench(
            "prepare",
            "Any",
            "tile",
            "--config",
            config,
            "--layout",
            layout,
            "--raw",
            root,
            "--out",
            tmp_path / "prepared/tile",
        )
        config.unlink()
        return done

    return call


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """The category tile in any layout: 5 normals to train on, 2 to test, 2 pictures of hole,
    scratch and stain."""
    made = {}

    def call(layout: str) -> Path:
        if layout not in made:
            made[layout] = tmp_path_factory.mktemp(layout)
            draw(
                made[layout],
                "Any",
                "tile",
                Procedural(size=32, train_good=5, test_good=2, per_defect=2, layout=layout),
                seed=0,
            )
        return made[layout]

    return call


@pytest.fixture
def raw(drawn, tmp_path):
    """A copy of its own."""
    return lambda layout="mvtec_ad": Path(shutil.copytree(drawn(layout), tmp_path / "raw"))


def remove(*paths):
    def spoil(tile):
        for path in paths:
            found = list(tile.glob(path))
            assert found, path
            for one in found:
                shutil.rmtree(one) if one.is_dir() and not one.is_symlink() else one.unlink()

    return spoil


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_header(width, height):
    """A PNG that claims a size and holds nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def no_trace(tmp_path) -> bool:
    """Whether a refused command left nothing behind."""
    return {path.name for path in tmp_path.iterdir()} <= {"raw", "outside"}
