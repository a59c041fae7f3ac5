"""The options of every command, in frozen dataclasses made of shared groups.

They serve Python functions, the command line and sweep files. ``options.yaml``
holds the help of every option and the box that shows it. None means that an
option was left out: records decide.
"""

import functools
import importlib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_origin, get_type_hints

from cyclopts import Group, Parameter
from typing_extensions import dataclass_transform

from lary.files import adapter
from lary.registry import load_plugin, suggest
from lary.settings import Settings, load_settings
from lary.types import BenchmarkProtocol, JsonDict, UsageError

Mode = Literal["image", "video"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
ProbePrecision = Literal["fp32", "tf32", "bf16"]
TrackerName = Literal["none", "tensorboard", "wandb", "trackio"]
RelativeFrame = Literal["world", "local"]
ProbeControl = Literal["static-pair", "shuffled-order", "shuffled-targets"]
StoreKind = Literal["npz", "shards"]
LatentDtype = Literal["float32", "float16", "bfloat16"]
TableFormat = Literal["latex", "markdown", "csv", "html"]
AnalysisKind = Literal["all", "frequency", "gap", "attention", "stride", "codebook", "ablation", "trajectories"]

Config = TypeVar("Config")
WRITTEN = ("seeds", "gpus")
"""Options that are text on the command line, elsewhere numbers or lists too."""


@functools.cache
def help_texts() -> dict[str, dict[str, dict[str, str]]]:
    """The content of ``options.yaml``: help by box, by class, and by command."""
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C, ten times as fast
    text = Path(__file__).with_name("options.yaml").read_text(encoding="utf-8")
    found: dict[str, dict[str, dict[str, str]]] = loader(text).get_single_data()
    return found


def add_help(functions: Mapping[str, Any]) -> None:
    """Attach their help to the arguments of a module's commands, `functions`."""
    for name, texts in help_texts()["commands"].items():
        hints = getattr(functions.get(name), "__annotations__", {})
        hints.update({each: Annotated[hints[each], Parameter(help=text)] for each, text in texts.items() if hints})


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Options:
    """Base of all options, which makes a class a frozen dataclass with help."""

    def __init_subclass__(cls) -> None:
        # cyclopts finds the help in annotations; dataclass() reads them below.
        boxes = help_texts()["boxes"]
        own = help_texts()["classes"].get(cls.__name__, {})
        for name, hint in cls.__annotations__.items():
            full = f"{cls.__name__}.{name}"  # it has two meanings
            box = next((title for title in boxes if {name, full} & boxes[title].keys()), "Options")
            text = own.get(name) or boxes[box].get(full) or boxes[box].get(name, "")
            group = Group(box, sort_key=list(boxes).index(box))
            cls.__annotations__[name] = Annotated[hint, Parameter(help=text, group=group)]
        Parameter(name="*")(dataclass(frozen=True, kw_only=True)(cls))  # its options get no prefix

    def check_counts(self, *names: str, advice: str = "") -> None:
        """Refuse numbers below 1 in some options. Raises UsageError."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value}: must be at least 1{advice}.")


class Paths(Options):
    """Options of every command: folders, the configuration file, and plug-ins."""

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

    def call(self, function: str, *given: Any, **named: Any) -> Any:
        """Import and call MODULE:NAME with options and then settings."""
        settings = self.settings()
        module, _, name = function.partition(":")
        return getattr(importlib.import_module(module), name)(*given, settings, **named)


class ProtocolOptions(Options):
    protocol: BenchmarkProtocol = "corrected"
    latent: Literal["continuous", "quantized", "noisy"] | None = None
    layer: int | None = None
    size: int | None = None
    name: str | None = None


class SubjectOptions(ProtocolOptions):
    model: str
    dataset: str


class StoredOptions(SubjectOptions):
    weights: Literal["random"] | None = None
    pool: str | None = None


class InputOptions(Options):
    mode: Mode | None = None
    stride: int | None = None


class DeviceOptions(Options):
    gpus: str | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


class EncoderOptions(DeviceOptions, ProtocolOptions):
    weights: str | None = None
    revision: str | None = None
    precision: Precision = "fp32"
    compile: bool = False


class ClusterOptions(Options):
    """Options of where work runs: on this machine, or by Ray."""

    engine: Literal["local", "ray"] = "local"
    address: str = "auto"


class ExtractionOptions(ClusterOptions, InputOptions, EncoderOptions, SubjectOptions):
    limit: int | None = None
    batch_size: int = 16
    cpu_batch: bool = False
    workers: int | None = None
    read_timeout: float = 60.0
    store: StoreKind = "npz"
    dtype: LatentDtype = "float32"
    pool: str = "none"
    shard_rows: int = 1024
    overwrite: bool = False


class ExtractConfig(ExtractionOptions):
    """Options of the extraction of one split."""

    split: str
    input: Path | None = None
    seed: int = 0
    retry_failed: bool = False
    dry_run: bool = False


class LatentsConfig(StoredOptions):
    split: str


class ConvertConfig(LatentsConfig):
    """Options of another kind of store for the latents of one split."""

    store: StoreKind
    dtype: LatentDtype | None = None
    shard_rows: int = 1024


class TrainingOptions(Options):
    splits: str | None = None
    probe_preset: str = "paper"
    seeds: str | None = None
    folds: int | None = None
    epochs: int | None = None
    overwrite: bool = False


class ProbeOptions(TrainingOptions):
    control: ProbeControl | None = None
    project: int | None = None
    probe_batch_size: int | None = None
    tracker: TrackerName = "none"
    resume: bool = True


class ActionOptions(Options):
    model_type: Literal["mlp", "dit", "ridge"] = "mlp"
    action_mode: Literal["absolute", "relative"] = "absolute"
    relative_frame: RelativeFrame | None = None
    sampler_steps: int | None = None


class ClassifyConfig(DeviceOptions, ProbeOptions, StoredOptions):
    """Options of a classification probe on extracted latents."""

    dim: int | None = None
    classes: int | None = None
    precision: ProbePrecision | None = None
    seed: int | None = None


class RegressConfig(DeviceOptions, ProbeOptions, ActionOptions, StoredOptions, InputOptions):
    """Options of a regression probe on extracted latents."""

    precision: ProbePrecision | None = None
    seed: int | None = None


class RunConfig(ProbeOptions, ActionOptions, ExtractionOptions):
    """Options of the extraction of all splits that a probe needs, and the probe."""

    model_seed: int = 0
    seed: int | None = None
    probe_precision: ProbePrecision | None = None


class ControlsConfig(DeviceOptions, TrainingOptions, ActionOptions, SubjectOptions):
    """Options of a model with its controls, which extracts missing latents."""

    project: int = 16


class SweepConfig(ClusterOptions):
    dry_run: bool = False
    gpus_per_run: float | None = None
    cpus_per_run: float = 1.0
    part: str | None = None


class CheckModelConfig(EncoderOptions):
    seed: int = 0


class DiagnoseConfig(StoredOptions):
    split: str | None = None
    rows: int | None = None
    batch_size: int = 64
    json: Path | None = None


class AnalyzeConfig(Options):
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
    """The options of a command by name, from a Python call or a sweep file.

    Raises UsageError, beginning with `where`, for an unknown or missing name,
    or another type.
    """
    from pydantic import ValidationError

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
        if get_origin(hints[name]) is tuple and not isinstance(value, tuple):  # YAML has lists, or one of them
            value = tuple(value) if isinstance(value, list) else (value,)
        try:
            adapter(hints[name]).validate_python(value, strict=True)
        except ValidationError as error:
            raise UsageError(f"{where}: {name} {str(value)[:60]!r}: {error.errors()[0]['msg']}.") from None
        values[name] = value
    try:
        return kind(**values)
    except TypeError:
        needed = (field.name for field in fields(kind) if field.default is MISSING)
        lacking = ", ".join(name for name in needed if name not in values)
        raise UsageError(f"{where}: there is no value for {lacking}.") from None
