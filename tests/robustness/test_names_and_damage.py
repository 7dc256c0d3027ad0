"""Names that are data in every output, and files that somebody has damaged or put there."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helixbench import provenance
from helixbench.config import Slice
from helixbench.detect import comparators
from helixbench.diffusion.base import BaseModel
from helixbench.engine import checkpoint
from helixbench.errors import UserError
from helixbench.methods.dhdiff.config import DHDiff
from helixbench.methods.dhdiff.pipeline import DHDiffPipeline
from helixbench.pictures.lettering import figure_text, legible
from helixbench.pictures.prepared import read_split
from helixbench.prepare.sheet import draw_lines
from helixbench.protocol import Protocol
from helixbench.records import inside
from helixbench.report.grid import TILE, DefectType, Group, compose
from helixbench.report.latex_numbers import key_of
from helixbench.report.page import _filled, script_data
from helixbench.schema.method import known_places

NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40)


# ---------------------------------------------------------------- names


@given(NAMES)
def test_no_name_ends_the_script_of_the_page(name):
    text = script_data({"t": name, "more": f"<!--<script>{name}</script>"})
    assert "<" not in text
    assert json.loads(text)["t"] == name


def test_a_name_like_a_place_of_the_page_stays_a_name():
    page = _filled("page.html", NAME="a__BODY__", ABOUT="", LINKS="", STYLE="", BODY="text")
    assert page.count("text\n") == 1 and "a__BODY__" in page


@given(NAMES, NAMES)
def test_numbers_of_other_names_have_other_keys_which_tex_can_hold(one, other):
    assert not re.search(r"[\\{}%#~\x00-\x1f]", key_of(one))
    assert (key_of(one) == key_of(other)) == (one == other)


@settings(max_examples=25, deadline=None)
@given(NAMES)
def test_figures_and_sheets_show_any_name(tmp_path_factory, name):
    folder, tile = tmp_path_factory.mktemp("sheet"), np.zeros((TILE, TILE, 3), np.uint8)
    compose([DefectType(f"gear / {name}", (Group(name, (tile,), (tile,), 1),))], 4, 1).savefig(
        folder / "x.png"
    )
    draw_lines(folder / "s.png", name, [(name, [(name, Image.fromarray(tile))])])
    for file in ("x.png", "s.png"):
        with Image.open(folder / file) as drawn:
            assert drawn.convert("L").getextrema() == (0, 255)  # black on white


def test_dollars_are_no_mathematics_and_letters_without_a_font_are_told_by_their_code():
    assert figure_text(r"a$_$ \frac{$") == r"a\$_\$ \frac{\$"
    assert legible("Prüfung") == "Prüfung"
    assert legible("a\U000f1234") == "a<f1234>"


@pytest.mark.parametrize("prompt", ["{category.nope}", "{category:>1000000000}", "{defect!r}", "{"])
def test_a_prompt_has_places_for_names_only(prompt):
    with pytest.raises(ValueError, match="only {category} and {defect}"):
        known_places(prompt)


# ---------------------------------------------------------------- damaged and foreign files

DAMAGED = {
    "nothing": "",
    "cut off": '{"files": {',
    "list": "[1, 2]",
    "number": "3",
    "deep": "[" * 100_000,
    "deep object": '{"a":' * 100_000,
    "list of files": '{"files": ["a"]}',
    "half a character": '"\\ud800"',
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_damaged_json_is_one_line_with_the_file(text, tmp_path):
    for name in ("manifest.json", "split.json", "slice.json"):
        (tmp_path / name).write_text(text)
    for read in (
        lambda: provenance.outputs(tmp_path / "manifest.json"),
        lambda: read_split(tmp_path),
        lambda: Slice.load(tmp_path / "slice.json")["files"],
    ):
        with pytest.raises((UserError, KeyError)) as caught:
            read()
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="protocol"):
        Protocol.parse(text)


def test_what_is_missing_in_json_is_one_line_also_where_a_library_says_it_in_many(tmp_path):
    (tmp_path / "dhdiff.json").write_text('{"kind": "dhdiff", "nope": 1, "never": 2}')
    with pytest.raises(UserError) as caught:
        provenance.read_object(tmp_path / "dhdiff.json", "train again", DHDiff.model_validate)
    assert "\n" not in str(caught.value) and "validation errors" in str(caught.value)


def test_a_path_with_a_nul_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no name of a file"):
        inside(tmp_path, "a\0b")


@pytest.mark.parametrize("facts", ["[]", "null", "[" * 100_000])
def test_a_checkpoint_with_other_facts_is_one_line(facts, tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", {"facts": facts})
    with pytest.raises(UserError, match="not a readable checkpoint"):
        checkpoint.load_tensors(tmp_path / "x.safetensors")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "base"
    small.base().save(folder)
    return folder


@pytest.mark.parametrize(
    "part, changes",
    [
        ("unet", {"block_out_channels": [10**9] * 4}),
        ("unet", {"norm_num_groups": 0}),
        ("unet", {"cross_attention_dim": "wide"}),
        ("text_encoder", {"hidden_size": -1}),
        ("text_encoder", {"quantization_config": {"quant_method": "bitsandbytes_8bit"}}),
        ("text_encoder", {"attn_implementation": "x/y"}),
        ("scheduler", {"num_train_timesteps": -5}),
        ("vae", {"latent_channels": None}),
    ],
)
def test_a_base_that_its_parts_do_not_understand_is_one_line(part, changes, base, tmp_path):
    shutil.copytree(base, tmp_path / "copy")
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    file = tmp_path / "copy" / part / name
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError) as caught:
        BaseModel.load(tmp_path / "copy")
    assert "\n" not in str(caught.value)


def test_each_number_of_a_base_is_bounded_before_anything_is_built(base, tmp_path):
    """Every number of every configuration, one after another: no hour, no memory, one line."""
    started, grown, told = time.process_time(), resource.getrusage(resource.RUSAGE_SELF), 0
    for file in sorted(base.rglob("*config.json")):
        text = file.read_text()
        for key, value in sorted(json.loads(text).items()):
            damaged = _first_number(value, 10**9)
            if damaged == value:
                continue
            shutil.rmtree(tmp_path / "copy", ignore_errors=True)
            shutil.copytree(base, tmp_path / "copy", copy_function=os.link)
            changed = tmp_path / "copy" / file.relative_to(base)
            changed.unlink()
            changed.write_text(json.dumps(json.loads(text) | {key: damaged}))
            with pytest.raises(UserError, match=f"{key} 1000000000"):
                BaseModel.load(tmp_path / "copy")
            told += 1
    assert told >= 20
    assert time.process_time() - started < 60
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_maxrss - grown.ru_maxrss < 500_000, "KiB"


def _first_number(value, number):
    """A JSON value with its first number, not below an object, changed."""
    if isinstance(value, list) and value:
        return [_first_number(value[0], number), *value[1:]]
    whole = isinstance(value, int) and not isinstance(value, bool)
    return number if whole else value


@pytest.mark.parametrize(
    "part, changes, words",
    [
        ("unet", {"layers_per_block": 10**5}, "more than the"),
        ("unet", {"layers_per_block": 10**9}, "layers_per_block 1000000000"),
        ("unet", {"transformer_layers_per_block": [10**5] * 4}, "more than the"),
        ("unet", {"block_out_channels": [16, 16, 32, 64]}, "declares"),
        ("text_encoder", {"num_hidden_layers": 10**6}, "more than the"),
        ("text_encoder", {"num_hidden_layers": 0}, "declares"),
        ("text_encoder", {"num_labels": 10**9}, "num_labels 1000000000"),
        ("vae", {"decoder_layers_per_block": [0, 10**5, 1]}, "more than the"),
        ("scheduler", {"num_train_timesteps": 10**10}, "num_train_timesteps 10000000000"),
        ("tokenizer", {"model_max_length": 10**30}, "model_max_length 1"),
    ],
)
def test_what_a_base_declares_too_much_is_named(part, changes, words, base, tmp_path):
    shutil.copytree(base, tmp_path / "copy")
    names = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
    file = tmp_path / "copy" / part / names.get(part, "config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match=words) as caught:
        BaseModel.load(tmp_path / "copy")
    assert "\n" not in str(caught.value)


def test_a_pipe_in_a_base_is_not_read(base, tmp_path):
    shutil.copytree(base, tmp_path / "copy")
    (tmp_path / "copy/unet/config.json").unlink()
    os.mkfifo(tmp_path / "copy/unet/config.json")
    with pytest.raises(UserError, match="config.json is not a regular file"):
        BaseModel.load(tmp_path / "copy")


def test_code_in_a_model_folder_does_not_run(base, tmp_path, monkeypatch):
    shutil.copytree(base, tmp_path / "copy")
    tokenizer = tmp_path / "copy/tokenizer"
    (tokenizer / "tok.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\n"
        "from transformers import PreTrainedTokenizerFast as T\n"
    )
    file = tokenizer / "tokenizer_config.json"
    changed = json.loads(file.read_text()) | {"auto_map": {"AutoTokenizer": ["tok.T", "tok.T"]}}
    file.write_text(json.dumps(changed | {"tokenizer_class": "T"}))
    monkeypatch.setattr("builtins.input", lambda *question: "y")
    try:
        BaseModel.load(tmp_path / "copy")
    except UserError as error:
        assert "\n" not in str(error)
    assert not (tmp_path / "ran").exists()


def test_a_file_that_its_manifest_does_not_know_is_told(tmp_path):
    (tmp_path / "weights").write_text("w")
    known = {"files": provenance.sha256_tree(tmp_path)}
    (tmp_path / "manifest.json").write_text(json.dumps(known))
    assert list(provenance.outputs(tmp_path / "manifest.json")) == ["weights"]
    (tmp_path / "tok.py").write_text("")
    with pytest.raises(UserError, match="tok.py: not in manifest.json"):
        provenance.outputs(tmp_path / "manifest.json")
    (tmp_path / "manifest.json").write_text('{"files": {}}')
    with pytest.raises(UserError, match="not in manifest.json"):
        provenance.outputs(tmp_path / "manifest.json")


def test_a_model_by_hand_is_checked_against_its_manifest(tmp_path):
    for name in ("dhdiff.json", "dhdiff.safetensors", "trained_on.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "manifest.json").write_text('{"files": {"dhdiff.json": "0"}}')
    with pytest.raises(UserError, match="dhdiff.json: missing or altered"):
        DHDiffPipeline.from_pretrained(tmp_path)


def test_a_damaged_state_of_a_comparator_is_not_gone_on_with(tmp_path, caplog):
    file = tmp_path / "x.ckpt"
    assert comparators.resumable(file) is None
    for content in (b"", b"\x80\x04\x95 a pickle", b"0" * 1000):
        file.write_bytes(content)
        with caplog.at_level(logging.WARNING):
            assert comparators.resumable(file) is None
        assert "the training starts anew" in caplog.text and not file.exists()
    file.write_bytes(b"state")
    comparators._vouching(file).write_text(provenance.sha256(file))
    assert comparators.resumable(file) == file
    file.write_bytes(b"stAte")
    assert comparators.resumable(file) is None


# ---------------------------------------------------------------- two at once


def test_a_second_process_at_one_state_is_one_line_and_the_first_goes_on(tmp_path):
    held = (
        "import sys, pathlib; from helixbench.provenance import alone\n"
        f"with alone(pathlib.Path({str(tmp_path / 'state')!r})):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "held\n"
    with (
        pytest.raises(UserError, match="another process is at work on it"),
        provenance.alone(tmp_path / "other", tmp_path / "state"),
    ):
        pass
    first.kill()  # the kernel lets go
    first.wait()
    with provenance.alone(tmp_path / "other", tmp_path / "state"):
        pass
