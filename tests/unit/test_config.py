import copy
import gc
import json
from pathlib import Path

import pytest
import yaml

from helixbench import config, schema
from helixbench.cli.common import quick_imports
from helixbench.errors import UserError
from helixbench.methods.crop_paste.config import CropPaste
from helixbench.methods.dhdiff.config import DHDiff

ROOT = Path(__file__).parents[2]
OPTIM = {"steps": 10, "batch": 2, "lr": 1e-4}
BASE = {
    "prepare": {
        "datasets": {
            "MVTec-AD": {
                "layout": "mvtec_ad",
                "root": "raw/mvtec",
                "categories": ["bottle", "cable"],
            },
            "Procedural": {
                "layout": "procedural",
                "categories": ["disc"],
                "procedural": {"size": 64},
            },
        }
    },
    "train": {
        "methods": {"dhdiff": {"kind": "dhdiff", "optim": OPTIM}, "cp": {"kind": "crop_paste"}}
    },
    "detect": {"localization": {"optim": OPTIM, "seeds": [0, 1]}},
}


def changed(key, value):
    values = copy.deepcopy(BASE)
    node = values
    *path, last = key.split(".")
    for part in path:
        node = node.setdefault(part, {})
    node[last] = value
    return values


def write(path, values):
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------
# overlays


def test_overlay_merges_dictionaries_and_replaces_the_rest(tmp_path):
    below = write(tmp_path / "params.yaml", BASE)
    overlay = {
        "run": {"name": "mini"},
        "prepare": {"datasets": {"MVTec-AD": {"categories": ["bottle"]}}},
        "detect": {"localization": {"seeds": [7]}},
    }
    above = write(tmp_path / "mini.yaml", overlay)
    loaded = config.load(below, above)
    assert loaded.run.name == "mini" and loaded.run.seed == 0
    assert loaded.prepare.datasets["MVTec-AD"].categories == ("bottle",)  # a list replaces
    assert loaded.prepare.datasets["MVTec-AD"].root == "raw/mvtec"  # a dictionary merges
    assert set(loaded.prepare.datasets) == {"MVTec-AD", "Procedural"}
    assert loaded.detect.localization.seeds == (7,)
    assert loaded.detect.localization.optim.steps == 10


def test_later_overlay_wins_and_an_empty_one_changes_nothing(tmp_path):
    files = [
        write(tmp_path / f"{i}.yaml", values)
        for i, values in enumerate((BASE, {"run": {"seed": 1}}, {"run": {"seed": 2}}))
    ]
    empty = tmp_path / "empty.yaml"
    empty.write_text("", encoding="utf-8")
    assert config.load(*files, empty).run.seed == 2


def test_unreadable_and_broken_files_name_the_file(tmp_path):
    with pytest.raises(UserError, match="nowhere.yaml"):
        config.load(tmp_path / "nowhere.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1,\n b", encoding="utf-8")
    with pytest.raises(UserError, match="broken.yaml: not valid YAML") as caught:
        config.load(broken)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------
# errors


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("generat", "generate"),
        ("generate.pars", "pairs"),
        ("generate.sampling.stepz", "steps"),
        ("prepare.datasets.MVTec-AD.layot", "layout"),
        ("prepare.datasets.Procedural.procedural.sizee", "size"),
        ("train.methods.dhdiff.dda_encodr", "dda_encoder"),
        ("train.methods.dhdiff.optim.warmpu", "warmup"),
        ("train.methods.cp.fether", "feather"),
        ("detect.localization.optim.presicion", "precision"),
    ],
)
def test_typo_names_the_full_key_and_the_right_one(key, near):
    with pytest.raises(UserError) as caught:
        config.validate(changed(key, 3))
    assert f"{key}: no such key (did you mean {near}?)" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("run.seed", -1),
        ("run.name", "../elsewhere"),
        ("prepare.size", 100),
        ("prepare.split", "all"),
        ("prepare.datasets.MVTec-AD.layout", "mvtec"),
        ("prepare.datasets.bad name", BASE["prepare"]["datasets"]["MVTec-AD"]),
        ("train.methods.dhdiff.optim.lr", 0),
        ("train.methods.dhdiff.dda_encoder", 5),
        ("train.methods.dhdiff.kind", "dhdif"),
        ("train.methods.cp.scale", [1]),
        ("generate.pairs", "many"),
        ("generate.sampling.guidance", 0.5),
        ("detect.localization.seeds", []),
    ],
)
def test_impossible_value_names_the_full_key(key, value):
    with pytest.raises(UserError) as caught:
        config.validate(changed(key, value), "params.yaml")
    message = str(caught.value)
    assert message.startswith("params.yaml: ") and "\n" not in message
    assert f"{key}:" in message or f"{key}." in message


DEAF = {
    "control_drop": ({"control_drop": 1.0}, "is trained without a control (control_drop 1)"),
    "ssm": ({"ssm_encoder": 0, "ssm_decoder": 0}, "has no SSM layer to look at a control"),
}


@pytest.mark.parametrize("case", DEAF.values(), ids=DEAF)
def test_a_control_that_nobody_follows_is_refused(case):
    settings, message = case
    dhdiff = {**BASE["train"]["methods"]["dhdiff"], **settings}
    values = changed("train.methods.dhdiff", dhdiff)
    assert config.validate(values)
    values = {**values, "generate": {**values.get("generate", {}), "sampling": {"control": "raw"}}}
    with pytest.raises(UserError, match="^params.yaml: train.methods.dhdiff: ") as caught:
        config.validate(values)
    assert message in str(caught.value)


def test_a_raw_mask_by_attention_needs_a_layer_that_attends():
    dhdiff = {
        **BASE["train"]["methods"]["dhdiff"],
        "dda_encoder": 0,
        "dda_decoder": 0,
        "annotation_input": "attention",
    }
    with pytest.raises(UserError, match="annotation_input attention needs a layer with DDA"):
        config.validate(changed("train.methods.dhdiff", dhdiff))


def test_every_wrong_key_is_reported_at_once():
    with pytest.raises(UserError) as caught:
        config.validate({**changed("generate.pairs", 0), "run": {"sed": 1}})
    assert "generate.pairs" in str(caught.value) and "run.sed" in str(caught.value)


def test_dependent_keys():
    with pytest.raises(UserError, match=r"prepare\.datasets\.MVTec-AD: needs `root`"):
        config.validate(changed("prepare.datasets.MVTec-AD.root", ""))
    with pytest.raises(UserError, match=r"train: base scratch needs the section `scratch`"):
        config.validate(changed("train.base", "scratch"))


def test_the_configuration_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        config.validate(BASE).run.seed = 1


# ------------------------------------------------------------------------------------------------
# slices

KEYS = (
    "run.seed",
    "train.base",
    "train.methods",
    "train.methods.dhdiff",
    "train.scratch",
    "prepare.datasets",
    "prepare.datasets.Procedural.procedural",
    "prepare.datasets.MVTec-AD.procedural",
    "detect.localization",
    "detect.localization.seeds",
    "report",
)


@pytest.fixture
def sliced(tmp_path):
    full = config.validate(BASE)
    path = tmp_path / "slice.json"
    path.write_text(json.dumps(config.slice_config(full, KEYS)), encoding="utf-8")
    return full, config.Slice.load(path)


def test_slice_round_trips_typed_through_json(sliced):
    full, part = sliced
    assert set(part) == set(KEYS) and len(part) == len(KEYS)
    for key in KEYS:
        assert part[key] == config.lookup(full, key), key
    assert isinstance(part["train.methods.dhdiff"], DHDiff)
    assert isinstance(part["train.methods"]["cp"], CropPaste)
    assert isinstance(part["prepare.datasets.Procedural.procedural"], schema.Procedural)
    assert isinstance(part["prepare.datasets"]["MVTec-AD"], schema.Dataset)
    assert part["run.seed"] == 0 and part["detect.localization.seeds"] == (0, 1)
    assert part["prepare.datasets.MVTec-AD.procedural"] is None and part["train.scratch"] is None


def test_slice_gives_only_what_was_declared(sliced):
    _, part = sliced
    for key in ("run", "run.name", "generate", "train", "train.methods.cp", "prepare.size"):
        with pytest.raises(KeyError):
            part[key]


def test_slice_with_a_wrong_value_names_its_key():
    with pytest.raises(UserError, match=r"run\.seed"):
        config.Slice({"run.seed": -3})["run.seed"]
    values = config.slice_config(config.validate(BASE), ["train.methods.dhdiff"])
    values["train.methods.dhdiff"]["optim"]["lr"] = 5
    with pytest.raises(UserError, match=r"train\.methods\.dhdiff.*optim\.lr"):
        config.Slice(values)["train.methods.dhdiff"]


def test_slice_file_that_is_not_one(tmp_path):
    path = tmp_path / "slice.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="slice.json"):
        config.Slice.load(path)


def test_digest_depends_on_the_declared_values_only():
    def digest(values, keys=("run.seed", "train.methods.dhdiff")):
        return config.Slice(config.slice_config(config.validate(values), keys)).digest

    assert digest(BASE) == digest(BASE, keys=("train.methods.dhdiff", "run.seed"))
    assert digest(BASE) == digest(changed("generate.pairs", 5))
    assert digest(BASE) == digest(
        changed("train.methods.dhdiff.dda_encoder", 4)
    )  # the default, written out
    assert digest(BASE) != digest(changed("run.seed", 1))
    assert digest(BASE) != digest(changed("train.methods.dhdiff.dda_encoder", 3))
    assert (
        config.digest({"b": 1, "a": [1.5, "x"]}) == "96cd3441b2bbfcba"
    )  # the same on every machine and version


def test_json_schema_is_plain_json_and_closed():
    schema = json.loads(json.dumps(config.json_schema()))
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"prepare", "train", "detect"}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("train.methods.cp.scale", [0, 1], "train.methods.cp: scale"),
        ("train.methods.dhdiff.prompt", "a {categry}", "train.methods.dhdiff.prompt: only"),
        ("train.methods.dhdiff.label", "Crop&Paste", "two methods have one label"),
        ("generate", {"gate": {"min_area": 0.7}}, "generate.gate: min_area"),
        ("detect.localization.width", 0, "detect.localization.width: Input should be"),
        ("prepare.size", 40, "prepare.size: Input should be a multiple of 16"),
        ("generate", {"sampling": {"steps": 501}}, "generate.sampling.steps"),
    ],
)
def test_values_that_would_fail_hours_later(path, value, message):
    values = copy.deepcopy(BASE)
    *parents, last = path.split(".")
    node = values
    for key in parents:
        node = node[key]
    node[last] = value
    with pytest.raises(UserError, match=message):
        config.validate(values)


def test_segmenters_need_whole_cells():
    values = copy.deepcopy(BASE)
    values["prepare"]["size"] = 80
    config.validate(values)
    values["detect"]["segmentation"] = {"networks": {"unet": "resnet18"}, "optim": OPTIM}
    with pytest.raises(UserError, match="prepare.size 80 must be a multiple of 32"):
        config.validate(values)


def test_an_overlay_that_is_no_mapping_is_one_line(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="list.yaml: not a YAML mapping"):
        config.load(tmp_path / "list.yaml")


def with_arm(**arm):
    return changed(
        "train.ablations",
        {"bare": {"of": "dhdiff", "rows": {8: "(1)"}, "change": {"dda_encoder": 0}, **arm}},
    )


def test_an_ablation_is_its_method_with_something_changed():
    values = with_arm()
    values["train"]["ablations"]["whole"] = {
        "of": "dhdiff",
        "rows": {8: "(4)", 9: "(4)"},
        "change": {},
    }
    found = config.validate(values)
    arm, method = found.train.arms["bare"], found.train.methods["dhdiff"]
    assert list(found.train.arms) == ["bare"], "no change, no arm"
    assert (arm.dda_encoder, arm.label) == (0, "bare") and arm.ssm_encoder == method.ssm_encoder
    assert found.train.rows(8) == {"(1)": "bare", "(4)": "dhdiff"} and found.train.rows(9) == {
        "(4)": "dhdiff"
    }
    part = config.Slice(
        config.slice_config(
            found, ["train.methods.bare", "train.methods.bare.optim", "train.methods"]
        )
    )
    assert part["train.methods.bare"] == arm and list(part["train.methods"]) == list(
        found.train.methods
    )


def test_an_arm_follows_what_an_overlay_says_of_its_method():
    values = with_arm()
    values["train"]["methods"]["dhdiff"]["optim"]["steps"] = 77
    assert config.validate(values).train.arms["bare"].optim.steps == 77


def test_arms_go_with_their_method():
    values = with_arm()
    values["train"]["use"] = ["cp"]
    assert not config.validate(values).train.ablations


UNUSED = {
    "prepare": ("datasets", {"layout": "nowhere"}),
    "train": ("methods", {"kind": "nothing"}),
    "detect": ("comparators", {"kind": "patchcore", "batch": -1}),
}


@pytest.mark.parametrize("section", UNUSED)
def test_what_a_run_does_not_use_is_not_checked(section):
    entries, wrong = UNUSED[section]
    values = changed(f"{section}.{entries}.wrong", wrong)
    used = [key for key in values[section][entries] if key != "wrong"][::-1]
    with pytest.raises(UserError, match=f"{section}.{entries}.wrong"):
        config.validate(values)
    values[section]["use"] = used
    found = getattr(getattr(config.validate(values), section), entries)
    assert list(found) == used, "in the order of `use`"
    values[section]["use"] = ["rong"]
    with pytest.raises(
        UserError, match=f"^params.yaml: {section}: use names 'rong', which is not .* mean wrong"
    ):
        config.validate(values)


def test_classifiers_and_segmenters_are_used_by_name():
    values = changed("detect.classification", {"optim": {**OPTIM, "lr": "wrong"}})
    values["detect"]["segmentation"] = {"networks": {"unet": "resnet18"}, "optim": OPTIM}
    values["detect"]["use"] = ["segmentation"]
    found = config.validate(values).detect
    assert found.segmentation is not None and found.classification is None
    values["detect"]["use"] = ["segmentation", "clasification"]
    with pytest.raises(UserError, match="did you mean classification"):
        config.validate(values)


def test_a_scratch_base_is_described_only_where_a_method_learns():
    values = changed("train.base", "scratch")
    values["train"]["use"] = ["cp"]
    assert list(config.validate(values).train.methods) == ["cp"]


def test_an_error_of_the_whole_begins_with_the_keys_that_it_is_about():
    with pytest.raises(UserError, match=r"^params.yaml: train.methods, detect.comparators: two "):
        config.validate(changed("train.methods.cp.label", "DH-Diff"))


ONE_STAGE = {
    "prepared": "prepare: {size: 64, use: [Mine], datasets: {Mine: {layout: folder, root: a, "
    "categories: [b]}}}\ntrain: {use: [crop_paste]}\ndetect: {use: []}",
    "one method on one category": "prepare: {use: [MVTec-AD], datasets: {MVTec-AD: {categories: "
    "[bottle]}}}\ntrain: {use: [dfmgan]}",
    "one detector": "train: {use: [crop_paste]}\ndetect: {use: [patchcore]}",
}


@pytest.mark.parametrize("text", ONE_STAGE.values(), ids=ONE_STAGE)
def test_five_lines_begin_a_single_stage(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(f"run: {{name: mine}}\n{text}\n")
    assert config.load(ROOT / "params.yaml", tmp_path / "mine.yaml").run.name == "mine"


@pytest.mark.parametrize(
    "arm, message",
    [
        ({"of": "dhdif"}, "ablations.bare.of: no method 'dhdif'"),
        ({"change": {"dda_encodr": 0}}, "ablations: dda_encodr: Extra inputs are not permitted"),
        (
            {"change": {"dda_encoder": 7}},
            "ablations: dda_encoder: Input should be less than or equal to 4, not 7",
        ),
        ({"rows": {7: "x"}}, "greater than or equal to 8"),
    ],
)
def test_a_bad_arm_is_one_line(arm, message):
    with pytest.raises(UserError) as caught:
        config.validate(with_arm(**arm))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "preset", sorted((ROOT / "config").glob("gpu_*.yaml")), ids=lambda path: path.stem
)
def test_a_memory_preset_changes_precision_and_order_of_computation_only(preset):
    """Presets hold what decides memory; the batch and everything else stay the paper's."""
    paper, found = config.load(ROOT / "params.yaml"), config.load(ROOT / "params.yaml", preset)
    ours, theirs = (c.model_dump() for c in (paper, found))
    for values in (ours, theirs):
        values["generate"].pop("batch")
        method = values["train"]["methods"]["dhdiff"]
        for key in ("checkpointing", "frozen_precision", "offload"):
            method.pop(key)
        for key in ("accumulate", "adam", "precision"):
            method["optim"].pop(key)
    assert ours == theirs
    assert found.train.methods["dhdiff"].optim.batch == 32


def test_garbage_is_not_looked_for_while_packages_load_and_as_usual_from_then_on():
    with quick_imports():
        assert not gc.isenabled()
    frozen = gc.get_freeze_count()
    gc.unfreeze()
    assert gc.isenabled() and frozen > 0


@pytest.mark.parametrize(
    "text, line",
    [
        ("run: {name: 20241125}", "run.name: needs quotes: YAML reads it as a number, 20241125"),
        ("run: {name: 2024-11-25}", "run.name: needs quotes: YAML reads it as a date, 2024-11-25"),
        ("run: {name: no}", "run.name: needs quotes: YAML reads it as a truth value, False"),
        ("run: {name: v1.0}", "run.name: letters, digits, _ and - are allowed"),
        ("run: {name: %s}" % ("n" * 300), "run.name: letters, digits, _ and - are allowed"),
        (
            "prepare: {datasets: {Procedural: {categories: [01, 02]}}}",
            "categories.0: needs quotes: YAML reads it as a number, 1; "
            "prepare.datasets.Procedural.categories.1: needs quotes: YAML reads it as a number, 2$",
        ),
        (
            "prepare: {datasets: {Procedural: {categories: bolt}}}",
            r"categories: a list is needed: \[bolt\]$",
        ),
        (
            "prepare: {datasets: {Procedural: {root: $NO_SUCH/x}}}",
            "root: names a variable that is not set",
        ),
    ],
)
def test_what_yaml_makes_of_a_name_is_told(text, line, tmp_path):
    (tmp_path / "o.yaml").write_text(text)
    with pytest.raises(UserError, match=line):
        config.load(ROOT / "params.yaml", ROOT / "config/smoke.yaml", tmp_path / "o.yaml")


def test_a_root_is_read_as_a_shell_reads_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    for root in ("~/data", "$HOME/data", "${HOME}/data"):
        found = schema.Dataset.model_validate(
            {"layout": "folder", "root": root, "categories": ["gear"]}
        )
        assert found.root == "/home/ann/data"
