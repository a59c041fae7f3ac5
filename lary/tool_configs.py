"""What the commands beside extraction and probes are asked to do: one frozen record per command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lary.configs import DeviceChoice, LatentKind, Precision, RandomWeights
from lary.types import BenchmarkProtocol

AnalysisKind = Literal["all", "frequency", "gap", "attention", "stride", "codebook", "trajectories"]


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The whole benchmark on simulated robots.

    Attributes:
        out: Folder for data, latents, results and report.
        seed: Seed of simulation and random weights; probes have their own.
        pairs: Image pairs to simulate, over all splits.
        clips: Clips to simulate, over all splits.
        size: Height and width of the simulated frames in pixels.
    """

    out: Path = Path("demo_output")
    seed: int = 0
    pairs: int = 800
    clips: int = 400
    size: int = 200


@dataclass(frozen=True, kw_only=True)
class CheckModelConfig:
    """A trial of one model on generated frames.

    Attributes:
        weights: Checkpoint in place of the model's variable: folder, file or hub id, or random: drawn from the seed.
        revision: Revision of a hub checkpoint.
        protocol: corrected or paper.
        latent: What a quantized model returns.
        precision: Arithmetic of the forward pass.
        compile: Compile the network with torch.compile.
        device: auto takes the first CUDA device, or else the CPU.
        seed: Seed of the frames and of models with random weights.
    """

    weights: str | None = None
    revision: str | None = None
    protocol: BenchmarkProtocol = "corrected"
    latent: LatentKind | None = None
    precision: Precision = "fp32"
    compile: bool = False
    device: DeviceChoice = "auto"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class DiagnoseConfig:
    """What the latents of one split are like, before any probe.

    Attributes:
        model: Model key.
        dataset: Data set key.
        split: Split of the data set; default: the one that probes validate on.
        protocol: Protocol of the latents.
        latent: Kind of latents, as given to extract.
        weights: random, as given to extract: latents of the same architecture with random weights.
        rows: Look at this many samples, evenly spaced; default: all of them.
        relations: Check at most this many triples, and as many reversed pairs.
        batch_size: Samples in memory at once.
        seed: Seed of the draws and of the resampling.
        json: File for the numbers; default: diagnostics/DATASET/SPLIT/MODEL.json in LARY_LOG_DIR.
    """

    model: str
    dataset: str
    split: str | None = None
    protocol: BenchmarkProtocol = "corrected"
    latent: LatentKind | None = None
    weights: RandomWeights | None = None
    rows: int | None = None
    relations: int = 2000
    batch_size: int = 64
    seed: int = 0
    json: Path | None = None


@dataclass(frozen=True, kw_only=True)
class AnalyzeConfig:
    """Figures and tables from finished runs.

    Attributes:
        folder: Folder that holds the runs; default: LARY_LOG_DIR.
        out: Folder to write to; default: analysis/ in LARY_LOG_DIR.
        model: Only runs of this model; may be repeated.
        dataset: Only runs on this data set; may be repeated.
        window: Classes that the moving average of the frequency analysis spans; default: a tenth of them, at least 3.
        human: Classification data set of people, for the gap analysis.
        robot: Classification data set of robots, for the gap analysis.
        sample: Sample to show attention on, by id or by media path as in case.txt; may be repeated.
        episode: Episode to show trajectories of, as actions.npz names it; may be repeated.
        count: Samples or episodes to show where none is named.
        square: Lay out tokens that stand for no place as a square over the frames.
    """

    folder: Path | None = None
    out: Path | None = None
    model: tuple[str, ...] = ()
    dataset: tuple[str, ...] = ()
    window: int | None = None
    human: str = "human_1st"
    robot: str = "robot_1st"
    sample: tuple[str, ...] = ()
    episode: tuple[str, ...] = ()
    count: int = 3
    square: bool = False
