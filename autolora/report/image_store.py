"""The pictures of a page, each held once however often it is shown."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass, field

from markupsafe import Markup
from PIL import Image

LOSSLESS_UP_TO = 128  # pixels; larger pictures go in as lossy WebP, else a page of them would weigh tens of megabytes
LARGEST, THUMBNAIL = 384, 80  # pixels of a side


@dataclass
class ImageStore:
    """Pictures by a key of their content; `seen` are those that the page's markup holds already."""

    uris: dict[str, str] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    _keys: dict[tuple[int, int], str] = field(default_factory=dict)  # by identity and largest side
    _kept: list[Image.Image] = field(default_factory=list)  # an identity means nothing once its picture is gone

    def add(self, image: Image.Image, largest: int = LARGEST) -> str:
        """Take a picture in; returns its key."""
        known = self._keys.get((id(image), largest))
        if known:
            return known
        small = image.convert("RGB")
        small.thumbnail((largest, largest), Image.Resampling.LANCZOS)
        key = hashlib.sha256(small.tobytes() + bytes(f"{small.size}{largest}", "ascii")).hexdigest()[:12]
        self.uris.setdefault(key, data_uri(small, lossless=largest > THUMBNAIL))
        self._keys[id(image), largest] = key
        self._kept.append(image)
        return key

    def thumbnails(self, images: Iterable[Image.Image]) -> list[str]:
        """Take small copies in."""
        return [self.add(image, THUMBNAIL) for image in images]

    def show(self, image: Image.Image, alt: str) -> Markup:
        """The markup of a picture: its content where it is shown first, else its key, which the script fills in."""
        key = self.add(image)
        kind = Markup(' class="pixels"') if max(image.size) <= LOSSLESS_UP_TO else ""
        source = "" if key in self.seen else Markup(' src="{}"').format(self.uris[key])
        self.seen.add(key)
        return Markup('<img data-picture="{}"{} width="{}" height="{}" alt="{}"{}>').format(
            key, source, image.width, image.height, alt, kind
        )

    def rest(self) -> dict[str, str]:
        """What the markup does not hold, for the script."""
        return {key: uri for key, uri in self.uris.items() if key not in self.seen}


def data_uri(image: Image.Image, lossless: bool = True) -> str:
    """The picture as text to put into a page."""
    buffer = io.BytesIO()
    if max(image.size) <= LOSSLESS_UP_TO and lossless:
        image.convert("RGB").save(buffer, "WEBP", lossless=True)
    else:
        image.convert("RGB").save(buffer, "WEBP", quality=82)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
