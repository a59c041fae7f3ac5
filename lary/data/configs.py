"""The options of the commands about data: one frozen dataclass each, without heavy imports."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from lary.configs import Options


class SimulationOptions(Options):
    """The size of a simulated data set."""

    seed: int = 0
    pairs: int = 800
    clips: int = 400
    size: int = 128


class SimulateConfig(SimulationOptions):
    """A simulated data set."""

    processes: int = 2
    overwrite: bool = False


class DemoConfig(SimulationOptions):
    """The whole benchmark on simulated robots."""

    out: Path = Path("demo_output")


class ClipConfig(Options):
    """Cutting of the SSv2 and EgoDex clips."""

    ssv2_root: Path | None = None
    egodex_root: Path | None = None
    output_dir: Path | None = None
    workers: int = 8
    metadata: tuple[Path, ...] = ()
    seed_ssv2: Path | None = None
    seed_egodex: Path | None = None
    times: Literal["clock", "published"] = "clock"


class StatsConfig(Options):
    """Measurement of the actions of a training split per robot type, for normalisation."""

    dataset: str
    csv: Path | None = None
    output: Path | None = None
    workers: int = 8


class RelativeConfig(Options):
    """Relative actions of tables of pairs."""

    dataset: str
    csv: tuple[Path, ...]
    input_root: Path | None = None
    output_root: Path | None = None
    workers: int = 8
    frame: Literal["world", "local"] = "world"


class CheckConfig(Options):
    """Integrity of the files that tables name."""

    groups: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ()
    output: Path = Path("dataset_integrity_report.txt")
    workers: int = 64
    timeout: float = 5.0
    depth: Literal["decode", "headers"] = "decode"
    manifest: Path | None = None


class GroupOptions(Options):
    """What names the source of each sample in a table of one's own."""

    group_column: str | None = None
    group_pattern: str | None = None


class SplitConfig(GroupOptions):
    """A split of a table into training and validation."""

    by: Literal["row", "video", "episode", "segment"] = "row"
    dataset: str | None = None
    share: Annotated[float | None, Parameter(name="--test-size")] = None
    stratify: str | None = None
    seed: int = 42
    train: Path | None = None
    val: Path | None = None


class IndicesConfig(Options):
    """Choice of the frames of clips."""

    root: Path | None = None
    out: Path | None = None
    method: Literal["motion", "uniform"] = "motion"
    frames: int = 9
    cache: Path | None = None
    workers: int = 4


class AuditConfig(Options):
    """What the splits of a data set share, and what is odd in its tables."""

    splits: Annotated[tuple[str, ...], Parameter(name="--split")] = ()
    table: tuple[str, ...] = ()
    frames: bool = False
    training: Path | None = None
    workers: int = 4
    json: Path | None = None
    output: Path | None = None


class TrajectoryConfig(Options):
    """The data set that trajectories become."""

    name: str
    share: Annotated[float, Parameter(name="--test-size")] = 0.25
    seed: int = 42
    embodiment: str | None = None
    overwrite: bool = False


class MotionOptions(Options):
    """How trajectories are cut into atomic motions."""

    threshold: float = 0.03
    reach: float = 0.08
    axes: str = "+x,+y,+z"
    grip: float | None = None
    gripper_high: Literal["open", "closed"] = "open"
    deltas: bool = False
    settle: int = 8


class AtomicConfig(MotionOptions, TrajectoryConfig):
    """Trajectories as atomic motions."""

    position: str = "0,1,2"
    gripper: int = 6


class DownloadConfig(Options):
    """What to download."""

    include: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    repo: str | None = None
    source: Literal["huggingface", "modelscope"] = "huggingface"
    revision: str | None = None
    accept_licenses: bool = False
    dry_run: bool = False
    keep_archives: bool = False


class LeRobotConfig(MotionOptions):
    """How to import a LeRobot data set."""

    name: str | None = None
    camera: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    stride: int | None = None
    labels: Literal["atomic", "task"] | None = None
    position: str = "x,y,z"
    gripper: str | None = None
    robot: str | None = None
    share: Annotated[float, Parameter(name="--val-share")] = 0.25
    seed: int = 0
    episodes: int | None = None
    licence: str | None = None
    revision: str | None = None
    preview: bool = False
    overwrite: bool = False


class VideosConfig(GroupOptions):
    """How to import videos."""

    table: Annotated[Path, Parameter(name="--labels")]
    name: str | None = None
    video_column: str | None = None
    label_column: str | None = None
    method: Literal["motion", "uniform"] = "motion"
    share: Annotated[float, Parameter(name="--val-share")] = 0.3
    seed: int = 0
    licence: str = "not stated"
    commercial: bool = False
    workers: int = 4
