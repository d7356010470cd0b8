"""Reading the configuration and a dataset must not import heavy libraries."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "diffusers", "transformers", "peft", "scipy", "pandas", "onnxruntime")


def test_dataset_modules_import_no_heavy_library() -> None:
    modules = "autolora.data.concepts, autolora.data.caption_recipe, autolora.prepare.tagger_base"
    code = f"import sys, {modules}; print([name for name in {HEAVY} if name in sys.modules])"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"
