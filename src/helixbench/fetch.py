"""Downloads, each checked against a checksum before it is put in its place: the base model, weights
of scoring networks.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import urllib.request
from pathlib import Path

from helixbench import provenance, weights
from helixbench.errors import UserError

log = logging.getLogger(__name__)

BASE_FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/*",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)
"""What of a Stable Diffusion repository is needed: no pickled weights, no half-precision twins, no
safety checker."""


def _matches(file: Path, entry) -> bool:
    """Whether a file is the one that the repository lists: by sha256 for large files, by git's blob
    hash for others.
    """
    if entry.lfs is not None:
        return provenance.sha256(file) == entry.lfs.sha256
    content = file.read_bytes()
    return (
        hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        == entry.blob_id
    )


def base(repository: str, revision: str, out: Path) -> None:
    """Fetch a diffusers-format Stable Diffusion 1.x at a pinned revision (a full commit hash) into
    the folder `out`.

    A broken download is taken up where it stopped; `out` appears whole, with checksums.json
    (repository, revision, sha256 of each file). Raises UserError without network, for an unknown
    revision, and for a file that is not what the repository lists.
    """
    from fnmatch import fnmatch

    from huggingface_hub import HfApi, hf_hub_download

    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: is there already; remove it to fetch it again")
    part = out.with_name(f".{out.name}.part")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line a request
    try:
        listed = HfApi().model_info(repository, revision=revision, files_metadata=True).siblings
        entries = {
            entry.rfilename: entry
            for entry in listed
            if any(fnmatch(entry.rfilename, pattern) for pattern in BASE_FILES)
        }
        for name in sorted(entries):
            hf_hub_download(repository, name, revision=revision, local_dir=part)
    except Exception as error:  # the hub's client raises what its HTTP library does
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{repository}@{revision}: could not be fetched ({reason}); on a machine without "
            f"network put a diffusers-format "
            f"Stable Diffusion v1.5 (unet/ vae/ text_encoder/ tokenizer/ scheduler/ "
            f"model_index.json) into {out}"
        ) from None
    for name, entry in entries.items():
        if not _matches(part / name, entry):
            (part / name).unlink()
            raise UserError(
                f"{part / name}: not the file that {repository}@{revision} lists; removed, fetch "
                f"again"
            )
    shutil.rmtree(part / ".cache", ignore_errors=True)
    facts = {
        "repository": repository,
        "revision": revision,
        "sha256": provenance.sha256_tree(part, exclude=("checksums.json",)),
    }
    provenance.write_json(part / "checksums.json", facts)
    os.replace(part, out)
    log.info("%s@%s: %d files in %s", repository, revision[:8], len(entries), out)


def scoring_weights(name: str) -> Path:
    """Fetch the weights of a scoring network to where its package looks for them; nothing to do
    when they are there.

    Raises UserError without network, and for a file of another sha256.
    """
    file, url = weights.weights_file(name), weights.URLS[name]
    wanted = weights.SHA256[file.name]
    if file.is_file():
        return file
    part = file.with_name(f".{file.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, open(part, "wb") as target:
            shutil.copyfileobj(answer, target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"{url}: could not be fetched ({error}); put the file at {file}") from None
    found = provenance.sha256(part)
    if found != wanted:
        part.unlink()
        raise UserError(f"{url}: sha256 {found}, not {wanted}; removed, fetch again")
    os.replace(part, file)
    log.info("%s: weights of %s in %s", url, name, file)
    return file
