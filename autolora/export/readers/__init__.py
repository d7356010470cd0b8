"""How each program reads a LoRA file, written from what its own code does.

The readers share no code with the trainer: a file that all of them read alike is right in all of these programs. The
modules `peft` and `diffusers` call those libraries themselves.
"""

from autolora.export.readers import a1111, comfyui, forge, invokeai, kohya
from autolora.export.readers.formulas import LayerReader

PROGRAMS: dict[str, LayerReader] = {
    "A1111": a1111.read_layer,
    "ComfyUI": comfyui.read_layer,
    "Forge": forge.read_layer,
    "InvokeAI": invokeai.read_layer,
    "kohya sd-scripts": kohya.read_layer,
}
