"""Which way up an image stands: the orientation that cameras note in EXIF.

https://www.cipa.jp/std/documents/e/DC-X008-Translation-2019-E.pdf, tag 0x0112. What shows images to
people turns them by it, labelling tools among them, so their pixels are turned here as well.
"""

from __future__ import annotations

import PIL.ExifTags
import PIL.Image

_TURN = PIL.Image.Transpose
_TURNS = {
    2: _TURN.FLIP_LEFT_RIGHT,
    3: _TURN.ROTATE_180,
    4: _TURN.FLIP_TOP_BOTTOM,
    5: _TURN.TRANSPOSE,
    6: _TURN.ROTATE_270,
    7: _TURN.TRANSVERSE,
    8: _TURN.ROTATE_90,
}


def orientation_of(image: PIL.Image.Image) -> int:
    """The orientation of an opened image, 1 to 8, from its header; 1 if it has none.

    TIFF files have 1 here: PIL turns them itself.
    """
    if "exif" not in image.info:  # getexif() would decode a PNG file to look for it
        return 1
    orientation = image.getexif().get(PIL.ExifTags.Base.Orientation)
    return orientation if orientation in _TURNS else 1


def upright(image: PIL.Image.Image, orientation: int) -> PIL.Image.Image:
    """An image of that orientation, turned so that it stands upright."""
    if orientation == 1:
        return image
    turned = image.transpose(_TURNS[orientation])
    turned.info.pop("exif")  # nobody is to turn it again
    return turned


def upright_size(image: PIL.Image.Image) -> tuple[int, int]:
    """Height and width of an opened image once it is upright; nothing is decoded."""
    swaps = orientation_of(image) >= 5
    return (image.width, image.height) if swaps else (image.height, image.width)
