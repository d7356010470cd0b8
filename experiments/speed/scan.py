"""What does it take to scan a large folder before training? Seconds and memory for 10,000 images of mixed sizes.

    python -m experiments.speed.scan

It writes captioned images with sides of 512 to 768 px into a temporary folder: three JPEG files, then a PNG file; one
of 50 is a copy of another in another size. Then it reads the folder, chooses validation images and chooses buckets. The
files were just written, so decoding is measured and not the disk. On a busy machine compare the CPU seconds only.
Writes experiments/results/speed/scan.json.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageChops

from autolora.data.bucket_report import bucket_table
from autolora.data.buckets import BucketSettings, assign_buckets, choose_buckets, potential_buckets
from autolora.data.sources import Picture, read_folder
from autolora.data.split import split_validation
from autolora.files import write_atomic
from autolora.provenance import provenance
from experiments.common import results
from experiments.common.arguments import argument_parser

CONCEPTS = 5
SIDES_PX = (512, 768)
COPY_EVERY = 50
Result = TypeVar("Result")


def write_pictures(root: Path, pictures: int) -> None:
    """Write images of coarse colours with a grain that makes the files as large as those of photos."""
    rng = np.random.default_rng(0)
    grain = Image.fromarray(rng.normal(128, 4, (SIDES_PX[1], SIDES_PX[1], 3)).clip(0, 255).astype(np.uint8))
    sizes = rng.integers(SIDES_PX[0], SIDES_PX[1] + 1, (pictures, 2)).tolist()
    folders = [root / f"10_zorak fit_{concept}" for concept in range(CONCEPTS)]
    for folder in folders:
        folder.mkdir()

    def write(number: int) -> None:
        look = number - 1 if number % COPY_EVERY == COPY_EVERY - 1 else number
        blocks = np.random.default_rng(look).integers(40, 216, (6, 6, 3), dtype=np.uint8)
        image = Image.fromarray(blocks).resize(sizes[number], Image.Resampling.BICUBIC)
        image = ImageChops.add(image, grain.crop((0, 0, *image.size)), offset=-128)
        path = folders[look * CONCEPTS // pictures] / f"{number:06}.{'png' if number % 4 == 3 else 'jpg'}"
        image.save(path, quality=90, compress_level=1)
        path.with_suffix(".txt").write_text(f"1girl, zorak, {folders[0].name[9:-1]}{number % 7}", encoding="utf-8")

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(pictures)))


def peak_megabytes() -> float:
    """Return the peak memory of the process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> None:
    """Measure, print a table and write it."""
    parser = argument_parser(__doc__)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--buckets", type=int, default=5)
    parser.add_argument("--out", type=Path, default=results.RESULTS / "speed" / "scan.json")
    args = parser.parse_args()
    stages: dict[str, dict[str, float]] = {}

    def measure(name: str, stage: Callable[[], Result]) -> Result:
        clock, cpu, before = time.perf_counter(), time.process_time(), peak_megabytes()
        result = stage()
        stages[name] = {
            "seconds": round(time.perf_counter() - clock, 2),
            "cpu seconds": round(time.process_time() - cpu, 2),
            "memory growth MB": round(peak_megabytes() - before, 1),
        }
        return result

    def choose(pictures: list[Picture]) -> list[Picture]:
        settings = BucketSettings(count=args.buckets)
        potential = potential_buckets(args.resolution, settings)
        return assign_buckets(
            pictures, choose_buckets([(p.width, p.height) for p in pictures], potential, settings.count)
        )

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_pictures(root, args.pictures)
        megabytes = sum(path.stat().st_size for path in root.rglob("*.*")) / 1e6
        pictures = measure("read", lambda: read_folder(root))
        concepts = {name: [p for p in pictures if p.concept == name] for name in {p.concept: 0 for p in pictures}}
        _, validation = measure("split", lambda: split_validation(concepts, 0.15, 3, 0))
    rows = bucket_table(measure("buckets", lambda: choose(pictures)))
    stages["in all"] = {key: round(sum(stage[key] for stage in stages.values()), 2) for key in stages["read"]}

    print(f"{'':10}" + "".join(f"{key:>18}" for key in stages["in all"]))
    for name, stage in stages.items():
        print(f"{name:10}" + "".join(f"{value:18.2f}" for value in stage.values()))
    result = provenance() | {
        "pictures": len(pictures),
        "files MB": round(megabytes),
        "held out": len(validation),
        "buckets": {f"{row.bucket[0]}x{row.bucket[1]}": row.pictures for row in rows},
        "stages": stages,
    }
    write_atomic(args.out, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
