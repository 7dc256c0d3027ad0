"""The rules of the house: who may import whom, and what may not be there at all."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import helixbench

ROOT = Path(helixbench.__file__).parent
CORE = [
    "errors",
    "provenance",
    "schema",
    "config",
    "weights",
    "fetch",
    "protocol",
    "catalogue",
    "records",
    "pictures",
    "metrics",
    "engine",
]
STAIRS = [*CORE, "datasets", "prepare", "diffusion", "methods", "train", "generate"]
ASIDE = ["score", "detect", "report"]
FRONTS = ["anomalib"]
"""What other packages import of us: above the stairs, as `cli` is."""
PICKLE_ERRORS = {
    "pickle.UnpicklingError",
    "pickle.PickleError",
}  # torch.load raises them for a damaged file
FILES = sorted(ROOT.rglob("*.py"))


def imports(path):
    """Dotted names imported anywhere in a file, also inside functions and by `from package import
    module`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def rooms_imported(path):
    names = (name.split(".") for name in imports(path))
    found = {parts[1] for parts in names if parts[0] == "helixbench" and len(parts) > 1}
    return {name for name in found if (ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file()}


def ids(path):
    return str(path.relative_to(ROOT))


def test_every_room_has_its_place():
    assert {room(path) for path in FILES} - {"__init__", "__main__"} == {
        *STAIRS,
        *ASIDE,
        *FRONTS,
        "cli",
    }


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_imports_go_downwards_only(path):
    here = room(path)
    if here == "cli":
        return
    if here == "report":  # which asks the others for the facts of their metrics
        allowed = {*CORE, *ASIDE}
    elif here in FRONTS:
        allowed = set(STAIRS)
    elif here in ASIDE:
        allowed = {*CORE, here}
    elif here in STAIRS:
        allowed = set(STAIRS[: STAIRS.index(here) + 1])
    else:
        allowed = set()
    assert rooms_imported(path) <= allowed


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_no_workflow_engine_and_no_unsafe_reading(path):
    names = set(imports(path))
    roots = {name.split(".")[0] for name in names}
    assert not roots & {"snakemake", "dvc"}, (
        "rules call the command line, never the other way round"
    )
    assert not roots & {"dill", "cloudpickle", "joblib", "shelve", "marshal"}
    assert {name for name in names if name.startswith("pickle")} <= {"pickle", *PICKLE_ERRORS}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle":
            assert ast.unparse(node) in PICKLE_ERRORS, "an unpickled file runs its own code"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert called.rsplit(".", 1)[-1] != "read_pickle"
        assert called not in ("yaml.load", "yaml.unsafe_load", "eval", "exec", "os.system")
        assert keywords.get("allow_pickle", "False") == "False"
        assert keywords.get("shell", "False") == "False"
        if called == "Image.open":
            assert "formats" in keywords, "some of Pillow's decoders start programs"
        if called == "AutoTokenizer.from_pretrained":
            assert keywords.get("trust_remote_code") == "False"
        if called in ("torch.load", "torch.hub.load_state_dict_from_url"):
            assert keywords.get("weights_only") == "True", (
                "torch.load without weights_only=True runs code from the file"
            )


@pytest.mark.parametrize(
    "code",
    [
        "import helixbench.cli",
        "import helixbench.config, helixbench.records, helixbench.provenance, helixbench.errors",
        "import helixbench.report.published, helixbench.report.tables, helixbench.report.plots",
        "import sys; sys.argv = ['helixbench', '--help']\n"
        "from helixbench.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert stop.code in (0, None), stop.code",
    ],
    ids=["cli", "core", "report", "help"],
)
def test_no_torch_where_a_user_only_asks(code):
    heavy = "{'torch', 'torchvision', 'diffusers', 'transformers', 'snakemake'}"
    check = f"\nimport sys\nfound = {heavy} & set(sys.modules)\nassert not found, found"
    done = subprocess.run(
        [sys.executable, "-c", code + check], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
