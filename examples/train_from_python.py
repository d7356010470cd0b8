"""Trains a LoRA from Python, in the cells of a notebook; every line runs as it is on the synthetic test world.

python examples/train_from_python.py [FOLDER]
"""

# %% Settings: your folder of captioned images, a base model and how checkpoints are scored
import sys
from pathlib import Path

import autolora

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/from-python")
small = {"scoring.num_negative_renders": 48, "model.num_class_images": 16, "scoring.n_bootstrap": 50}
settings = autolora.configure("quickstart", values={"cache": folder / "cache", **small})

# %% A recipe: a preset with some keys set
run = autolora.recipe("doll-adamw", dim=8, alpha=8, epochs=2, images_per_concept=40)

# %% Load, train, and look at each checkpoint as it is scored
session = autolora.open_session(settings, [run], on_progress=lambda update: None)
for result in autolora.train_recipe(session, run, folder):
    print(f"after {result.step} images: {result.summary}")

# %% Export the best checkpoint, and see which programs read the file
exported = autolora.export_best(session, run, folder)
print(exported.path, "weight", exported.checkpoint.weight)
for program in autolora.verify_lora(settings, exported.path).results:
    print(program.program, program.verdict)
