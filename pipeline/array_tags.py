"""What array files say of their numbers that reading does not apply: an orientation, inverted greys, missing pixels."""

import math

from pipeline.array_files import kind_of, open_tiff
from pipeline.dicom_files import read_header, slope_and_intercept

_ORIENTATION, _PHOTOMETRIC, _GDAL_NODATA = 274, 262, 42113  # numbers of TIFF's tags
_WHITE_IS_ZERO = 0
_UPRIGHT = 1
_INVERTED = "its greys are inverted (the least number is white), which is not undone"


def not_applied(data: bytes, nodata: float | None) -> str | None:
    """Return what a file says of its numbers and is not applied when it is read; None: nothing.

    Args:
        data: the file.
        nodata: the number that means missing, by DATA.NODATA.

    Raises:
        Exception: of any type, if the file is damaged.
    """
    kind = kind_of(data)
    found, missing = _of_tiff(data) if kind == "TIFF" else _of_dicom(data) if kind == "DICOM" else ([], None)
    if missing is not None and not math.isnan(missing) and missing != nodata:
        found = [*found, f"it says that {missing:.9g} means missing, and DATA.NODATA is {nodata}"]
    return "; ".join(found) or None


def _of_tiff(data: bytes) -> tuple[list[str], float | None]:
    """Return what is not applied, and the number that means missing by GDAL's tag."""
    with open_tiff(data) as file:
        tags = {tag.code: tag.value for tag in file.pages[0].tags}
    orientation = int(tags.get(_ORIENTATION, _UPRIGHT))
    found = [f"its orientation is {orientation}, which is not applied"] * (orientation != _UPRIGHT)
    found += [_INVERTED] * (tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)
    return found, float(tags[_GDAL_NODATA]) if _GDAL_NODATA in tags else None


def _of_dicom(data: bytes) -> tuple[list[str], float | None]:
    """Return what is not applied, and the number that pads an image to its shape, in the modality's units."""
    dataset = read_header(data)
    found = [_INVERTED] * (dataset.get("PhotometricInterpretation") == "MONOCHROME1")
    padding = dataset.get("PixelPaddingValue")
    slope, intercept = slope_and_intercept(dataset)
    return found, None if padding is None else float(padding) * slope + intercept
