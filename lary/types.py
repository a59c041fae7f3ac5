"""The data contract: the types that pass between parts of lary, written once.

Letters in shapes, here and everywhere: B batch, T frames, H W pixels, P latent
steps, N tokens per step, D latent dimension, K length of an action chunk, A
action dimensions, L classes.

====================  =======  ===============  ===============================
what                  dtype    axes             range and meaning
====================  =======  ===============  ===============================
clip (decoded)        uint8    (T, H, W, 3)     RGB; a pair is source, target
clip (preprocessed)   float32  (B, T, 3, H, W)  as ``Preprocess`` says
tokens                float32  (B, P, N, D)     or (B, N, D), if time is mixed
codes                 int64    (B, P, N)        ids; None without a codebook
action chunk          float32  (K, A)           units of the data set; by step
label                 int64    ()               position in its ``LabelSpace``
====================  =======  ===============  ===============================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch

    from lary.arrays import Floats, Ints

JsonDict = dict[str, Any]
"""Fields of a JSON object, or of anything else that goes by names."""

BenchmarkProtocol = Literal["corrected", "paper"]
"""``corrected`` computes what the benchmark describes, ``paper`` what its code does."""

Media = Literal["pair", "clip"]
"""An image pair (source, target), or a video clip with sampled frame indices."""


RANDOM = "random"
"""The value of ``--weights`` for weights that are drawn from the seed."""


class LaryError(Exception):
    """A failed run in a sentence: what is wrong, where, what to do. Exit code 1."""

    exit_code = 1


class UsageError(LaryError):
    """A wrong request, such as an unknown name or a missing setting. Exit code 2."""

    exit_code = 2


class MediaError(LaryError):
    """A broken image, video or array: costs its own sample, never the run."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One item of a data set, made from one row of its table.

    ``id`` is a hash of the row's content (media, frame index, target); ``row``
    is its position, from 0. ``frame_index`` is empty for images. ``group`` is
    the episode or video of the sample, or its own path: splits and intervals
    keep it together. ``target`` is a class name, or the path of the action file
    relative to the split's root.
    """

    id: str
    row: int
    media: tuple[str, ...]
    frame_index: tuple[int, ...]
    target: str
    group: str
    embodiment: str


@dataclass(frozen=True)
class Latents:
    """The answer of an encoder to a batch.

    Attributes:
        tokens: (B, P, N, D) or (B, N, D) float.
        codes: (B, P, N), or None for a model without a codebook.
        cls: class token of every step, (B, P, D) or (B, D) float, or None for
            a model that has none.
    """

    tokens: torch.Tensor
    codes: torch.Tensor | None = None
    cls: torch.Tensor | None = None


@dataclass(frozen=True)
class WeightsIdentity:
    """The name of a model's weights: latents of two are never mixed.

    Attributes:
        digest: of the weights and of what configures them; empty where the
            record and the seed decide everything.
        revision: the hub's commit, if they came from there.
        random: the weights were drawn from the seed instead of trained.
    """

    digest: str = ""
    revision: str | None = None
    random: bool = False


class Encoder(Protocol):
    """What a model class has to offer, without a base class.

    Its constructor takes ``(spec, context)``. An attribute `identity`
    (`WeightsIdentity`) names its weights; without one, the networks, tensors,
    arrays and paths that its attributes hold are hashed. An attribute `dim`
    names D where the weights may have another than the record.
    """

    def encode(self, clips: torch.Tensor) -> Latents | torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Encode clips (B, T, 3, H, W), preprocessed as the model's record says."""
        ...


class LatentSource(Protocol):
    """Random access to the latents of one split, in the order of its samples."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample's tokens: (P, N, D) or (N, D)."""
        ...

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int] | Ints) -> Floats:
        """Tokens of the samples at these positions, (B, *shape) float32."""
        ...


@dataclass(frozen=True, slots=True)
class Failure:
    """A sample, episode or file that was skipped.

    ``row`` is the row of its table, counted from 0, and None for what is no
    row of a table.
    """

    row: int | None
    path: str
    reason: str


class Progress(Protocol):
    """A progress bar as the long-running functions see it."""

    def advance(self, count: int = 1) -> None: ...

    def skip(self, count: int) -> None: ...


def as_path(text: str | Path) -> Path:
    """A path of a setting or option, with ``~`` expanded. Raises UsageError."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UsageError(f"There is no home folder for the path '{text}': name the folder in full.") from None
