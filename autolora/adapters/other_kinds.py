"""The change of weight of the kinds that autolora reads from files and does not train: GLoRA, OFT and BOFT.

Formulas of LyCORIS 4; a rotation R turns the outputs of a layer, W becomes R W.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

GLORA = ("a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight")
ROTATIONS = ("oft_blocks", "oft_diag", "rescale")
OTHER_PARTS = (*GLORA, *ROTATIONS, "diff", "scalar")


def glora_change(parts: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    """Return (W a1 a2 + b1 b2) alpha / rank, or (W a2 a1 + b2 b1) alpha / rank in files of LyCORIS' first versions."""
    a1, a2, b1, b2 = (parts[name] for name in GLORA[:4])
    if len(b1) != len(weight) or b1.shape[1] != len(b2):
        a1, a2, b1, b2 = a2, a1, b2, b1
    rank = len(a2)
    weight = weight.float()
    turned = torch.einsum("oi...,ir,rj->oj...", weight, a1.flatten(1), a2.flatten(1)).flatten(1)
    if "bm.weight" in parts:
        added = torch.einsum("or,rskl,si->oikl", b1.flatten(1), parts["bm.weight"], b2.flatten(1)).flatten(1)
    else:
        added = b1.flatten(1) @ b2.flatten(1)
    scale = float(parts["alpha"]) / rank if "alpha" in parts else 1.0
    change: Tensor = scale * (turned + added)
    return change


def rotation_change(parts: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    """Return (R W) rescale - W; R has blocks on its diagonal (OFT), or is a product of permuted such matrices (BOFT).

    Each block is (I + Q) (I - Q)^-1 with a skew-symmetric Q, whose norm is at most alpha times the number of outputs.
    `oft_diag` of LyCORIS' first versions holds the blocks themselves.
    """
    matrix = weight.float().flatten(1)
    limit = float(parts.get("alpha", torch.tensor(0.0))) * len(matrix)
    rotations = parts["oft_diag"] if "oft_diag" in parts else cayley(parts["oft_blocks"], limit)
    if rotations.dim() == 3:
        count, side = rotations.shape[:2]
        rotated = torch.einsum("knm,kni->kmi", rotations, matrix.view(count, side, -1)).reshape(matrix.shape)
    else:
        rotated = _butterfly(rotations, matrix)
    if "rescale" in parts:
        rotated = rotated * parts["rescale"].reshape(-1, 1)
    return rotated - matrix


def cayley(blocks: Tensor, limit: float) -> Tensor:
    """Return (I + Q) (I - Q)^-1 of each block's skew-symmetric part Q, all of them of a norm of at most `limit`."""
    skew = blocks - blocks.transpose(-1, -2)
    norm = float(torch.linalg.vector_norm(skew)) + 1e-8
    if 0 < limit < norm:
        skew = skew * (limit / norm)
    identity = torch.eye(blocks.shape[-1])
    rotations: Tensor = (identity + skew) @ torch.linalg.inv(identity - skew)
    return rotations


def _butterfly(rotations: Tensor, matrix: Tensor) -> Tensor:
    """Return a matrix after each level of BOFT; level i mixes outputs that lie 2^i * (half a block) apart."""
    outputs, side = len(matrix), rotations.shape[-1]
    for level, rotation in enumerate(rotations):
        distance = 2**level * side // 2
        grouped = matrix.reshape(-1, 2, distance, matrix.shape[1]).transpose(1, 2)
        mixed: Tensor = torch.einsum("kij,kjn->kin", rotation, grouped.reshape(-1, side, matrix.shape[1]))
        matrix = mixed.reshape(-1, distance, 2, matrix.shape[1]).transpose(1, 2).reshape(outputs, -1)
    return matrix
