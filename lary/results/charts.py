"""Charts of the report as inline SVG in the colours of the page, light or dark; pictures as small data addresses."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lary.results.markup import text
from lary.results.record import Example

CELL_TOOLTIPS = 30
"""A confusion matrix with more classes is drawn as one picture, without a tooltip per cell."""

PICTURE_SIZE = 192
PICTURE_BYTES = 20_000_000


def confusion_chart(matrix: Sequence[Sequence[int]], classes: Sequence[str], label: str) -> str:
    """A confusion matrix (L, L), rows predicted and columns true; the colour is the share of the true class."""
    counts = np.asarray(matrix, dtype=np.int64)
    share = counts / np.maximum(counts.sum(axis=0, keepdims=True), 1)
    number = len(classes)
    tooltips = number <= CELL_TOOLTIPS
    cell = max(3, min(30, 420 // max(number, 1)))
    margin = 8 + 6 * max((len(name) for name in classes), default=0) if tooltips else 14
    side = cell * number
    parts = [
        f'<svg class="confusion" viewBox="0 0 {margin + side + 4} {margin + side + 4}" role="img" '
        f'style="max-width:{margin + side + 4}px" aria-label="{text(label)}">'
    ]
    if tooltips:
        parts.append(_matrix_labels(classes, cell, margin))
        for row, column in np.argwhere(counts > 0):
            parts.append(
                f'<rect x="{margin + column * cell}" y="{margin + row * cell}" width="{cell}" height="{cell}" '
                f'fill-opacity="{share[row, column]:.2f}"><title>{text(classes[column])} read as {text(classes[row])}: '
                f"{counts[row, column]} of {counts[:, column].sum()}</title></rect>"
            )
            if cell >= 20:
                strong = " class=strong" if share[row, column] > 0.55 else ""
                x, y = margin + column * cell + cell / 2, margin + row * cell + cell / 2 + 3.5
                parts.append(f'<text{strong} x="{x}" y="{y}" text-anchor="middle">{counts[row, column]}</text>')
    else:
        parts.append(
            f'<image x="{margin}" y="{margin}" width="{side}" height="{side}" href="{_matrix_picture(share)}" '
            f'style="image-rendering:pixelated" preserveAspectRatio="none"/>'
        )
    parts.append(f'<rect class="frame" x="{margin}" y="{margin}" width="{side}" height="{side}"/></svg>')
    return "".join(parts)


def _matrix_labels(classes: Sequence[str], cell: int, margin: int) -> str:
    marks = []
    for index, name in enumerate(classes):
        middle = margin + index * cell + cell / 2
        marks.append(f'<text x="{margin - 5}" y="{middle + 3.5}" text-anchor="end">{text(name)}</text>')
        marks.append(f'<text transform="translate({middle + 3.5} {margin - 5}) rotate(-90)">{text(name)}</text>')
    return "".join(marks)


def _matrix_picture(share: npt.NDArray[np.float64]) -> str:
    """Shares (L, L) in [0, 1] as a PNG whose opacity is the share, which suits a light and a dark page."""
    from PIL import Image

    pixels = np.zeros((*share.shape, 4), dtype=np.uint8)
    pixels[..., :3] = (43, 140, 196)
    pixels[..., 3] = np.round(255 * share)
    stream = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(stream, format="PNG", optimize=True)
    return _address(stream.getvalue(), "png")


def _address(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def picture(path: Path) -> str | None:
    """A picture file as a small JPEG data address, or None if it can't be read."""
    import warnings

    from PIL import Image

    try:
        if path.stat().st_size > PICTURE_BYTES:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow warns of decompression bombs
            image = Image.open(path).convert("RGB")
    except (OSError, ValueError, Warning, Image.DecompressionBombError):
        return None
    image.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=82)
    return _address(stream.getvalue(), "jpeg")


def trajectory_chart(example: Example, dims: Sequence[str], units: Sequence[str]) -> str:
    """Predicted and true chunk of one sample, one panel per dimension, in physical units."""
    predicted, true = np.asarray(example.predicted), np.asarray(example.true)
    if predicted.ndim != 2 or predicted.shape != true.shape or predicted.shape[1] != len(dims) or len(predicted) == 0:
        return ""
    return "".join(
        _panel(name, units[index] if index < len(units) else "", predicted[:, index], true[:, index])
        for index, name in enumerate(dims)
    )


def _panel(name: str, unit: str, predicted: npt.NDArray[np.float64], true: npt.NDArray[np.float64]) -> str:
    """One panel, 132 x 92; a chunk of one step is drawn as two dots."""
    left, top, width, height = 38, 18, 88, 62
    values = np.concatenate([predicted, true])
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    digits = int(np.clip(1 - np.floor(np.log10(high - low)), 0, 4))
    steps = np.linspace(left + 5, left + width - 5, len(true)) if len(true) > 1 else np.array([left + width / 2])

    def line(kind: str, series: npt.NDArray[np.float64]) -> str:
        heights = top + 5 + (height - 10) * (1 - (series - low) / (high - low))
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(steps, heights, strict=True))
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2"/>' for x, y in zip(steps, heights, strict=True))
        return f'<g class="{kind}"><polyline points="{points}"/>{dots if len(series) <= 12 else ""}</g>'

    title = f"{name} [{unit}]" if unit else name
    error = float(np.sqrt(np.mean((predicted - true) ** 2)))
    return (
        f'<svg class="panel" viewBox="0 0 132 84" role="img" '
        f'aria-label="{text(title)}: root mean squared error {error:.3g}">'
        f'<text class="name" x="{left}" y="11">{text(title)}</text>'
        f'<rect class="frame" x="{left}" y="{top}" width="{width}" height="{height}"/>'
        f'<text x="{left - 4}" y="{top + 9}" text-anchor="end">{high:.{digits}f}</text>'
        f'<text x="{left - 4}" y="{top + height - 2}" text-anchor="end">{low:.{digits}f}</text>'
        f"{line('true', true)}{line('predicted', predicted)}</svg>"
    )
