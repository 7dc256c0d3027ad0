"""A real one-node Slurm for tests: munged, slurmctld and slurmd in a folder of their own, on ports
of their own.

Nothing of the machine is configured: the node claims more cores and memory than there are, and four
GPUs that are only counted.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

BIN = Path(sys.executable).parent
SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
PROGRAMS = (
    "munged",
    "slurmctld",
    "slurmd",
    "sbatch",
    "srun",
    "squeue",
    "scancel",
    "scontrol",
    "sinfo",
)

CONFIGURATION = """
ClusterName=helixbench
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
KillWait=5
MinJobAge=3600
JobRequeue=0
NodeName=localhost NodeAddr=127.0.0.1 CPUs=64 RealMemory=512000 Gres=gpu:4 State=UNKNOWN
PartitionName=cpu Nodes=localhost Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=localhost MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """Programs of Debian's slurm-wlm and munge that are not here."""
    return [name for name in PROGRAMS if not shutil.which(name, path=SEARCH)]


def _free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def running():
    """Start a cluster, yield the environment variables of its clients, stop it."""
    folder = Path(
        tempfile.mkdtemp(prefix="slurm-", dir="/tmp")
    )  # short: a socket's path has at most 108 letters
    folder.chmod(0o755)
    daemons: dict[str, subprocess.Popen] = {}
    environment = {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
    }

    def start(name: str, *arguments: str) -> None:
        command = [shutil.which(name, path=SEARCH), *arguments]
        with open(folder / f"{name}.out", "w") as log:
            daemons[name] = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdout=log,
                stderr=log,
                cwd=folder,
                start_new_session=True,
            )

    def stop(*names: str) -> None:
        for name in names:
            daemons[name].send_signal(signal.SIGTERM)
        for name in names:
            try:
                daemons[name].wait(15)
            except subprocess.TimeoutExpired:
                daemons[name].kill()
                daemons[name].wait()
            del daemons[name]

    def ended() -> list[str]:
        return [name for name, daemon in daemons.items() if daemon.poll() is not None]

    try:
        for name in ("state", "spool", "bin"):
            (folder / name).mkdir()
        # Inside a job Snakemake takes SLURM_CONF out of the environment before it calls srun:
        # clusters have it in /etc.
        srun = folder / "bin/srun"
        srun.write_text(
            f"#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which('srun', path=SEARCH)} "
            f'"$@"\n'
        )
        srun.chmod(0o755)
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o600)
        user = pwd.getpwuid(os.getuid()).pw_name
        for number in range(4):
            (folder / f"gpu{number}").touch()  # Slurm believes in GPUs whose device files exist
        (folder / "gres.conf").write_text(f"NodeName=localhost Name=gpu File={folder}/gpu[0-3]\n")
        places = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "seed", "log")]
        start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *places)
        _until(lambda: (folder / "munge.socket").exists(), folder, "munged")
        for attempt in range(5):
            (folder / "slurm.conf").write_text(
                CONFIGURATION.format(folder=folder, ports=_free_ports(2), user=user)
            )
            start("slurmctld", "-D")
            start("slurmd", "-D", "-N", "localhost")
            _until(
                lambda: ended() or "idle" in _output(["sinfo", "-h", "-o", "%T"], environment),
                folder,
                "a node that is idle",
            )
            if not ended():
                break
            assert attempt < 4, _logs(folder)
            stop(
                "slurmd", "slurmctld"
            )  # somebody else has taken a port in between: again with others
        yield environment
    finally:
        stop(*reversed(daemons))
        shutil.rmtree(folder, ignore_errors=True)


def _logs(folder: Path) -> str:
    files = sorted(folder.glob("*.out")) + sorted(folder.glob("*.log"))
    return "".join(f"\n{file.name}:\n{file.read_text()[-1500:]}" for file in files)


def _output(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    ).stdout


def _until(there, folder: Path, what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        if time.monotonic() > deadline:
            raise AssertionError(f"Slurm: no {what} after {seconds:.0f} s{_logs(folder)}")
        time.sleep(0.1)
