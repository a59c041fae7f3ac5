"""The schema of ``result.json``: what was asked, what was run, on what, with which outcome.

``record.yaml`` describes the fields.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lary.files import digest, first_error, json_text, read_json, write_text
from lary.probes.outcome import SelectionName
from lary.results.checks import odd_part
from lary.types import RANDOM, BenchmarkProtocol, JsonDict, LaryError

SCHEMA_VERSION = 4
FILE_NAME = "result.json"
SEAL = re.compile(rb'"seal": "([0-9a-f]{64})"')
USUAL_PROBES, OF_LATENTS = ("", "attentive", "mlp"), ("latent", "pool", "layer", "size")
"""Probes of the paper's leaderboards."""
ALONE = "intervals are for this one training alone, and differences have no p value: --seeds 0,1,2 trains three"

Unit = Literal["fraction", "normalised", "physical", "degrees", "none"]


class Strict(BaseModel):
    """Unknown fields and non-finite numbers are refused: a result is read years later."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Metric(Strict):
    """One number with its 95 % interval, or why it has none."""

    value: float
    low: float | None = None
    high: float | None = None
    no_interval: str = ""
    unit: Unit = "none"
    higher_is_better: bool = True

    @property
    def scale(self) -> float:
        """What a printed value is multiplied with: 100 for a fraction, else 1."""
        return 100.0 if self.unit == "fraction" else 1.0

    @property
    def better(self) -> str:
        """Which values are better: higher or lower ones."""
        return "higher" if self.higher_is_better else "lower"

    @property
    def rank(self) -> float:
        """The value on a scale where lower is better."""
        return -self.value if self.higher_is_better else self.value

    @property
    def bounds(self) -> str:
        """The interval as ``[low, high]``, or nothing."""
        if self.low is None or self.high is None:
            return ""
        return f"[{number(self.low, self.unit)}, {number(self.high, self.unit)}]"

    def text(self, reason: bool = True) -> str:
        """The number and its interval, or why it has none."""
        why = f"(no interval: {self.no_interval})" if reason and self.no_interval else ""
        return f"{number(self.value, self.unit)} {self.bounds or why}".rstrip()

    def reading(self, p: float | None = None) -> Literal["", "even", "better", "worse"]:
        """What a difference says of a run, by its p or else its interval."""
        if self.low is None and p is None:
            return ""
        around = self.low is not None and self.high is not None and self.low <= 0 <= self.high
        if around or (p is not None and p >= 0.05):
            return "even"
        return "better" if (self.value > 0) == self.higher_is_better else "worse"


def number(value: float, unit: str = "none") -> str:
    """A number for a text: per cent and degrees with one decimal, others with three."""
    if unit in ("fraction", "degrees"):
        return f"{100 * value if unit == 'fraction' else value:.1f}"
    return f"{value:.3f}" if 0.0005 <= abs(value) < 1000 or value == 0 else f"{value:.3g}"


class SplitFacts(Strict):
    """Size of one split."""

    rows: int
    groups: int


class DatasetFacts(Strict):
    """Which data set was used."""

    name: str
    title: str = ""
    revision: str = ""
    revision_source: Literal["declared", "verified"] = "declared"
    tables: dict[str, str] = {}
    samples: dict[str, str] = {}
    splits: dict[str, SplitFacts] = {}
    unit: str = "episodes or videos"
    stride: int | None = None
    units: tuple[str, ...] = ()
    split_set: str = ""


class ModelFacts(Strict):
    """Which representation was probed."""

    name: str
    paradigm: str
    revision: str = ""
    weights: str = ""
    dim: int | None = None
    shape: tuple[int, ...] = ()
    parameters_m: float | None = None
    training: JsonDict = {}


class Provenance(Strict):
    """Where the numbers come from."""

    command: tuple[str, ...] = ()
    versions: dict[str, str] = {}
    commit: str | None = None
    dirty: bool | None = None
    machine: dict[str, str | int | float] = {}
    probe_command: tuple[str, ...] = ()
    threads: int | None = None
    processes: int | None = None
    devices: tuple[str, ...] = ()


class NamedDigest(Strict):
    """One thing that decides a run, such as its options, as a digest."""

    name: str
    digest: str


def run_identity(inputs: Sequence[NamedDigest]) -> str:
    """The identity of a run: a digest over all that decides it."""
    return digest(*(part for each in inputs for part in (each.name, each.digest)))


class RunFacts(Strict):
    """What is known about a run before its outcome: the part that the caller fills in."""

    schema_version: int = SCHEMA_VERSION
    seal: str = ""
    created: str = Field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    status: Literal["complete", "incomplete"] = "complete"
    identity: str = ""
    inputs: tuple[NamedDigest, ...] = ()
    dataset: DatasetFacts
    model: ModelFacts
    probe: str = ""
    action_mode: Literal["absolute", "relative"] | None = None
    relative_frame: Literal["world", "local"] | None = None
    protocol: BenchmarkProtocol = "corrected"
    protocol_notes: tuple[str, ...] = ()
    preset: str = "paper"
    seed: int = 0
    seeds: tuple[int, ...] = ()
    control: str | None = None
    project: int | None = None
    folds: int | None = None
    options_given: JsonDict = {}
    options: JsonDict = {}
    provenance: Provenance = Field(default_factory=Provenance)
    timings: dict[str, float] = {}
    failures: int = 0
    files: dict[str, str] = {}
    extra: JsonDict = {}


class Selection(Strict):
    """The outcome under one way of choosing head and epoch."""

    epoch: int
    head: int | None = None
    loss: dict[str, float] = {}
    metrics: dict[str, Metric]


class SeedRow(Strict):
    """One of several probes that differ in their seed, under the headline selection."""

    seed: int
    epoch: int
    head: int | None = None
    metrics: dict[str, float]


class Control(Strict):
    """What a rule without any representation reaches on the same samples."""

    metrics: dict[str, Metric]
    gain: Metric


class Margin(Strict):
    """How this run compares with another one on the same samples."""

    name: str
    value: float
    gain: Metric
    p: float | None
    result: str = ""


class ClassRow(Strict):
    """One class under the headline selection."""

    name: str
    train: int
    true: int
    predicted: int
    precision: float
    recall: Metric | None
    f1: float


class SplitRow(Strict):
    """A row of a table on one split under the headline selection."""

    split: str
    name: str


class GroupRow(SplitRow):
    """One group of dimensions on one split under the headline selection."""

    mse: Metric
    r2: float | None = None
    physical_mse: Metric | None = None
    unit: str = ""


class DimensionRow(GroupRow):
    """One action dimension on one split under the headline selection."""

    rmse: float


class PhysicalError(Strict):
    """An error in physical units."""

    mse: Metric
    unit: str


class RobotRow(SplitRow):
    """One robot type on one split under the headline selection."""

    rows: int
    groups: int
    mse: Metric
    r2: float | None
    degrees: Metric | None = None
    physical: dict[str, PhysicalError] = {}


class OrientationRow(SplitRow):
    """One orientation on one split under the headline selection."""

    convention: str
    dims: tuple[int, ...] = ()
    degrees: Metric


class Example(Strict):
    """One action chunk for the eye, chosen by the rank of its error, never by hand."""

    sample: str
    media: tuple[str, ...]
    group: str
    quantile: float
    mse: float
    predicted: tuple[tuple[float, ...], ...]
    true: tuple[tuple[float, ...], ...]
    pictures: tuple[str, ...] = ()


class EvalResult(RunFacts):
    """One result.json."""

    task: Literal["classification", "regression"]
    headline: SelectionName
    primary: str
    selections: dict[SelectionName, Selection]
    controls: dict[str, Control]
    interval: str
    classes: tuple[ClassRow, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    dimensions: tuple[DimensionRow, ...] = ()
    dimension_groups: tuple[GroupRow, ...] = ()
    robots: tuple[RobotRow, ...] = ()
    orientations: tuple[OrientationRow, ...] = ()
    per_seed: tuple[SeedRow, ...] = ()
    margins: tuple[Margin, ...] = ()
    examples: tuple[Example, ...] = ()
    history: tuple[JsonDict, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The model's name, with what sets this run apart from usual ones."""
        parts = [f"{self.probe} probe"] if self.probe not in USUAL_PROBES else []
        parts += [f"{k} {v}" for k, v in self.options_given.items() if k in OF_LATENTS and v is not None]
        parts += [f"{RANDOM} weights"] if self.model.revision == RANDOM else []
        parts += [self.control.replace("-", " ")] if self.control else []
        parts += [f"{self.project} random dimensions"] if self.project is not None else []
        parts += [f"{self.folds} folds"] if self.folds is not None else []
        return f"{self.model.name} ({', '.join(parts)})" if parts else self.model.name

    @property
    def kind(self) -> str:
        """What ranked runs share: kind of probe, preset where that matters, protocol."""
        return f"{self.probe} probe, {f'preset {self.preset}, ' * (self.probe != 'ridge')}protocol {self.protocol}"

    @property
    def is_control(self) -> bool:
        """Whether this run was made for comparison with others."""
        return self.control is not None or self.project is not None or self.model.revision == RANDOM

    @property
    def score(self) -> Metric:
        return self.selections[self.headline].metrics[self.primary]


def schema_text() -> str:
    """JSON Schema of result.json, draft 2020-12, as in the documentation."""
    import yaml

    found = EvalResult.model_json_schema(mode="serialization")
    sentences = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    for name, part in {"EvalResult": found, **found["$defs"]}.items():
        for field, content in part["properties"].items():
            part["properties"][field] = dict(sorted({**content, "description": sentences[name][field]}.items()))
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def write_result(path: Path, result: EvalResult) -> None:
    """Write a result atomically, sealed by the SHA-256 of its text without the seal."""
    text = json_text(result.model_copy(update={"seal": ""}).model_dump(mode="json"))
    mark = '"seal": "'
    write_text(path, text.replace(mark, mark + hashlib.sha256(text.encode()).hexdigest(), 1))


def seal_holds(data: bytes) -> bool:
    """Whether the bytes of a result.json are those that were written and sealed."""
    found = SEAL.search(data)
    return found is not None and found[1].decode() == hashlib.sha256(data.replace(found[1], b"", 1)).hexdigest()


def read_result(path: Path) -> EvalResult:
    """Read a result; one of an older schema is brought to this one.

    Raises LaryError where the file is missing, isn't JSON, or doesn't fit the schema.
    """
    data = read_json(path, "result")
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int):
        raise LaryError(f"{path} is no result of lary: it has no schema_version.")
    if version > SCHEMA_VERSION:
        known = f"this lary reads up to {SCHEMA_VERSION}"
        raise LaryError(f"{path} has schema version {str(version)[:20]}, {known}: update lary.")
    try:
        result = EvalResult.model_validate(_migrated(data, version))
    except ValidationError as error:
        raise LaryError(f"{path} does not fit the schema of a result: {': '.join(first_error(error))}.") from error
    if problem := odd_part(data, result):
        raise LaryError(f"{path} is no result of lary: {problem}.")
    return result


def _migrated(data: JsonDict, version: int) -> JsonDict:
    """A result of an older schema in this one.

    Version 1 had one seed and no tables of robots and orientations, 1 and 2 no digests of
    files. Relative motion was that of the world.
    """
    new: JsonDict = {"schema_version": SCHEMA_VERSION, "seal": ""}
    if version < 2:
        new["seeds"] = [data.get("seed", 0)]
    if version < 3:
        names = data.get("files")
        new["files"] = dict.fromkeys(map(str, names), "") if isinstance(names, list) else names or {}
    if data.get("action_mode") == "relative" and data.get("relative_frame") is None:
        new["relative_frame"] = "world"
    return data | new
