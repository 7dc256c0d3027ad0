"""Downloads, from a hub and a web server that the test starts."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from helixbench import fetch, weights
from helixbench.errors import UserError

REPOSITORY, REVISION = "somebody/stable-diffusion", "4" * 40
FILES = {
    "model_index.json": b"{}",
    "scheduler/scheduler_config.json": b'{"beta_start": 0.00085}',
    "text_encoder/config.json": b"{}",
    "text_encoder/model.safetensors": b"text" * 500,
    "tokenizer/vocab.json": b"{}",
    "tokenizer/merges.txt": b"a b",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": b"unet" * 5000,
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.safetensors": b"vae" * 900,
    "unet/diffusion_pytorch_model.bin": b"pickled",
    "unet/diffusion_pytorch_model.fp16.safetensors": b"half",
    "safety_checker/model.safetensors": b"checker",
}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as its client asks for: the list of a repository with checksums, and its
    files."""

    served: dict[str, bytes] = {}

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path == f"/api/models/{REPOSITORY}/revision/{REVISION}":
            siblings = []
            for name, content in FILES.items():
                large = name.endswith((".safetensors", ".bin"))
                lfs = (
                    {"lfs": {"sha256": digest(content), "size": len(content), "pointerSize": 1}}
                    if large
                    else {}
                )
                blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                siblings.append({"rfilename": name, "size": len(content), "blobId": blob, **lfs})
            return self.answer(
                json.dumps({"id": REPOSITORY, "sha": REVISION, "siblings": siblings}).encode(),
                "application/json",
            )
        name = path.removeprefix(f"/{REPOSITORY}/resolve/{REVISION}/").lstrip("/")
        if name not in self.served:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        return self.answer(self.served[name], "application/octet-stream")

    def answer(self, content: bytes, kind: str):
        self.send_response(200)
        headers = {
            "Content-Type": kind,
            "Content-Length": len(content),
            "X-Repo-Commit": REVISION,
            "ETag": f'"{digest(content)}"',
        }
        for key, value in headers.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(Hub, "served", dict(FILES))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def run(hub: str, out, home):
    command = [
        sys.executable,
        "-m",
        "helixbench.cli",
        "fetch",
        "base",
        "--repository",
        REPOSITORY,
        "--revision",
        REVISION,
        "--out",
        out,
    ]
    offline = {
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": hub,
        "HF_HOME": home,
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }

    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, **offline}
    )


def test_base_is_fetched_whole_and_checked(hub, tmp_path):
    out = tmp_path / "models" / "sd"
    done = run(hub, out, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    found = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    facts = json.loads(found.pop("checksums.json"))
    unwanted = (
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "safety_checker/model.safetensors",
    )
    assert found == {name: content for name, content in FILES.items() if name not in unwanted}
    assert facts["revision"] == REVISION and facts["sha256"] == {
        name: digest(content) for name, content in found.items()
    }
    again = run(hub, out, tmp_path / "home")
    assert again.returncode == 2 and "is there already" in again.stderr


def test_an_altered_file_is_not_taken(hub, tmp_path):
    name = "unet/diffusion_pytorch_model.safetensors"
    Hub.served[name] = FILES[name][:-1] + b"!"
    done = run(hub, tmp_path / "sd", tmp_path / "home")
    assert done.returncode == 2 and not (tmp_path / "sd").exists()
    assert done.stderr.strip().count("\n") == 0 or "Traceback" not in done.stderr
    Hub.served[name] = FILES[name]
    assert run(hub, tmp_path / "sd", tmp_path / "home").returncode == 0, (
        "the next call fetches what was wrong"
    )


def test_without_network_it_says_what_to_put_where(tmp_path):
    done = run("http://127.0.0.1:9", tmp_path / "sd", tmp_path / "home")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert "could not be fetched" in line and f"into {tmp_path / 'sd'}" in line


def test_weights_have_the_digest_that_their_name_begins():
    for name, file in weights.FILES.items():
        known = weights.SHA256[file]
        assert len(known) == 64 and known.startswith(Path(file).stem.rpartition("-")[2]), name


def test_weights_are_checked_by_their_digest(hub, tmp_path, monkeypatch):
    content = b"weights" * 100
    name = f"net-{digest(content)[:8]}.pth"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setitem(weights.FILES, "vgg", name)
    monkeypatch.setitem(weights.SHA256, name, digest(content))
    monkeypatch.setitem(weights.URLS, "vgg", f"{hub}/{REPOSITORY}/resolve/{REVISION}/{name}")
    with pytest.raises(UserError, match="could not be fetched .*put the file at"):
        fetch.scoring_weights("vgg")
    Hub.served[name] = content[:-1] + b"!"
    with pytest.raises(UserError, match="sha256 .*; removed, fetch again"):
        fetch.scoring_weights("vgg")
    assert not list((tmp_path / "hub/checkpoints").glob("*"))
    Hub.served[name] = content
    assert fetch.scoring_weights("vgg").read_bytes() == content
    Hub.served.clear()
    assert fetch.scoring_weights("vgg").is_file(), "nothing to do"
