"""The options of training latent action models, without heavy imports."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from lary.configs import DeviceOptions, ProbePrecision, TrackerName
from lary.types import BenchmarkProtocol

Texts = Annotated[tuple[str, ...], Parameter(consume_multiple=True)]


class ReconstructConfig(DeviceOptions):
    """Options of the reconstructions of a latent action model."""

    model: str
    dataset: str
    out: Path
    weights: str | None = None
    distance: str | None = None
    pairs: int = 256
    pictures: int = 8
    batch_size: int = 32
    seed: int = 0
    workers: int | None = None


class TrainLamConfig(DeviceOptions):
    """Options of the training of a latent action model."""

    backbone: str
    dataset: Texts
    out: Path
    weight: Annotated[tuple[float, ...], Parameter(consume_multiple=True)] = ()
    distance: Texts = ()
    workers: int | None = None
    cache_features: bool = False
    weights: str | None = None
    codebook_size: int | None = None
    code_length: int | None = None
    quant_dim: int | None = None
    dim: int | None = None
    depth: int | None = None
    heads: int | None = None
    dim_head: int | None = None
    image_size: int | None = None
    patch_size: int | None = None
    recipe: BenchmarkProtocol = "corrected"
    seed: int = 0
    steps: int = 100_000
    batch_size: int = 64
    accumulate: int = 1
    lr: float | None = None
    weight_decay: float = 0.0
    entropy: float = 0.0
    averaging: bool = True
    precision: ProbePrecision = "fp32"
    validate_every: int = 500
    monitor_pairs: int = 256
    stop_on_collapse: bool = False
    checkpoint_minutes: float = 10.0
    export: Literal["none", "published"] = "none"
    tracker: TrackerName = "none"
    overwrite: bool = False

    def rate(self, ablation: Mapping[str, float]) -> float:
        """The learning rate: the option's, that of a backbone's `ablation`, or the default."""
        return self.lr or ablation.get("learning rate") or 1e-4
