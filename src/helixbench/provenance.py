"""Whole files only, and where they came from: manifest.json beside every stage's output."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import resource
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from helixbench.errors import UserError


def write_atomic(path: str | Path, write: Callable[[Path], None]) -> None:
    """Call `write` on a temporary sibling, flush it to disk, and rename: the file appears whole or
    not at all.

    The sibling keeps the suffix, so that writers which look at it (PNG, safetensors) work.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        write(temporary)
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


MARK = ".made_by_helixbench"
"""Name of an empty file in a folder whose files may be replaced and removed."""


def claim(out: Path) -> None:
    """Make a folder whose files are a stage's own; UserError for one with files of somebody else.

    Our own are known by a mark, or by the manifest of a stage.
    """
    check_own(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()


def check_own(out: Path) -> None:
    """UserError for a file, and for a folder with files that no stage has written: they would be
    lost.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: a file, not a folder; give a new or an empty folder")
    if out.is_dir() and any(out.iterdir()) and not _is_own(out):
        raise UserError(
            f"{out}: holds files that helixbench did not write; give a new or an empty folder"
        )


def _is_own(folder: Path) -> bool:
    if (folder / MARK).exists():
        return True
    try:
        return "stage" in read_object(folder / "manifest.json", "")
    except UserError:
        return False


def _claim(folder: Path, out: Path) -> int:
    """Make an empty folder of this process alone; returns the descriptor that holds its lock.

    The kernel releases the lock however a process ends, so that what a killed one left is taken
    over. Raises UserError while another process is at work.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise UserError(f"{out}: another process is writing it; wait until it ends") from None
        except OSError:
            pass  # some network file systems lock no folders
        if folder.exists() and os.path.samestat(os.fstat(handle), os.stat(folder)):
            break
        os.close(handle)  # the other process has just ended, and its folder with it
    try:
        check_own(folder)
    except UserError:
        os.close(handle)
        raise
    (folder / MARK).touch()  # a killed process leaves a folder that the next one may clear
    for path in folder.iterdir():
        if path.name == MARK:
            continue
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return handle


@contextmanager
def alone(*folders: Path) -> Iterator[None]:
    """Hold folders, made where they are missing, for as long as the block runs.

    Raises UserError while another process holds one of them. The kernel lets go however a process
    ends.
    """
    with ExitStack() as held:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder, os.O_RDONLY)
            held.callback(os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{folder}: another process is at work on it; wait until it ends, or end it"
                ) from None
            except OSError:
                pass  # some network file systems lock no folders
        yield


@contextmanager
def whole_folder(out: str | Path) -> Iterator[Path]:
    """Give a temporary sibling of `out` to fill, and put it in `out`'s place when the block
    succeeds: `write_atomic` for folders.

    When the block fails the sibling is removed and `out` is what it was before, usually nothing.
    What an earlier, killed process left beside `out` is cleared first. Raises UserError while
    another process is writing the same folder, and for an `out` with files of somebody else.
    """
    out = Path(out)
    out = out.resolve() if out.is_symlink() else out  # the link stays, its folder is filled
    temporary, old = (out.with_name(f".{out.name}.{suffix}") for suffix in ("tmp", "old"))
    for folder in (out, old):
        check_own(folder)
    if stranger := next(_strangers(out), None):
        raise UserError(f"{stranger}: not written by helixbench, and would be lost; move it away")
    made = [parent for parent in out.parents if not parent.exists()]
    lock = _claim(temporary, out)
    shutil.rmtree(old, ignore_errors=True)
    try:
        yield temporary
        (temporary / MARK).touch()  # unless removed: by it a folder without a manifest is known
        if out.exists():
            os.replace(out, old)
        os.replace(temporary, out)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:  # innermost first; one that something else filled meanwhile stays
            try:
                parent.rmdir()
            except OSError:
                break
        raise
    finally:
        os.close(lock)


def write_text(path: str | Path, text: str) -> None:
    """Atomic UTF-8 text file."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Atomic, sorted, indented JSON."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading a file of JSON, and taking what it should hold out of it, can raise."""


def check_regular(path: Path) -> None:
    """OSError for a pipe or a device: reading it could wait for ever, or never end."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError("neither a file nor a folder")


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError for a key that stands twice in it, of which one would be lost."""
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{max(keys, key=keys.count)} stands twice")
    return found


def read_object(path: Path, advice: str, take: Callable[[dict], Any] = dict) -> Any:
    """What `take` makes of the JSON object in a file, by default a dictionary.

    Raises UserError with the file and `advice` when it is missing or damaged, is nested too deep,
    is no object, or `take` does not find there what it looks for.
    """
    try:
        check_regular(path)
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_each_key_once)
        if not isinstance(value, dict):
            raise TypeError("not an object")
        return take(value)
    except DAMAGED as error:
        said = (str(error) or type(error).__name__).splitlines()[0].partition(":")[0]
        lacks = f"no {error}" if isinstance(error, KeyError) else said
        raise UserError(f"{path}: missing or damaged ({lacks}); {advice}") from None


def write_if_changed(path: str | Path, text: str) -> bool:
    """Write only when the content differs, so that the modification time means a change; True if
    written.
    """
    path = Path(path)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    write_text(path, text)
    return True


def sha256(path: str | Path) -> str:
    """Hex sha256 of a file."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_tree(folder: str | Path, exclude: Iterable[str] = ()) -> dict[str, str]:
    """Relative path -> sha256 for every file below a folder, sorted."""
    folder = Path(folder)
    files = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: sha256(p) for name, p in files.items() if name not in exclude}


def outputs(manifest: str | Path) -> dict[str, str]:
    """The files that a manifest.json vouches for, as they still are: relative path -> sha256,
    without its times and versions.

    UserError when there is no such manifest (it is the last file of a stage, so the stage did not
    end), for a file that is missing or altered, and for one that the manifest does not know.
    """
    for line in differences(manifest := Path(manifest)):
        raise UserError(line)
    return _vouched(manifest)


def _vouched(manifest: Path) -> dict[str, str]:
    return read_object(manifest, "run its stage again", lambda made: dict(made["files"]))


def check_recorded(file: Path, record: Path) -> None:
    """UserError for a file that is not as its stage recorded it in a JSON file beside it."""
    if _vouched(record).get(file.name) != sha256(file):
        raise UserError(
            f"{file}: altered since {record.name} was written; delete it and run the workflow again"
        )


def differences(manifest: Path) -> Iterator[str]:
    """A line for each file that is not as a manifest.json says: missing, altered, or unknown to
    it.
    """
    files = _vouched(manifest)
    for name, digest in files.items():
        file = manifest.parent / name
        if not file.is_file() or sha256(file) != digest:
            yield (
                f"{file}: missing or altered since {manifest.name} was written; run its stage again"
            )
    for file in _strangers(manifest.parent):
        yield f"{file}: not in {manifest.name}, so that nobody knows where it is from; remove it"


def _strangers(folder: Path) -> Iterator[Path]:
    """Files of a stage's folder that its manifest.json does not know; none where it names none."""
    try:
        files = _vouched(folder / "manifest.json")
    except UserError:
        return
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        known = name in files or name in ("manifest.json", "stats.jsonl")
        if file.is_file() and not known and not file.name.startswith("."):
            yield file


_PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "lpips",
    "torch-fidelity",
    "segmentation-models-pytorch",
    "timm",
    "numpy",
)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions(packages: Iterable[str] = _PACKAGES) -> dict[str, str]:
    """Installed versions of helixbench, Python and the packages that can change a number."""
    from helixbench import __version__

    found = {name: version for name in packages if (version := _version(name))}
    return {"helixbench": __version__, "python": platform.python_version(), **found}


def commit() -> str | None:
    """Commit of the source tree that this package runs from, `-dirty` with changes; None when
    installed otherwise.
    """
    folder = Path(__file__).parent
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


class Cost:
    """Filled in by `measured`: wall and CPU seconds, peak resident memory [MiB]."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.cpu = time.process_time()

    def as_dict(self) -> dict[str, float]:
        """Cost so far."""
        return {
            "wall_s": round(time.perf_counter() - self.start, 2),
            "cpu_s": round(time.process_time() - self.cpu, 2),
            "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        }


@contextmanager
def manifest(path: str | Path, stage: str, config: Any, **facts: Any):
    """Measure a stage and write its manifest.json when it succeeds; the dictionary given can be
    added to.

    `config` is the stage's Slice. A stage whose work other processes did gives their `cost`. The
    manifest is the last file a stage writes, so that it vouches for the others.
    """
    cost = Cost()
    Path(path).unlink(missing_ok=True)  # nothing vouches for the files while they change
    record: dict[str, Any] = {
        "stage": stage,
        "commit": commit(),
        "config_digest": config.digest,
        "config": dict(config._values),
        **facts,
    }
    yield record
    write_json(path, {"cost": cost.as_dict(), **record, "versions": versions()})


@contextmanager
def stage_run(out: Path, state: Path, stage: str, config: Any, **facts: Any):
    """A stage that trains: `manifest`, and when it succeeds the journal of `state` is copied to
    out/stats.jsonl, every other file below `out` is hashed into the manifest's `files`, and `state`
    is removed, in this order. Both folders are this process's alone meanwhile; UserError for one
    with files of somebody else.

    out: folder of the stage's files; state: folder of the resume state, which holds stats.jsonl.
    """
    claim(state)
    claim(out)
    with alone(state, out), manifest(out / "manifest.json", stage, config, **facts) as record:
        yield record
        write_text(out / "stats.jsonl", (state / "stats.jsonl").read_text(encoding="utf-8"))
        record["files"] = sha256_tree(out, exclude=("manifest.json", "stats.jsonl", MARK))
    # The results are whole: what is left of the state would only make a forced rerun do nothing.
    shutil.rmtree(state)
