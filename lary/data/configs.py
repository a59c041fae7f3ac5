"""The options of the commands about data: one frozen dataclass each, without heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from lary.configs import model_option, run_option

Files = Annotated[int, run_option("Files that are read at the same time.")]


@dataclass(frozen=True, kw_only=True)
class SimulationOptions:
    """The size of a simulated data set."""

    seed: Annotated[int, run_option("Seed of the simulation: same seed, same bytes.")] = 0
    pairs: Annotated[int, run_option("Image pairs to simulate, over all splits.")] = 800
    clips: Annotated[int, run_option("Clips to simulate, over all splits.")] = 400
    size: Annotated[int, run_option("Height and width of the simulated frames in pixels.")] = 200


@dataclass(frozen=True, kw_only=True)
class SimulateConfig(SimulationOptions):
    """A simulated data set."""

    processes: Annotated[int, run_option("Worker processes.")] = 2
    sheet: Annotated[
        bool, run_option("Also write contact sheets of the tables, one row per verb or scene.", negative=())
    ] = False
    overwrite: Annotated[bool, run_option("Replace a simulation with other options.", negative=())] = False


@dataclass(frozen=True, kw_only=True)
class DemoConfig(SimulationOptions):
    """The whole benchmark on simulated robots."""

    out: Annotated[Path, run_option("Folder for data, latents, results and report.")] = Path("demo_output")


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Cutting of the SSv2 and EgoDex clips."""

    ssv2_root: Annotated[Path | None, run_option("Folder of the SSv2 videos; without it SSv2 is left out.")] = None
    egodex_root: Annotated[Path | None, run_option("Folder of the EgoDex videos; without it EgoDex is left out.")] = (
        None
    )
    output_dir: Annotated[Path | None, run_option("Folder to write to; default: DATA_DIR/classification.")] = None
    workers: Annotated[int, run_option("Clips that are cut at the same time; at most four per core.")] = 8
    metadata: Annotated[
        tuple[Path, ...],
        run_option("Table that names the clips; may be repeated. Default: all human_1st tables.", negative=()),
    ] = ()
    seed_ssv2: Annotated[
        Path | None, run_option("Table of SSv2 recordings; default: LARY_ROOT/data/seed_ssv2.csv.")
    ] = None
    seed_egodex: Annotated[
        Path | None, run_option("Table of EgoDex recordings; default: LARY_ROOT/data/seed_egodex.csv.")
    ] = None
    times: Annotated[
        Literal["clock", "published"],
        run_option("clock reads mm:ss; published reads only seconds, as the published tool does."),
    ] = "clock"
    backend: Annotated[
        Literal["auto", "ffmpeg", "pyav"],
        run_option("ffmpeg, pyav, or auto: the ffmpeg executable where there is one."),
    ] = "auto"


@dataclass(frozen=True, kw_only=True)
class StatsConfig:
    """Measurement of the actions of a training split per robot type, for normalisation."""

    dataset: Annotated[str, model_option("Data set key.")]
    csv: Annotated[Path | None, run_option("Table in place of that of the training split.")] = None
    output: Annotated[Path | None, run_option("File to write; default: the path that regress reads.")] = None
    workers: Files = 8
    merge: Annotated[
        tuple[Path, ...],
        run_option(
            "Merge these statistics files of parts into --output, and read no actions; may be repeated.", negative=()
        ),
    ] = ()


@dataclass(frozen=True, kw_only=True)
class RelativeConfig:
    """Relative actions of tables of pairs."""

    dataset: Annotated[str, model_option("Data set key.")]
    csv: Annotated[tuple[Path, ...], run_option("Table of pairs, of any split; may be repeated.", negative=())]
    input_root: Annotated[Path | None, run_option("DATA_DIR to read from.")] = None
    output_root: Annotated[Path | None, run_option("DATA_DIR to write to; default: the input's.")] = None
    workers: Files = 8
    frame: Annotated[
        Literal["world", "local"],
        run_option("world: last step minus first, as published; local: the last pose seen from the first one."),
    ] = "world"


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """Integrity of the files that tables name."""

    groups: Annotated[
        tuple[str, ...],
        run_option(
            "Names of the report (CALVIN) or data set keys; default: the published ones and all with a table.",
            negative=(), consume_multiple=True
        ),
    ] = ()  # fmt: skip
    output: Annotated[Path, run_option("Text report; the same as JSON is written beside it.")] = Path(
        "dataset_integrity_report.txt"
    )
    workers: Annotated[int, run_option("Processes, at most four per core.")] = 64
    timeout: Annotated[float, run_option("Seconds per file.")] = 5.0
    depth: Annotated[
        Literal["decode", "headers"],
        run_option("decode reads all of every file; headers inspects what the published checker inspects."),
    ] = "decode"
    manifest: Annotated[
        Path | None,
        run_option("File of digests: known files are compared with it and not decoded, new whole ones are added."),
    ] = None
    restart: Annotated[bool, run_option("Forget what an interrupted run found.", negative=())] = False


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """A split of a table into training and validation."""

    by: Annotated[
        Literal["row", "video", "episode", "segment"],
        run_option(
            "What stays together: row as published (neighbours get into both parts), video, episode or segment."
        ),
    ] = "row"
    dataset: Annotated[str | None, model_option("Data set key, whose record names videos and episodes.")] = None
    share: Annotated[
        float | None,
        run_option(
            "Share of validation; default: the paper's 0.3 for clips, 0.25 for image pairs.", name="--test-size"
        ),
    ] = None
    stratify: Annotated[
        str | None,
        run_option("Column whose values keep their shares; default: the class of a clip or of a labelled pair."),
    ] = None
    seed: Annotated[int, run_option("Seed of the shuffle.")] = 42
    train: Annotated[Path | None, run_option("CSV to write; default: the table's name with train_ for all_.")] = None
    val: Annotated[Path | None, run_option("CSV to write; default: likewise with val_.")] = None


@dataclass(frozen=True, kw_only=True)
class IndicesConfig:
    """Choice of the frames of clips."""

    root: Annotated[
        Path | None, run_option("Folder that the table's paths start from, in place of DATA_DIR/classification.")
    ] = None
    out: Annotated[Path | None, run_option("Table to write; default: TABLE_indices.csv beside the table.")] = None
    method: Annotated[
        Literal["motion", "uniform"],
        run_option("motion picks frames where something moves (MGSampler), uniform at equal distances."),
    ] = "motion"
    frames: Annotated[int, run_option("Indices per clip.")] = 9
    cache: Annotated[
        Path | None, run_option("Folder that keeps the motion of clips by the content of their files.")
    ] = None
    workers: Files = 4


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """What the splits of a data set share, and what is odd in its tables."""

    splits: Annotated[
        tuple[str, ...],
        run_option(
            "Split to audit; may be repeated. Default: those that are trained, validated and tested on.",
            name="--split", negative=()
        ),
    ] = ()  # fmt: skip
    table: Annotated[
        tuple[str, ...], run_option("SPLIT=FILE, a table in place of the usual one; may be repeated.", negative=())
    ] = ()
    actions: Annotated[
        bool, run_option("Also open action files: dimensions that never change, pairs without motion.", negative=())
    ] = False
    frames: Annotated[
        bool, run_option("Also decode and hash frames: equal or alike pictures under other names.", negative=())
    ] = False
    distance: Annotated[int, run_option("Bits of 256 in which hashes of alike pictures differ at most, 0 to 7.")] = 4
    still: Annotated[float, run_option("Largest change of an action within a pair that counts as no motion.")] = 1e-4
    workers: Files = 4
    cache: Annotated[Path | None, run_option("File that keeps hashes of frames, so that a stopped audit resumes.")] = (
        None
    )
    json: Annotated[Path | None, run_option("File for the report as JSON.")] = None
    output: Annotated[Path | None, run_option("File for the report as text, which is printed as well.")] = None


@dataclass(frozen=True, kw_only=True)
class TrajectoryConfig:
    """The data set that trajectories become."""

    name: Annotated[str, model_option("Key of the data set.")]
    share: Annotated[float, run_option("Share of validation, by whole episodes; 0 for none.", name="--test-size")] = (
        0.25
    )
    seed: Annotated[int, run_option("Seed of the split.")] = 42
    embodiment: Annotated[str | None, run_option("Robot type to write into the tables.")] = None
    overwrite: Annotated[bool, run_option("Replace tables that are there.", negative=())] = False


@dataclass(frozen=True, kw_only=True)
class MotionOptions:
    """How trajectories are cut into atomic motions."""

    threshold: Annotated[
        float, run_option("Displacement from which an axis is part of the label, in the units of the positions.")
    ] = 0.03
    reach: Annotated[float, run_option("Displacement along an axis that ends a motion.")] = 0.08
    axes: Annotated[
        str, run_option("Which of x, y and z point forward, left and up, and in which sense: such as +x,+y,+z.")
    ] = "+x,+y,+z"
    grip: Annotated[
        float | None,
        run_option(
            "Value between an open and a closed gripper; default: 0.5, of a LeRobot data set the middle of its range."
        ),
    ] = None
    gripper_high: Annotated[Literal["open", "closed"], run_option("Whether larger values are open or closed.")] = "open"
    deltas: Annotated[
        bool, run_option("Positions are displacements from frame to frame, which are summed up.", negative=())
    ] = False
    settle: Annotated[int, run_option("Frames that the gripper's motion takes.")] = 8


@dataclass(frozen=True, kw_only=True)
class AtomicConfig(MotionOptions, TrajectoryConfig):
    """Trajectories as atomic motions."""

    position: Annotated[str, run_option("Columns of actions.npy with the end effector's x, y and z.")] = "0,1,2"
    gripper: Annotated[int, run_option("Column with the gripper's opening; -1 for none.")] = 6


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """What to download."""

    include: Annotated[
        tuple[str, ...], run_option("Data set key; may be repeated. Default: all published ones.", negative=())
    ] = ()
    files: Annotated[
        tuple[str, ...], run_option("Only files whose path matches this shell pattern; may be repeated.", negative=())
    ] = ()
    repo: Annotated[str | None, run_option("Repository, owner/name; default: that of the records.")] = None
    source: Annotated[Literal["huggingface", "modelscope"], run_option("Hub to download from.")] = "huggingface"
    revision: Annotated[
        str | None, run_option("Branch, tag or commit; default: the one fetched before, or else the newest.")
    ] = None
    accept_licenses: Annotated[bool, run_option("Accept the terms of every source, for scripts.", negative=())] = False
    dry_run: Annotated[bool, run_option("List the files and their sizes, and fetch nothing.", negative=())] = False
    keep_archives: Annotated[bool, run_option("Keep archives once they are unpacked.", negative=())] = False


@dataclass(frozen=True, kw_only=True)
class LeRobotConfig(MotionOptions):
    """How to import a LeRobot data set."""

    name: Annotated[str | None, model_option("Key of the new data set; default: the name of the source.")] = None
    camera: Annotated[str | None, run_option("Camera; default: the first that is not on a wrist.")] = None
    actions: Annotated[
        tuple[str, ...],
        run_option(
            "Feature to decode, such as action or observation.state; may be repeated. Default: action.", negative=()
        ),
    ] = ()
    stride: Annotated[
        int | None, run_option("Frames between source and target image; default: a third of a second.")
    ] = None
    labels: Annotated[
        Literal["atomic"] | None,
        run_option("atomic makes labels of atomic motions from the actions, in place of action chunks."),
    ] = None
    position: Annotated[
        str | None,
        run_option("Names or numbers of the values with the end effector's x, y and z; default: those of these names."),
    ] = None
    gripper: Annotated[
        str | None,
        run_option("Name or number of the value with the gripper's opening, or none; default: found by its name."),
    ] = None
    robot: Annotated[str | None, run_option("Robot type; default: the data set's.")] = None
    share: Annotated[
        float, run_option("Share of the episodes that validate, where the data set declares none.", name="--val-share")
    ] = 0.25
    seed: Annotated[int, run_option("Seed of their choice.")] = 0
    episodes: Annotated[int | None, run_option("Only the first episodes.")] = None
    licence: Annotated[str | None, run_option("Licence; default: that of the data set's card.")] = None
    revision: Annotated[str | None, run_option("Revision of a data set on the hub.")] = None
    preview: Annotated[bool, run_option("Show what would be imported, and write nothing.", negative=())] = False
    overwrite: Annotated[bool, run_option("Replace an import of the same name.", negative=())] = False


@dataclass(frozen=True, kw_only=True)
class VideosConfig:
    """How to import videos."""

    table: Annotated[
        Path,
        run_option(
            "CSV with a column of paths below the folder and a column of labels; it may have the columns split (train "
            "or val), embodiment and sample_indices.",
            name="--labels",
        ),
    ]
    name: Annotated[str | None, model_option("Key of the new data set; default: the folder's name.")] = None
    video_column: Annotated[
        str | None, run_option("Column of paths; default: video_path, video, path, file or filename.")
    ] = None
    label_column: Annotated[str | None, run_option("Column of labels; default: action, label, class or verb.")] = None
    method: Annotated[Literal["motion", "uniform"], run_option("How frames are chosen: motion, or uniform.")] = "motion"
    share: Annotated[
        float, run_option("Share of the videos that validate, where the table doesn't say.", name="--val-share")
    ] = 0.3
    seed: Annotated[int, run_option("Seed of their choice.")] = 0
    licence: Annotated[str, run_option("Licence of the videos.")] = "not stated"
    commercial: Annotated[bool, run_option("The licence allows commercial use.", negative=())] = False
    workers: Annotated[int, run_option("Videos that are read at the same time.")] = 4
