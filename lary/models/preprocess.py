"""From decoded frames to a model's input, as the model's record says.

Frames are resized as uint8, which records define
down to the grey level, and only then scaled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lary.models.spec import Preprocess
from lary.types import LaryError

if TYPE_CHECKING:
    from torch import Tensor

    from lary.arrays import Array, Pixels

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def prepare(clip: Pixels, preprocess: Preprocess) -> Array:
    """Resize, scale and normalise a clip (T, H, W, 3) uint8 RGB.

    Returns (T, 3, H', W') of the record's dtype, contiguous;
    H' = W' = ``preprocess.size`` unless it is native.
    """
    import numpy as np

    return normalise(np.ascontiguousarray(resize(clip, preprocess).transpose(0, 3, 1, 2)), preprocess)


def to_planes(frames: Iterable[Pixels], out: Pixels) -> None:
    """Frames (T, H, W, 3) as planes of colour: fills `out`, (T, 3, H, W) uint8."""
    import cv2

    for frame, target in zip(frames, out, strict=True):
        cv2.split(frame, list(target))


def normalise(planes: Pixels, preprocess: Preprocess, out: Array | None = None) -> Array:
    """Scale and normalise frames (..., 3, H, W), uint8 to float32, into any `out`.

    Those of a uint8 record are returned as they are.
    """
    import numpy as np

    if preprocess.dtype == "uint8":
        return planes
    if out is None:
        out = np.empty(planes.shape, np.float32)
    numbers = preprocess.scale, preprocess.mean, preprocess.std
    scale, mean, std = (np.array(value, np.float32).reshape(-1, 1, 1) for value in numbers)
    # Frame by frame: the next step finds in the cache what one wrote.
    for frame, target in zip(planes.reshape(-1, *planes.shape[-3:]), out.reshape(-1, *out.shape[-3:]), strict=True):
        np.divide(frame, scale, target, dtype=np.float32)
        target -= mean
        target /= std
    return out


class DeviceNormaliser:
    """`normalise` on a device, bit-identical: uint8 (..., 3, H, W) to float32.

    Constants are tensors there: CUDA divides by a
    number of the host by multiplying with its inverse.
    """

    def __init__(self, preprocess: Preprocess, device: str) -> None:
        import torch

        self._as_is = preprocess.dtype == "uint8"
        self._scale, self._mean, self._std = (
            torch.tensor(value, dtype=torch.float32, device=device).view(-1, 1, 1)
            for value in (preprocess.scale, preprocess.mean, preprocess.std)
        )

    def __call__(self, planes: Tensor) -> Tensor:
        if self._as_is:
            return planes
        return planes.float().div_(self._scale).sub_(self._mean).div_(self._std)


def resize(clip: Pixels | Sequence[Pixels], preprocess: Preprocess) -> Pixels:
    """The uint8 part of `prepare`: T frames (H, W, 3) to (T, H', W', 3).

    Raises LaryError for frames that aren't uint8
    RGB of one size, or that `resize_frame` refuses.
    """
    import numpy as np

    shapes = {(str(frame.dtype), frame.shape) for frame in clip}
    if len(shapes) != 1 or clip[0].dtype != "uint8" or clip[0].shape[2:] != (3,) or not clip[0].size:
        found = " and ".join(f"{kind} {shape}" for kind, shape in sorted(shapes)) or "none"
        raise LaryError(f"A clip has to be uint8 frames (H, W, 3) of one size, not {found}.")
    return np.stack([resize_frame(frame, preprocess) for frame in clip])


def resize_frame(frame: Pixels, preprocess: Preprocess) -> Pixels:
    """Resize and crop a frame, (H, W, 3) to (H', W', 3) uint8. Raises LaryError for an unfit size."""
    import numpy as np

    height, width = frame.shape[:2]
    size, short = preprocess.size, preprocess.short_side
    if preprocess.resize == "native":
        if height * width > size * size:
            limit = f"more pixels than the {size} x {size} of the record's size"
            raise LaryError(f"A frame of {width} x {height} pixels has {limit}.")
        return frame
    goal = (size, size)
    if short:
        goal = (int(short * height / width), short) if width < height else (short, int(short * width / height))
    frame = frame if goal == (height, width) else _resized(frame, preprocess.resize, *goal)
    if min(frame.shape[:2]) < size:
        raise LaryError(f"A frame of {width} x {height} pixels is too small for the record's crop of {size}.")
    # These roundings, and int() above, are V-JEPA 2's published ones.
    top, left = (round((side - size) / 2) for side in frame.shape[:2])
    # A copy, where it is a part: a view would keep the whole frame in memory.
    return np.ascontiguousarray(frame[top : top + size, left : left + size])


def _resized(frame: Pixels, how: str, height: int, width: int) -> Pixels:
    import numpy as np

    library, _, name = how.partition("_")
    if library == "cv2":
        import cv2

        found = cv2.resize(frame, (width, height), interpolation=getattr(cv2, f"INTER_{name.upper()}"))
        return np.asarray(found, np.uint8)
    if library == "pil":
        from PIL import Image

        return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling[name.upper()]))
    if library == "torch":
        import torch

        planes = torch.from_numpy(np.ascontiguousarray(frame[None])).permute(0, 3, 1, 2).float()
        planes = torch.nn.functional.interpolate(planes, (height, width), mode=name, antialias=True)
        return np.asarray(planes.round_().clamp_(0, 255).byte()[0].permute(1, 2, 0).contiguous())
    if how != "none":
        raise LaryError(f"A record resizes by '{how}', which is no known method: correct its Preprocess.")
    return frame


def neighbour_pairs(clips: Tensor) -> Tensor:
    """Pairs of neighbours: (..., T, 3, H, W) to (..., T - 1, 2, 3, H, W)."""
    # No list of places: CUDA would wait for its copy.
    return clips.unfold(-4, 2, 1).movedim(-1, -4).contiguous()


def mix_planes(clips: Tensor) -> Tensor:
    """Reshape (..., T, 3, H, W) as the published code, which meant to permute.

    Planes are ordered by channel, and image k is made of planes
    3k to 3k + 2: each holds colour planes of several frames.
    """
    return clips.swapaxes(-4, -3).reshape(clips.shape)
