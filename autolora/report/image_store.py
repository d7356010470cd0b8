"""The images of a page, each stored once however often the page shows it."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass, field

from markupsafe import Markup
from PIL import Image

LOSSLESS_UP_TO = 128  # pixels; larger images are stored as lossy WebP, else a page would take tens of megabytes
LARGEST, THUMBNAIL = 384, 80  # pixels of the longer side


@dataclass
class ImageStore:
    """Images as data URIs by a key of their content; `in_markup` are the keys of those that the markup holds."""

    uris: dict[str, str] = field(default_factory=dict)
    in_markup: set[str] = field(default_factory=set)
    _keys: dict[tuple[int, int], str] = field(default_factory=dict)  # by identity and longer side
    _images: list[Image.Image] = field(default_factory=list)  # kept alive, so that no identity is used twice

    def add(self, image: Image.Image, largest: int = LARGEST) -> str:
        """Store an image, reduced to at most `largest` pixels of its longer side, and return its key."""
        key = self._keys.get((id(image), largest))
        if key:
            return key
        small = image.convert("RGB")
        small.thumbnail((largest, largest), Image.Resampling.BICUBIC)
        key = hashlib.sha256(small.tobytes() + bytes(f"{small.size}{largest}", "ascii")).hexdigest()[:12]
        self.uris.setdefault(key, thumbnail_uri(small) if largest == THUMBNAIL else data_uri(small))
        self._keys[id(image), largest] = key
        self._images.append(image)
        return key

    def thumbnails(self, images: Iterable[Image.Image]) -> list[str]:
        """Store small copies of the images and return their keys."""
        return [self.add(image, THUMBNAIL) for image in images]

    def show(self, image: Image.Image, alt: str) -> Markup:
        """The image as HTML: with its content the first time, then with its key alone, which the script replaces."""
        key = self.add(image)
        kind = Markup(' class="pixels"') if max(image.size) <= LOSSLESS_UP_TO else ""
        source = "" if key in self.in_markup else Markup(' src="{}"').format(self.uris[key])
        self.in_markup.add(key)
        return Markup('<img data-picture="{}"{} width="{}" height="{}" alt="{}"{}>').format(
            key, source, image.width, image.height, alt, kind
        )

    def rest(self) -> dict[str, str]:
        """The images that the markup does not hold, by key, for the script."""
        return {key: uri for key, uri in self.uris.items() if key not in self.in_markup}


def data_uri(image: Image.Image) -> str:
    """An image as a data URI of a WebP file; small images are lossless."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "WEBP", lossless=max(image.size) <= LOSSLESS_UP_TO, quality=82)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def thumbnail_uri(image: Image.Image) -> str:
    """An image as a data URI of a JPEG file: a study has thousands of thumbnails, and WebP takes ten times as long."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
