"""Small disks of their own for tests: full ones, read-only ones.

Mounting takes a right that only root has. Where the tests run without it, those marked `mounts` run
in a child of their own under `unshare -Urm`, all of one file together. Where that is not possible
either, they are skipped; in CI they fail.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMESPACE = ["unshare", "-Urm"]

_REMOUNT, _READ_ONLY, _DETACH = 32, 1, 2


def _mount(*arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(*(a.encode() if isinstance(a, str) else a for a in arguments)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextmanager
def disk(folder: Path, megabytes: float = 600):
    """A small disk of its own, mounted at `folder`."""
    folder.mkdir(exist_ok=True)
    _mount("tmpfs", str(folder), "tmpfs", 0, f"size={int(megabytes * 2**20)}")
    try:
        yield folder
    finally:
        ctypes.CDLL(None).umount2(str(folder).encode(), _DETACH)


def read_only(disk: Path) -> None:
    """From now on nothing can be written there."""
    _mount("tmpfs", str(disk), "tmpfs", _REMOUNT | _READ_ONLY, "")


def fill(folder: Path, leave: int = 0) -> Path:
    """A file that takes all of the disk but `leave` bytes."""
    ballast = folder / "ballast"
    left = os.statvfs(folder)
    with open(ballast, "wb") as handle:
        os.posix_fallocate(handle.fileno(), 0, max(4096, left.f_bavail * left.f_frsize - leave))
    return ballast


@functools.cache
def _can_mount(*before: str) -> bool:
    try:
        return not subprocess.run(
            [*before, "unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True
        ).returncode
    except FileNotFoundError:
        return False


@functools.cache
def _in_a_namespace(file: str) -> tuple[set[str], str]:
    """Tests of a file that mount and passed in a namespace where they may, and what pytest said."""
    command = [
        *NAMESPACE,
        sys.executable,
        "-m",
        "pytest",
        "-rA",
        "-m",
        "mounts",
        "-p",
        "no:cacheprovider",
        str(ROOT / file),
    ]
    told = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ).stdout
    return set(re.findall(r"^PASSED (.+)$", told, flags=re.M)), told


def mounts(test):
    """Decorator of a test that mounts: it runs here, or in a namespace where it may."""

    @functools.wraps(test)
    def here_or_in_a_namespace(**arguments):
        if _can_mount():
            return test(**arguments)
        if not _can_mount(*NAMESPACE):
            (pytest.fail if os.environ.get("CI") else pytest.skip)(
                "no file system can be mounted here, nor under `unshare -Urm`"
            )
        name = os.environ["PYTEST_CURRENT_TEST"].removesuffix(" (call)")
        passed, told = _in_a_namespace(name.partition("::")[0])
        assert name in passed, told[-6000:]

    return pytest.mark.mounts(here_or_in_a_namespace)
