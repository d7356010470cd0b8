"""Samples are read back as they were kept, and a report does without those that are gone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from autolora.evaluation.samples import SIDE, Sample, read_samples, sample_prompts, save_samples, write_samples
from autolora.scoring.eval_prompts import EvalPrompt

PROBES = [
    *(
        EvalPrompt("trigger", name, f"1girl, mona, {name}, {i}", "1girl", (i, i + 1))
        for name in "abcd"
        for i in range(2)
    ),
    *(EvalPrompt("novel", "", f"1girl, mona, hat {i}", "1girl, hat", (20 + i,)) for i in range(3)),
    *(EvalPrompt("class_only", "", "1girl", "1girl", (30 + i,)) for i in range(3)),
]


def pictures(count: int, side: int = 64) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def test_one_of_each_concept_and_some_of_the_others() -> None:
    chosen = sample_prompts(PROBES)
    assert [p.group for p in chosen] == ["trigger"] * 3 + ["novel"] * 2 + ["class_only"] * 2
    assert [p.prompt for p in chosen[:3]] == ["1girl, mona, a, 0", "1girl, mona, b, 0", "1girl, mona, c, 0"]


def test_small_ones_are_kept_exactly(tmp_path: Path) -> None:
    chosen = sample_prompts(PROBES)
    rendered = {(p, 1.0): np.stack([one, one[::-1]]) for p, one in zip(chosen, pictures(7), strict=True)}
    save_samples(tmp_path, 120, PROBES, rendered, 1.0)
    found = read_samples(tmp_path, "120")
    assert [sample for sample, _ in found] == [Sample.of(p) for p in chosen]
    assert all((np.asarray(image) == rendered[p, 1.0][0]).all() for p, (_, image) in zip(chosen, found, strict=True))


def test_large_ones_are_kept_small(tmp_path: Path) -> None:
    write_samples(tmp_path, "1", [Sample("novel", "a", "b", 1)], pictures(1, 512))
    ((_, image),) = read_samples(tmp_path, "1")
    assert image.size == (SIDE, SIDE)


def test_what_is_gone_or_broken_is_left_out(tmp_path: Path) -> None:
    assert read_samples(tmp_path, "1") == []
    write_samples(tmp_path, "1", [Sample("novel", "a", "b", 1)], pictures(1))
    (tmp_path / "1.webp").write_bytes(b"broken")
    assert read_samples(tmp_path, "1") == []
    write_samples(tmp_path, "1", [Sample("novel", "a", "b", 1)], pictures(1))
    (tmp_path / "samples.json").write_text("[{]")
    assert read_samples(tmp_path, "1") == []
