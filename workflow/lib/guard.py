"""What is asked of the run folder and the machine before the first job.

Every question belongs to the rule whose jobs need the answer, and is asked when Snakemake plans
such a job: by an input function. A target that plans no such job does not ask. Snakemake's settings
(dry run, touch) are known by then; they are not while the Snakefile is read.
"""

from __future__ import annotations

import csv
import fcntl
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Collection
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from helixbench.config import digest, slice_config
from helixbench.datasets import fingerprint
from helixbench.datasets.layout import Layout
from helixbench.errors import UserError, storage_line
from helixbench.pictures.files import is_picture
from helixbench.provenance import write_if_changed
from helixbench.schema import Config


@contextmanager
def stopping():
    """A UserError, or a full or read-only disk, ends Snakemake with one line."""
    try:
        yield
    except UserError as error:
        sys.exit(f"helixbench: {error}")
    except OSError as error:
        line = storage_line(error)
        if not line:
            raise
        sys.exit(f"helixbench: {line}")


class Guard:
    """Lock, clock, configuration slices and fingerprints of one run folder.

    workflow: Snakemake's; only its settings are read. Job processes, which read the Snakefile
    again, ask nothing and write nothing: the workflow that started them has.
    """

    def __init__(self, workflow, config: Config, run: str, scratch: str):
        self.workflow, self.config = workflow, config
        self.run, self.scratch = run, Path(scratch)
        self.clock = self.scratch / "clock"  # its modification time: when this run last worked
        self.lock: IO | None = None
        self.begun = False
        self.asked: set[str] = set()
        if workflow.is_main_process:  # where Snakemake cannot write, it fails with a stack
            own = Path(".snakemake")
            with stopping(), TemporaryFile(dir=own if own.is_dir() else "."):
                pass

    @property
    def looks_only(self) -> bool:
        """A dry run, a summary or a graph: no job will run."""
        return self.workflow.executor_plugin is None or self.workflow.dryrun

    # ---------------------------------------------------------------- questions of the rules

    def config_slice(
        self,
        name: str,
        *keys: str,
        optional: tuple[str, ...] = (),
        result: str = "",
        needs: Callable[..., None] | None = None,
    ) -> Callable[..., str]:
        """Input function: the file that holds exactly the values at these dotted keys.

        name, keys, result may have wildcards. The file is written when a job is planned, only where
        its content changes. optional: keys that are left out while they are null, so that a setting
        that a run does not use leaves what was made before it existed. result: output of the job,
        which is checked against these values where it exists. needs: called with the wildcards;
        raises UserError for what the job lacks.
        """
        file = f"{self.run}/config/{name}.json"

        def written(wildcards) -> str:
            path = file.format(**wildcards)
            filled = lambda names: [key.format(**wildcards) for key in names]
            used = slice_config(self.config, filled(optional))
            used = {key: value for key, value in used.items() if value is not None}
            with self._planning(path) as first:
                if first:
                    values = slice_config(self.config, filled(keys)) | used
                    self._write(path, json.dumps(values, indent=2, sort_keys=True) + "\n")
                    if needs:
                        needs(wildcards)
            if result:
                made = result.format(**wildcards)
                with self._planning(made) as first:
                    if first:
                        self._check_result(Path(made), Path(path), used)
            return path

        return written

    def raw_version(self, wildcards) -> str:
        """Input function: the file that changes when the raw pictures do.

        The list of what was drawn, or a fingerprint of the pictures that are read. Raises UserError
        for a raw folder that is missing or not as its layout promises.
        """
        name, category = wildcards.dataset, wildcards.category
        dataset = self.config.prepare.datasets[name]
        layout = Layout.named(dataset.layout)
        if layout.drawn:
            return f"{self.run}/prepare/raw/{name}/{category}.csv"
        path, root = f"{self.run}/config/data/{name}/{category}.json", Path(dataset.root)
        with self._planning(path) as first:
            if first:
                layout.check(root, [category], name)
                cache = self.scratch / "fingerprints" / name / f"{category}.json"
                shared = layout.shared_files(root, category)
                if listed := dataset.list_of(category):
                    shared = [*shared, listed]
                self._write(path, fingerprint.fingerprint(root, category, cache, shared))
        return path

    def base_version(self, wildcards=None) -> str:
        """Input function: the file that changes when the downloaded base model does.

        Raises UserError where there is none.
        """
        path, base = f"{self.run}/config/base.json", Path(self.config.train.base_folder)
        with self._planning(path) as first:
            if first:
                if not (base / "model_index.json").is_file():
                    raise UserError(
                        f"{base}: no model_index.json; run `snakemake --cores 1 fetch_base` (4 "
                        "GB), put a diffusers-format Stable Diffusion v1.5 there (unet/ vae/ "
                        "text_encoder/ tokenizer/ scheduler/), name its folder in "
                        "train.pretrained.path, or set train.base: scratch"
                    )
                cache = self.scratch / "fingerprints" / "base.json"
                every_file = fingerprint.fingerprint(
                    base.parent, base.name, cache, wanted=lambda name: True
                )
                self._write(path, every_file)
        return path

    def joint_sources(self, wildcards=None) -> list[str]:
        """Input function: the files that change when the textures and the base that a joint base is
        trained with do.

        Raises UserError where a folder of them is missing.
        """
        joint = self.config.train.joint
        textures = "write pictures there with `helixbench fetch textures`, or set photos: null"
        base = "name the folder of a diffusers-format base, or set start: null"
        sources = (
            ("photos", joint.photos, is_picture, textures),
            ("start", joint.start, lambda name: True, base),
        )
        return [self._source(*source) for source in sources if source[1]]

    def _source(self, name: str, place: str, wanted: Callable[[str], bool], advice: str) -> str:
        """The file that changes when the wanted files of a folder do."""
        path, folder = f"{self.run}/config/joint_{name}.json", Path(place)
        with self._planning(path) as first:
            if first:
                there = os.scandir(folder) if folder.is_dir() else ()
                if name == "start" and not (folder / "model_index.json").is_file():
                    raise UserError(f"{folder}: no model_index.json; {advice} (train.joint.start)")
                if not any(wanted(entry.name) for entry in there):
                    raise UserError(f"{folder}: no pictures; {advice} (train.joint.{name})")
                cache, whole = (
                    self.scratch / "fingerprints" / f"joint_{name}.json",
                    folder.absolute(),
                )
                text = fingerprint.fingerprint(
                    whole.parent, whole.name, cache, wanted=lambda file: wanted(file)
                )
                self._write(path, text)
        return path

    def job_list(self, files: list[str]) -> Callable[..., str]:
        """Input function: the file that names what a whole run leaves, for `helixbench verify`."""
        path = f"{self.run}/config/jobs.json"
        names = sorted(os.path.relpath(file, self.run) for file in files)

        def written(wildcards) -> str:
            with self._planning(path) as first:
                if first:
                    self._write(path, json.dumps({"files": names}, indent=2) + "\n")
            return path

        return written

    # ---------------------------------------------------------------- the run folder

    @contextmanager
    def _planning(self, path: str):
        """Whether something is to be asked and written for this path: once, and by the workflow
        itself. The first question of all takes the lock and looks at the clock.
        """
        first = self.workflow.is_main_process and path not in self.asked
        self.asked.add(path)
        with stopping():
            if first and not self.begun:
                self.lock = self._hold()
                self._check_clock()
                self.begun = True
            yield first

    def _hold(self) -> IO | None:
        """Hold the run folder for as long as this process lives; None when only looking beside a
        workflow at work.

        Snakemake locks files only when its jobs begin. Slices are written before that: a second
        workflow with another configuration would change what the jobs of the first one read. The
        kernel lets go also after a SIGKILL.
        """
        try:
            self.scratch.mkdir(parents=True, exist_ok=True)
            lock = open(self.scratch / "workflow.lock", "a+")
        except OSError:
            if self.looks_only:  # at results that nobody can write, for example
                return open(os.devnull)
            raise
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if self.looks_only:
                return None
            lock.seek(0)
            raise UserError(
                f"{self.run}: another workflow ({lock.read().strip()}) is making it; wait for its "
                "end, or give this one a run.name"
            ) from None
        with self._tolerant():
            os.ftruncate(lock.fileno(), 0)
            os.write(lock.fileno(), f"process {os.getpid()} on {platform.node()}\n".encode())
        return lock

    def _tolerant(self):
        """A run that only looks goes on where it cannot write."""
        return suppress(OSError) if self.looks_only else nullcontext()

    def _check_clock(self) -> None:
        """UserError when the clock went back since this run last worked: what changes now would
        look older than what was made of it.
        """
        now = time.time()
        behind = self.clock.stat().st_mtime - now if self.clock.is_file() else 0
        if behind > 120 and not self.workflow.touch:
            raise UserError(
                f"the clock is {behind / 3600:.1f} h behind the last run of {self.run}: what "
                "changes now would look old and be kept. Set it right or, if it is right now, run "
                "the same command once with --touch --forceall"
            )
        with self._tolerant():
            for file in Path(self.run, "config").rglob("*.json"):
                # Snakemake deletes an output that it touches and then finds older than an input.
                if file.stat().st_mtime > now:
                    file.touch()
            self.end()

    def end(self) -> None:
        """Set the clock, at the end of the work; the disk may be what ended it."""
        with suppress(OSError):
            self.clock.touch()

    def _write(self, path: str, text: str) -> None:
        """Write what jobs read where it changes; UserError when another workflow is making this run
        from something else.
        """
        file = Path(path)
        if self.lock is None and file.is_file() and file.read_text(encoding="utf-8") != text:
            raise UserError(
                f"{path}: another workflow with another configuration is reading it; wait for its "
                "end, or set run.name"
            )
        write_if_changed(path, text)

    def _check_result(self, result: Path, values: Path, used: Collection[str]) -> None:
        """UserError for a result of other values that would pass for new: it is to be touched, or
        is newer than the values.

        Modification times lie after `dvc pull`, `rsync` or `cp`; what DVC then locks would not be
        what its parameters say.
        """
        try:
            hides = self.workflow.touch or result.stat().st_mtime > values.stat().st_mtime
            if not hides or self._made_with_these(result, used):
                return
        except (FileNotFoundError, NotADirectoryError):
            return  # not made yet
        except (ValueError, KeyError, TypeError, StopIteration):
            pass  # damaged
        raise UserError(
            f"{result}: damaged, or made with other parameters than these; go back to those, or "
            "delete it to make it again"
        )

    def _made_with_these(self, result: Path, used: Collection[str]) -> bool:
        """Whether the record of a result has the values of the configuration; used: keys that it
        must have besides its own.
        """
        if result.stem != "manifest":  # score files are their own record
            with open(result, newline="", encoding="utf-8") as handle:
                recorded = next(csv.DictReader(handle))["config_digest"]
            keys = ["run.seed", "run.threads", "score"]
        else:
            record = json.loads(result.with_name("manifest.json").read_text(encoding="utf-8"))
            keys, recorded = {*record["config"], *used}, record["config_digest"]
        now = slice_config(self.config, keys)
        return recorded == digest(json.loads(json.dumps(now)))


def parts_of(manifest: Path) -> int:
    """Number of shards that made the pairs of a manifest.json; 0 where there is none to tell."""
    try:
        return int(json.loads(manifest.read_text(encoding="utf-8"))["parts"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
