"""One job a GPU on a node without a scheduler: leases by file lock, which the kernel releases
however a process ends.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from pathlib import Path

LEASES = Path(os.environ.get("HELIXBENCH_LEASES") or "/tmp/helixbench-gpu")
"""Lock files of the GPUs of this node, shared by all its users; node-local, whatever folder the run
is in.

Not in TMPDIR: jobs that have different ones share GPUs none the less.
"""

_HELD: list[int] = []


def _make_folder() -> None:
    """A folder as /tmp is, which appears with its rights: everybody may add a file, nobody may
    remove those of others.
    """
    LEASES.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".helixbench-gpu", dir=LEASES.parent))
    try:
        fresh.chmod(0o1777)
        fresh.rename(LEASES)  # over one that another process has just made, as long as it is empty
    except OSError:
        fresh.rmdir()
        if not LEASES.is_dir():
            raise


def _open(path: Path) -> int:
    """Descriptor of a lock file, also of one that another user made: a lock needs no right to
    write.
    """
    while True:
        try:
            return os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            if not LEASES.is_dir():
                _make_folder()
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.fchmod(handle, 0o644)  # whatever the umask
            return handle
        except (
            FileExistsError,
            FileNotFoundError,
        ):  # another process has made the file, or the folder, in between
            pass


def lease(count: int, poll_s: float = 1.0) -> int:
    """Number of a GPU that no other process has leased; waits until one of `count` is free.

    Numbers count the GPUs that CUDA_VISIBLE_DEVICES names, and locks go by these names. The lock is
    held until the process ends; processes that it starts do not inherit it.
    """
    visible = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))).split(
        ","
    )
    while True:
        for number, identity in enumerate(visible[:count]):
            handle = _open(LEASES / f"{identity.strip()}.lock")
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                continue
            _HELD.append(handle)
            return number
        time.sleep(poll_s)
