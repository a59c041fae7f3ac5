"""The options of every command: one frozen dataclass each, whose fields are declared once, in groups that they share.

They serve Python functions, the command line and sweep files. ``options.yaml`` holds
the help of every option and its box of the help. None means that an option was left
out, and the records of model and data set decide.
"""

import functools
import importlib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from cyclopts import Group, Parameter
from typing_extensions import dataclass_transform

from lary.registry import load_plugin, suggest
from lary.settings import Settings, load_settings
from lary.types import BenchmarkProtocol, JsonDict, UsageError

Mode = Literal["image", "video"]
Precision = Literal["fp32", "bf16", "fp16"]
ProbePrecision = Literal["fp32", "bf16"]
TrackerName = Literal["none", "tensorboard", "wandb", "trackio"]
RelativeFrame = Literal["world", "local"]
ProbeControl = Literal["static-pair", "shuffled-order", "shuffled-targets"]
StoreKind = Literal["npz", "shards"]
LatentDtype = Literal["float32", "float16", "bfloat16"]
AnalysisKind = Literal["all", "frequency", "gap", "attention", "stride", "codebook", "trajectories"]

Config = TypeVar("Config")
WRITTEN = ("seeds", "gpus")
"""Options whose value is text on the command line, and may be a number or a list of numbers elsewhere."""


@functools.cache
def help_texts() -> dict[str, dict[str, dict[str, str]]]:
    """What ``options.yaml`` says: the help of the boxes' options, of each class, and of each command."""
    import yaml

    found: dict[str, dict[str, dict[str, str]]] = yaml.safe_load(
        Path(__file__).with_name("options.yaml").read_text(encoding="utf-8")
    )
    return found


def add_help(functions: Mapping[str, Any]) -> None:
    """Give the own arguments of a module's commands their help."""
    for name, texts in help_texts()["commands"].items():
        hints = getattr(functions.get(name), "__annotations__", {})
        hints.update({each: Annotated[hints[each], Parameter(help=text)] for each, text in texts.items() if hints})


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Options:
    """The base of all classes of options: each is a frozen dataclass whose fields have their help."""

    def __init_subclass__(cls) -> None:
        boxes, own = help_texts()["boxes"], help_texts()["classes"].get(cls.__name__, {})
        for name, hint in cls.__annotations__.items():
            box = next((title for title, texts in boxes.items() if name in texts), "Options")
            text = own.get(name, boxes[box].get(name, ""))
            group = Group(box, sort_key=list(boxes).index(box))
            cls.__annotations__[name] = Annotated[hint, Parameter(help=text, group=group)]
        Parameter(name="*")(dataclass(frozen=True, kw_only=True)(cls))  # its options get no prefix


class Paths(Options):
    """The folders of the benchmark, the configuration file, and plug-ins: what every command takes."""

    lary_root: str | None = None
    data_dir: Annotated[str | None, Parameter(alias="--data-root")] = None
    model_dir: str | None = None
    lary_la_dir: str | None = None
    lary_log_dir: str | None = None
    config: Path | None = None
    plugin: tuple[Path, ...] = ()

    def settings(self) -> Settings:
        """Run the plug-ins and resolve the settings. Raises UsageError."""
        for plugin in self.plugin:
            load_plugin(plugin)
        given = {name.upper(): value for name, value in vars(self).items() if name not in ("config", "plugin")}
        return load_settings(given, config=self.config)

    def call(self, function: str, config: Options, *more: Any, **named: Any) -> Any:
        """Import a function MODULE:NAME, which may take seconds, and call it with options and settings."""
        settings = self.settings()
        module, _, name = function.partition(":")
        return getattr(importlib.import_module(module), name)(config, settings, *more, **named)


class ProtocolOptions(Options):
    """Which of a model's latents."""

    protocol: BenchmarkProtocol = "corrected"
    latent: Literal["continuous", "quantized", "noisy"] | None = None


class SubjectOptions(ProtocolOptions):
    """A model on a data set."""

    model: str
    dataset: str


class StoredOptions(SubjectOptions):
    """Which of the latents that were extracted."""

    weights: Literal["random"] | None = None
    pool: str | None = None


class InputOptions(Options):
    """What the record of a data set says, for command lines that say it too."""

    mode: Mode | None = None
    stride: int | None = None


class DeviceOptions(Options):
    """Which devices of this machine compute."""

    gpus: str | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


class EncoderOptions(DeviceOptions, ProtocolOptions):
    """How a model is loaded and run."""

    weights: str | None = None
    revision: str | None = None
    precision: Precision = "fp32"
    compile: bool = False


class ClusterOptions(Options):
    """Where work runs."""

    engine: Literal["local", "ray"] = "local"
    address: str = "auto"


class ExtractionOptions(ClusterOptions, InputOptions, EncoderOptions, SubjectOptions):
    """How media are read, and how latents are stored."""

    limit: int | None = None
    batch_size: int = 16
    workers: int | None = None
    read_timeout: float = 60.0
    store: StoreKind = "npz"
    dtype: LatentDtype = "float32"
    pool: str = "none"
    shard_rows: int = 1024
    overwrite: bool = False


class ExtractConfig(ExtractionOptions):
    """Extraction of one split."""

    split: str
    input: Path | None = None
    seed: int = 0
    retry_failed: bool = False
    dry_run: bool = False


class LatentsConfig(StoredOptions):
    """The extracted latents of one split."""

    split: str


class ConvertConfig(LatentsConfig):
    """Another kind of store for the latents of one split."""

    store: StoreKind
    dtype: LatentDtype | None = None
    shard_rows: int = 1024


class TrainingOptions(Options):
    """The size of a probe and the splits that it is trained and scored on."""

    splits: str | None = None
    probe_preset: str = "paper"
    seeds: str | None = None
    epochs: int | None = None
    overwrite: bool = False


class ProbeOptions(TrainingOptions):
    """What a probe is trained on and how."""

    control: ProbeControl | None = None
    project: int | None = None
    probe_batch_size: int | None = None
    tracker: TrackerName = "none"
    resume: bool = True


class ActionOptions(Options):
    """The kind of a regression probe and of its target."""

    model_type: Literal["mlp", "dit", "ridge"] = "mlp"
    action_mode: Literal["absolute", "relative"] = "absolute"
    relative_frame: RelativeFrame | None = None
    sampler_steps: int | None = None


class ClassifyConfig(DeviceOptions, ProbeOptions, StoredOptions):
    """A classification probe on extracted latents."""

    dim: int | None = None
    classes: int | None = None
    precision: ProbePrecision | None = None
    seed: int = 0


class RegressConfig(DeviceOptions, ProbeOptions, ActionOptions, StoredOptions, InputOptions):
    """A regression probe on extracted latents."""

    seed: int = 42


class RunConfig(ProbeOptions, ActionOptions, ExtractionOptions):
    """Extraction of every split that a probe needs, and the probe."""

    model_seed: int = 0
    seed: int | None = None
    probe_precision: ProbePrecision | None = None


class ControlsConfig(DeviceOptions, TrainingOptions, ActionOptions, SubjectOptions):
    """A model with its controls; latents that are missing are extracted."""

    project: int = 16


class SweepConfig(ClusterOptions):
    """Many runs from one file."""

    dry_run: bool = False
    gpus_per_run: float = 0.0
    cpus_per_run: float = 1.0
    part: str | None = None


class CheckModelConfig(EncoderOptions):
    """A trial of one model on generated frames."""

    seed: int = 0


class DiagnoseConfig(StoredOptions):
    """Properties of the latents of one split, before any probe."""

    split: str | None = None
    rows: int | None = None
    batch_size: int = 64
    json: Path | None = None


class AnalyzeConfig(Options):
    """Figures and tables from finished runs."""

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


def make_options(kind: type[Config], given: Mapping[str, Any], where: str) -> Config:
    """The options of a command from their values by name, from a Python call or a sweep file.

    Raises UsageError, beginning with `where`, for an unknown or missing name, or
    another type.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    assert is_dataclass(kind)
    hints = get_type_hints(kind)
    values: JsonDict = {}
    for name, value in given.items():
        if name not in hints:
            raise UsageError(f"{where}: there is no option '{name}'.{suggest(name, list(hints))}")
        if value is None:
            continue
        if name in WRITTEN and isinstance(value, (int, list, tuple)):
            value = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        if hints[name] == Path | None and isinstance(value, str):
            value = Path(value)
        try:
            TypeAdapter(hints[name], config=ConfigDict(strict=True)).validate_python(value)
        except ValidationError as error:
            raise UsageError(f"{where}: {name} {str(value)[:60]!r}: {error.errors()[0]['msg']}.") from None
        values[name] = value
    try:
        return kind(**values)
    except TypeError:
        needed = [field.name for field in fields(kind) if field.default is MISSING and field.name not in values]
        raise UsageError(f"{where}: there is no value for {', '.join(needed)}.") from None
