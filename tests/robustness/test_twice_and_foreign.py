"""What is said twice, what is no file, and what is of another format: one line, nothing dropped."""

from __future__ import annotations

import json
import os
import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helixbench import config, provenance
from helixbench.cli.judge import read_settings
from helixbench.datasets.procedural.render import draw
from helixbench.errors import UserError
from helixbench.pictures.raw import read_rgb
from helixbench.prepare import stage
from helixbench.records import read_rows
from helixbench.schema import Procedural

KEYS = st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=4)


@pytest.fixture
def patience():
    """A reader that waits is a failure, and does not hold up the others."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("still reading"))
    signal.alarm(20)
    yield
    signal.alarm(0)


def line_of(read) -> str:
    with pytest.raises(UserError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


READERS = {
    "json": lambda file: provenance.read_object(file, "make it again"),
    "csv": lambda file: read_rows(file, ("a",)),
    "picture": read_rgb,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "folder", "link to nothing"])
def test_what_is_no_file_is_not_waited_for(reader, kind, tmp_path, patience):
    file = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        target = {"device": "/dev/zero", "loop": file, "link to nothing": tmp_path / "y"}[kind]
        file.symlink_to(target)
    assert str(file) in line_of(lambda: READERS[reader](file))


@settings(max_examples=60, deadline=None)
@given(keys=st.lists(KEYS, min_size=1, max_size=6), depth=st.integers(0, 3))
def test_a_key_that_stands_twice_is_told_at_any_depth(keys, depth, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    body = "{" + ", ".join(f'"{key}": {i}' for i, key in enumerate(keys)) + "}"
    text = '{"x": ' * depth + body + "}" * depth
    for name, read in (
        ("twice.json", lambda file: provenance.read_object(file, "make it again")),
        ("twice.yaml", config.read_yaml),
    ):
        (folder / name).write_text(text)
        if len(set(keys)) == len(keys):
            assert read(folder / name) == json.loads(text)
        else:
            assert "stands twice" in line_of(lambda name=name, read=read: read(folder / name))


@pytest.mark.parametrize(
    "text, words",
    [
        ("run: {name: a, name: b}", "the key name stands twice"),
        ("run: {name: a}\nrun: {seed: 1}", "the key run stands twice"),
        ("run: {name: 2024-13-45}", "month must be in"),
        ("run: " + "[" * 700 + "]" * 700, "nested too deep"),
        ("run: " + "9" * 5000, "not valid YAML"),
        ("run:\n\tname: a", "cannot start any token"),
    ],
)
def test_yaml_of_people_is_one_line_to_each_reader(text, words, tmp_path):
    (tmp_path / "o.yaml").write_text(text)
    for read in (config.load, lambda file: read_settings(file, 0)):
        assert words in line_of(lambda read=read: read(tmp_path / "o.yaml"))


def test_merged_keys_of_yaml_are_no_double_ones(tmp_path):
    (tmp_path / "o.yaml").write_text("a: &a {x: 1, y: 2}\nb: &b {<<: *a, y: 3}\nc: {<<: *b, x: 4}")
    assert config.read_yaml(tmp_path / "o.yaml")["c"] == {"x": 4, "y": 3}


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.sampled_from(["", " ", "a", "b c"]), max_size=5), max_size=4),
    names=st.lists(st.sampled_from("abc"), min_size=1, max_size=3),
)
def test_no_cell_of_a_csv_is_dropped(rows, names, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "cells.csv"
    file.write_text("\n".join(",".join(row) for row in [names, *rows]))
    twice = len(set(names)) < len(names)
    more = any(cell.strip() for row in rows for cell in row[len(names) :])
    if twice or more:
        words = "stands twice" if twice else "more cells than columns"
        assert words in line_of(lambda: read_rows(file, names[:1]))
    else:
        assert all(set(row) == set(names) for _, row in read_rows(file, names))


@pytest.mark.parametrize("kind", ["GIF", "JPEG 2000"])
def test_a_picture_with_the_suffix_of_another_format_is_called_what_it_is(kind, tmp_path):
    format_name = {"JPEG 2000": "JPEG2000"}.get(kind, kind.upper())
    Image.new("RGB", (16, 16), 99).save(tmp_path / "a.png", format=format_name)
    assert f"holds {kind}; convert it to PNG" in line_of(lambda: read_rgb(tmp_path / "a.png"))


def test_what_lies_where_an_output_is_to_go_is_not_lost(tmp_path):
    """A file, a folder behind a link, a stranger in our own, what has a temporary name."""

    def write(out):
        with provenance.whole_folder(out) as folder:
            (folder / "new").write_text("new")
            files = provenance.sha256_tree(folder, exclude=(provenance.MARK,))
            provenance.write_json(folder / "manifest.json", {"stage": "x", "files": files})

    (tmp_path / "file").write_text("mine")
    assert "a file, not a folder" in line_of(lambda: write(tmp_path / "file"))
    assert "a file, not a folder" in line_of(lambda: provenance.claim(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"

    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real/new").is_file()

    write(tmp_path / "own")
    write(tmp_path / "own")
    (tmp_path / "own/notes.txt").write_text("mine")
    assert "notes.txt: not written by helixbench" in line_of(lambda: write(tmp_path / "own"))
    assert (tmp_path / "own/notes.txt").read_text() == "mine"

    for name in (".out.tmp", ".out.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine")
        assert "did not write" in line_of(lambda: write(tmp_path / "out"))
        assert (tmp_path / name / "notes.txt").read_text() == "mine"
        (tmp_path / name / "notes.txt").unlink()
    write(tmp_path / "out")


def test_prepared_pictures_do_not_take_the_place_of_the_raw_ones(tmp_path):
    drawn = Procedural(size=32, train_good=4, test_good=2, per_defect=2, layout="mvtec_ad")
    draw(tmp_path / "raw", "Any", "tile", drawn, seed=0)
    before = provenance.sha256_tree(tmp_path)
    values = {"prepare.size": 32, "prepare.split": "half", "prepare.raw_mask_cells": 5}
    for out in ("raw", "raw/tile", "raw/tile/test/new", "raw/../raw/tile"):
        about = {"layout": "mvtec_ad", "raw": tmp_path / "raw", "out": tmp_path / out}
        told = line_of(lambda about=about: stage.run("Any", "tile", config.Slice(values), **about))
        assert "give another folder" in told
    assert provenance.sha256_tree(tmp_path) == before
