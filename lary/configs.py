"""The options of every command: one frozen dataclass each, whose fields are declared once, in groups that they share.

The same classes serve the Python functions, the command line (where the groups are boxes of the help), and sweep
files. None means that an option was left out, and the records of model and data set decide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from lary.registry import load_plugin
from lary.settings import Settings, load_settings
from lary.types import BenchmarkProtocol

Mode = Literal["image", "video"]
LatentKind = Literal["continuous", "quantized", "noisy"]
Precision = Literal["fp32", "bf16", "fp16"]
DeviceChoice = Literal["auto", "cpu", "cuda", "mps"]
RandomWeights = Literal["random"]
ProbePrecision = Literal["fp32", "bf16"]
TrackerName = Literal["none", "tensorboard", "wandb", "trackio"]
ProbeType = Literal["mlp", "dit", "ridge"]
ActionMode = Literal["absolute", "relative"]
RelativeFrame = Literal["world", "local"]
ProbeControl = Literal["static-pair", "shuffled-order", "shuffled-targets"]
EngineKind = Literal["local", "ray"]
StoreKind = Literal["npz", "shards"]
LatentDtype = Literal["float32", "float16", "bfloat16"]
AnalysisKind = Literal["all", "frequency", "gap", "attention", "stride", "codebook", "trajectories"]


def help_box(title: str, place: int) -> Callable[..., Parameter]:
    """A box of the help, the one with the smallest `place` first: makes the options in it from their help texts."""
    box = Group(title, sort_key=place)
    return lambda help, **more: Parameter(group=box, help=help, **more)


run_option = help_box("Options", 0)
model_option = help_box("Model and data set", 1)
latents_option = help_box("Latents", 2)
probe_option = help_box("Probe", 3)
media_option = help_box("Reading of media", 4)
storage_option = help_box("Storage", 5)
machine_option = help_box("Machine", 6)
path_option = help_box("Paths (command line > environment > lary.yaml > default)", 9)

SplitName = Annotated[str, model_option("Split of the data set.")]
InputMode = Annotated[
    Mode | None, model_option("Input of the data set, as its record says; a contradicting one is refused.")
]
Stride = Annotated[
    int | None, model_option("Frames between source and target, as the record says; a contradicting one is refused.")
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Paths:
    """The folders of the benchmark, the configuration file, and plug-ins: what every command takes."""

    lary_root: Annotated[str | None, path_option("Folder whose data/ holds the tables (LARY_ROOT).")] = None
    data_dir: Annotated[
        str | None, path_option("Folder with classification/ and regression/ (DATA_DIR).", alias="--data-root")
    ] = None
    model_dir: Annotated[str | None, path_option("Folder with weights (MODEL_DIR).")] = None
    lary_la_dir: Annotated[str | None, path_option("Folder of latents (LARY_LA_DIR).")] = None
    lary_log_dir: Annotated[str | None, path_option("Folder of results (LARY_LOG_DIR).")] = None
    config: Annotated[Path | None, path_option("Configuration file; default: lary.yaml in the current folder.")] = None
    plugin: Annotated[
        tuple[Path, ...], path_option("Python file that registers models or data sets; may be repeated.", negative=())
    ] = ()

    def settings(self) -> Settings:
        """Run the plug-ins and resolve the settings. Raises UsageError."""
        for plugin in self.plugin:
            load_plugin(plugin)
        names = ("lary_root", "data_dir", "model_dir", "lary_la_dir", "lary_log_dir")
        return load_settings({name.upper(): getattr(self, name) for name in names}, config=self.config)


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Which devices of this machine compute."""

    gpus: Annotated[
        str | None,
        machine_option(
            "CUDA devices, such as 0 or 0,1,2,3, one process each. Default: the first one for extraction, all "
            "visible ones for probes. Without CUDA one CPU process runs."
        ),
    ] = None
    device: Annotated[DeviceChoice, machine_option("auto takes the CUDA devices of --gpus, or else the CPU.")] = "auto"


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Where work runs."""

    engine: Annotated[
        EngineKind,
        machine_option("local, this machine, or ray, the machines of a Ray cluster; needs the extra lary[ray]."),
    ] = "local"
    address: Annotated[
        str,
        machine_option("Address of the Ray cluster; auto is the one that this machine belongs to, local starts one."),
    ] = "auto"


@dataclass(frozen=True, kw_only=True)
class SubjectOptions:
    """A model on a data set."""

    model: Annotated[str, model_option("Model key.")]
    dataset: Annotated[str, model_option("Data set key; 'lary datasets' lists them.")]


@dataclass(frozen=True, kw_only=True)
class ProtocolOptions:
    """Which of a model's latents."""

    protocol: Annotated[
        BenchmarkProtocol,
        latents_option("corrected computes what the benchmark describes, paper what its published code computes."),
    ] = "corrected"
    latent: Annotated[
        LatentKind | None,
        latents_option(
            "Latents of a quantized model: continuous ones, its codebook rows, or noisy draws as published."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class StoredOptions(ProtocolOptions):
    """Which of the latents that were extracted."""

    weights: Annotated[
        RandomWeights | None,
        latents_option("random: latents of the same architecture with random weights, as given to extract."),
    ] = None
    pool: Annotated[
        str | None,
        latents_option(
            "Pooling over the tokens of each step, as given to extract; pooled here where only all tokens are stored."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class EncoderOptions(ProtocolOptions):
    """How a model is loaded and run."""

    weights: Annotated[
        str | None,
        model_option(
            "Checkpoint in place of the model's variable: folder, file or hub id, or random: drawn from the seed."
        ),
    ] = None
    revision: Annotated[str | None, model_option("Revision of a hub checkpoint.")] = None
    precision: Annotated[
        Precision, machine_option("Arithmetic of the model's forward pass; fp32, or bf16 and fp16 by autocast.")
    ] = "fp32"
    compile: Annotated[bool, machine_option("Compile the model's network with torch.compile.")] = False


@dataclass(frozen=True, kw_only=True)
class ExtractionOptions(ClusterOptions, DeviceOptions, EncoderOptions, SubjectOptions):
    """How media are read, and how latents are stored."""

    mode: InputMode = None
    stride: Stride = None
    limit: Annotated[int | None, media_option("Only the first rows of each table.")] = None
    batch_size: Annotated[int, machine_option("Samples per forward pass of the model.")] = 16
    workers: Annotated[
        int | None,
        machine_option(
            "Processes that read media, per device; default: the cores shared by the devices, at most 8 each."
        ),
    ] = None
    read_timeout: Annotated[float, media_option("Seconds after which a sample that can't be read is given up.")] = 60.0
    store: Annotated[
        StoreKind,
        storage_option(
            "npz, one file per sample as published, or shards: safetensors files of many rows with an index."
        ),
    ] = "npz"
    dtype: Annotated[LatentDtype, storage_option("Number format of the stored tokens; bfloat16 needs shards.")] = (
        "float32"
    )
    pool: Annotated[
        str, storage_option("Pooling over the tokens of each step before they are stored: none, mean, cls or grid:K.")
    ] = "none"
    shard_rows: Annotated[int, storage_option("Rows per shard.")] = 1024


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(ExtractionOptions):
    """Extraction of one split."""

    split: SplitName
    input: Annotated[
        Path | None, media_option("Table to read in place of LARY_ROOT/data/DATASET_metadata_SPLIT.csv.")
    ] = None
    seed: Annotated[int, model_option("Seed of models with random weights.")] = 0
    overwrite: Annotated[bool, storage_option("Replace latents of another extraction in the same folder.")] = False
    retry_failed: Annotated[bool, run_option("Only the rows that the failures file of the last run names.")] = False
    dry_run: Annotated[
        bool, run_option("Measure a few samples and report time, bytes and free space; nothing is written.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class LatentsConfig(StoredOptions, SubjectOptions):
    """The extracted latents of one split."""

    split: SplitName


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The size of a probe and the splits that it is trained and scored on."""

    splits: Annotated[
        str | None,
        probe_option(
            "Splits drawn anew in place of the published ones, such as by-episode; 'lary datasets KEY' lists them."
        ),
    ] = None
    probe_preset: Annotated[str, probe_option("Size of the probe: paper, or demo for a CPU.")] = "paper"
    seeds: Annotated[
        str | None, probe_option("Seeds such as 0,1,2 in place of --seed: one probe each, metrics are their means.")
    ] = None
    epochs: Annotated[int | None, probe_option("Epochs in place of the preset's.")] = None
    overwrite: Annotated[bool, storage_option("Replace the result of another run in the same folder.")] = False


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(TrainingOptions):
    """What a probe is trained on and how."""

    control: Annotated[
        ProbeControl | None,
        probe_option(
            "static-pair repeats the first frame, shuffled-order permutes the frames of every sample, "
            "shuffled-targets trains on the targets of other samples."
        ),
    ] = None
    project: Annotated[int | None, probe_option("Project the latents to this many dimensions at random.")] = None
    probe_batch_size: Annotated[
        int | None, probe_option("Batch size in place of the preset's, over all devices together.")
    ] = None
    tracker: Annotated[TrackerName, probe_option("Tracker that follows losses and metrics.")] = "none"
    resume: Annotated[
        bool, probe_option("Resume the same training where it was interrupted; --no-resume starts over.")
    ] = True


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(DeviceOptions, ProbeOptions, StoredOptions, SubjectOptions):
    """A classification probe on extracted latents."""

    dim: Annotated[
        int | None, probe_option("Latent dimension, as the latents have it; a contradicting one is refused.")
    ] = None
    classes: Annotated[
        int | None, probe_option("Number of classes, as the record says; a contradicting one is refused.")
    ] = None
    precision: Annotated[
        ProbePrecision | None,
        machine_option("bf16 trains by autocast, fp32 without; default: the preset's where the device has it."),
    ] = None
    seed: Annotated[int, probe_option("Seed of weights and sampling.")] = 0


@dataclass(frozen=True, kw_only=True)
class ActionOptions:
    """The kind of a regression probe and of its target."""

    model_type: Annotated[
        ProbeType, probe_option("Probe: mlp or dit as published, or ridge, a closed-form linear one.")
    ] = "mlp"
    action_mode: Annotated[
        ActionMode, probe_option("Target: absolute action chunks, or relative motion between the two images.")
    ] = "absolute"
    relative_frame: Annotated[
        RelativeFrame | None,
        probe_option(
            "Relative motion: difference of the steps (world, as published), or last pose in the first (local)."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class RegressConfig(DeviceOptions, ProbeOptions, ActionOptions, StoredOptions, SubjectOptions):
    """A regression probe on extracted latents."""

    stride: Stride = None
    mode: InputMode = None
    sampler_steps: Annotated[
        int | None, probe_option("Steps by which the dit draws a chunk: 500 as published, fewer by DDIM.")
    ] = None
    seed: Annotated[int, probe_option("Seed of weights and sampling.")] = 42


@dataclass(frozen=True, kw_only=True)
class RunConfig(ProbeOptions, ExtractionOptions):
    """Extraction of every split that a probe needs, and the probe."""

    model_seed: Annotated[int, model_option("Seed of models with random weights.")] = 0
    model_type: Annotated[
        ProbeType | None, probe_option("Regression probe: mlp or dit as published, or ridge. Default: mlp.")
    ] = None
    action_mode: Annotated[
        ActionMode | None, probe_option("Target of a regression: absolute action chunks, or relative motion.")
    ] = None
    relative_frame: Annotated[RelativeFrame | None, probe_option("Axes of relative motion.")] = None
    sampler_steps: Annotated[int | None, probe_option("Steps by which the dit draws a chunk.")] = None
    seed: Annotated[int | None, probe_option("Seed of the probe's weights and sampling; default: the probe's own.")] = (
        None
    )
    probe_precision: Annotated[
        ProbePrecision | None, machine_option("Arithmetic of the training of an attentive probe.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class ControlsConfig(DeviceOptions, TrainingOptions, ActionOptions, ProtocolOptions, SubjectOptions):
    """A model with its controls; latents that are missing are extracted."""

    project: Annotated[int, probe_option("Dimensions of the random projection.")] = 16


@dataclass(frozen=True, kw_only=True)
class SweepConfig(ClusterOptions):
    """Many runs from one file."""

    dry_run: Annotated[bool, run_option("Show the plan and what of it is done; nothing is run.")] = False
    gpus_per_run: Annotated[float, machine_option("GPUs of a Ray task.")] = 0.0
    cpus_per_run: Annotated[float, machine_option("CPU cores of a Ray task.")] = 1.0
    part: Annotated[
        str | None,
        run_option(
            "Only the K-th of N parts of the runs, as K/N with K from 1, such as for the tasks of a Slurm array."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class CheckModelConfig(DeviceOptions, EncoderOptions):
    """A trial of one model on generated frames."""

    seed: Annotated[int, model_option("Seed of the frames and of models with random weights.")] = 0


@dataclass(frozen=True, kw_only=True)
class DiagnoseConfig(StoredOptions, SubjectOptions):
    """Properties of the latents of one split, before any probe."""

    split: Annotated[str | None, model_option("Split of the data set; default: the one that probes validate on.")] = (
        None
    )
    rows: Annotated[int | None, run_option("Use this many samples, evenly spaced; default: all of them.")] = None
    relations: Annotated[int, run_option("Check at most this many triples, and as many reversed pairs.")] = 2000
    batch_size: Annotated[int, machine_option("Samples in memory at once.")] = 64
    seed: Annotated[int, run_option("Seed of the draws and of the resampling.")] = 0
    json: Annotated[
        Path | None, run_option("File for the numbers; default: diagnostics/DATASET/SPLIT/MODEL.json in LARY_LOG_DIR.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class AnalyzeConfig:
    """Figures and tables from finished runs."""

    folder: Annotated[Path | None, run_option("Folder that holds the runs; default: LARY_LOG_DIR.")] = None
    out: Annotated[Path | None, run_option("Folder to write to; default: analysis/ in LARY_LOG_DIR.")] = None
    model: Annotated[tuple[str, ...], run_option("Only runs of this model; may be repeated.")] = ()
    dataset: Annotated[tuple[str, ...], run_option("Only runs on this data set; may be repeated.")] = ()
    window: Annotated[
        int | None,
        run_option(
            "Classes that the moving average of the frequency analysis spans; default: a tenth of them, at least 3."
        ),
    ] = None
    human: Annotated[str, run_option("Classification data set of people, for the gap analysis.")] = "human_1st"
    robot: Annotated[str, run_option("Classification data set of robots, for the gap analysis.")] = "robot_1st"
    sample: Annotated[
        tuple[str, ...],
        run_option("Sample to show attention on, by id or by media path as in case.txt; may be repeated."),
    ] = ()
    episode: Annotated[
        tuple[str, ...], run_option("Episode to show trajectories of, as actions.npz names it; may be repeated.")
    ] = ()
    count: Annotated[int, run_option("Samples or episodes to show where none is named.")] = 3
    square: Annotated[bool, run_option("Lay out tokens that have no position as a square over the frames.")] = False
