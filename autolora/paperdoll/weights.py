"""Paths of the synthetic test world's weights, and their hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

VERSION = "paperdoll-v1"  # the weights are frozen, because results with other weights cannot be compared
WEIGHTS = Path(__file__).parent / "weights"
BASE = WEIGHTS / "base"  # a StableDiffusionPipeline folder
CLIP = WEIGHTS / "clip"  # loads as open_clip's `local-dir:`
ATTRIBUTE_CLASSIFIER = WEIGHTS / "oracle.safetensors"
QUICKSTART = Path(__file__).parent / "quickstart"  # the packaged dataset


def weights_hash(root: Path = WEIGHTS) -> str:
    """Return the SHA-256 (first 16 hex digits) over every weight file under `root`, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.safetensors")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
