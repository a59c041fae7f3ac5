"""The schema of ``result.json``: what was asked, what was run, on what, with which outcome."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lary.files import digest, read_json, write_json
from lary.probes.outcome import SelectionName
from lary.types import RANDOM, BenchmarkProtocol, LaryError

SCHEMA_VERSION = 3
FILE_NAME = "result.json"
USUAL_PROBES = ("", "attentive", "mlp")
"""Probes of the paper's leaderboards."""

Unit = Literal["fraction", "normalised", "physical", "degrees", "none"]


class Strict(BaseModel):
    """Unknown fields and non-finite numbers are refused: a result is read years later."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Metric(Strict):
    """One number with its 95 % interval."""

    value: float = Field(description="The estimate over all validation samples.")
    low: float | None = Field(None, description="Lower end of the 95 % interval; null with too few clusters.")
    high: float | None = Field(None, description="Upper end of the 95 % interval; null with too few clusters.")
    unit: Unit = Field(
        "none",
        description="Fractions are shown in per cent; 'normalised' is in the target's std, 'physical' in the data's.",
    )
    higher_is_better: bool = Field(True, description="Whether a larger value is a better one.")

    @property
    def scale(self) -> float:
        """What the value is multiplied with where it is printed: 100 for a fraction, else 1."""
        return 100.0 if self.unit == "fraction" else 1.0

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

    def text(self) -> str:
        """The number and its interval for a terminal, fractions in per cent."""
        return f"{number(self.value, self.unit)} {self.bounds}".rstrip()

    def reading(self, p: float | None = None) -> Literal["", "even", "better", "worse"]:
        """What a difference says of a run, by its corrected p where there is one, else by its interval."""
        if self.low is None or self.high is None:
            return ""
        if self.low <= 0 <= self.high or (p is not None and p >= 0.05):
            return "even"
        return "better" if (self.low > 0) == self.higher_is_better else "worse"


def number(value: float, unit: str = "none") -> str:
    """A number as it is printed: one decimal for per cent and degrees, else three decimals or digits."""
    if unit in ("fraction", "degrees"):
        return f"{100 * value if unit == 'fraction' else value:.1f}"
    return f"{value:.3f}" if 0.0005 <= abs(value) < 1000 or value == 0 else f"{value:.3g}"


class SplitFacts(Strict):
    """Size of one split."""

    rows: int = Field(description="Samples that were used.")
    groups: int = Field(description="Episodes or videos that they come from: the clusters of the bootstrap.")


class DatasetFacts(Strict):
    """Which data set was used."""

    name: str = Field(description="Key of the data set.")
    title: str = Field("", description="Name of the data set in the paper's tables.")
    revision: str = Field("", description="Revision of the data set's record.")
    tables: dict[str, str] = Field({}, description="Digest of each split's table, by split.")
    splits: dict[str, SplitFacts] = Field({}, description="Size of each split, by split name.")
    stride: int | None = Field(None, description="Frames between source and target image.")
    units: tuple[str, ...] = Field((), description="Physical unit of each action dimension.")
    split_set: str = Field("", description="Named splits, such as by-episode; empty for the published ones.")


class ModelFacts(Strict):
    """Which representation was probed."""

    name: str = Field(description="Key of the model.")
    paradigm: str = Field(description="Kind of model as in the paper's tables, or 'baseline'.")
    revision: str = Field("", description="Revision of the weights, or the folder that they were read from.")
    weights: str = Field("", description="Digest of the weights; empty for a model that has none.")
    dim: int | None = Field(None, description="D, the size of one token.")
    shape: tuple[int, ...] = Field((), description="Shape of one sample's tokens, (P, N, D) or (N, D).")
    parameters_m: float | None = Field(None, description="Parameters of the encoder in millions.")


class Provenance(Strict):
    """Where the numbers come from."""

    command: tuple[str, ...] = Field((), description="The command line.")
    versions: dict[str, str] = Field({}, description="Versions of lary, Python and libraries.")
    commit: str | None = Field(None, description="Commit of the source tree; null for an installed package.")
    dirty: bool | None = Field(None, description="Whether files of the source tree differed from that commit.")
    machine: dict[str, str | int | float] = Field({}, description="System, processor, cores, device.")


class NamedDigest(Strict):
    """One thing that decides a run, such as its options or the latents of a split, as a digest."""

    name: str = Field(description="What it is, such as 'options' or 'latents train'.")
    digest: str = Field(description="Digest of its content.")


def run_identity(inputs: Sequence[NamedDigest]) -> str:
    """The identity of a run: a digest over all that decides it."""
    return digest(*(part for each in inputs for part in (each.name, each.digest)))


class RunFacts(Strict):
    """What is known about a run before its outcome: the part that the caller fills in."""

    schema_version: int = Field(SCHEMA_VERSION, description="Version of this schema; a newer one is refused.")
    created: str = Field(
        default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"),
        description="When the result was made, ISO 8601 in UTC.",
    )
    status: Literal["complete", "incomplete"] = Field(
        "complete", description="'incomplete' if samples of a split are missing."
    )
    identity: str = Field("", description="Digest over the inputs: a run with the same one is not done again.")
    inputs: tuple[NamedDigest, ...] = Field((), description="What decides the run; empty in results of schema 1 and 2.")
    dataset: DatasetFacts = Field(description="The data set, with its revision and the digests of its tables.")
    model: ModelFacts = Field(description="The model, with its revision and the digest of its weights.")
    probe: str = Field("", description="Kind of probe, such as attentive or mlp.")
    action_mode: Literal["absolute", "relative"] | None = Field(None, description="Target of a regression.")
    relative_frame: Literal["world", "local"] | None = Field(
        None,
        description="Of relative targets: difference of the steps ('world'), last pose seen from the first ('local').",
    )
    protocol: BenchmarkProtocol = Field(
        "corrected", description="Whether the description or the published code is followed."
    )
    protocol_notes: tuple[str, ...] = Field((), description="What the protocol changes in this run, in sentences.")
    preset: str = Field("paper", description="Probe preset: 'paper' is the published size, 'demo' smaller.")
    seed: int = Field(0, description="Seed of the run; the first one of several.")
    seeds: tuple[int, ...] = Field((), description="Seeds of the probes; metrics are means over them.")
    control: str | None = Field(
        None, description="The control that this run is, such as shuffled-targets; null for none."
    )
    project: int | None = Field(None, description="Dimensions of a random projection of the latents; null for none.")
    options_given: dict[str, Any] = Field({}, description="Options as they were given.")
    options: dict[str, Any] = Field({}, description="All options as they were resolved.")
    provenance: Provenance = Field(
        default_factory=lambda: Provenance(), description="Command, versions, commit and machine."
    )
    timings: dict[str, float] = Field({}, description="Seconds by stage.")
    failures: int = Field(0, description="Samples left out because their media or latents could not be read.")
    files: dict[str, str] = Field(
        {},
        description=(
            "SHA-256 of every other file of the run, by its relative path; empty in results of schema 1 and 2. "
            "A file that is not named does not belong to the run."
        ),
    )
    extra: dict[str, Any] = Field({}, description="Fields of programs that extend lary, by a name of their own.")


class Selection(Strict):
    """The outcome under one way of choosing head and epoch."""

    epoch: int = Field(description="Epoch that was chosen, in a ridge probe the penalty's number; of the first seed.")
    head: int | None = Field(None, description="Head that was chosen, from 0; null for a probe with one head.")
    loss: dict[str, float] = Field({}, description="Validation loss by split, of the first seed.")
    metrics: dict[str, Metric] = Field(description="Metrics by name, means over the seeds.")


class SeedRow(Strict):
    """One of several probes that differ in their seed, under the headline selection."""

    seed: int = Field(description="Seed of weights, sampling and the held-out tenth.")
    epoch: int = Field(description="Epoch that was chosen.")
    head: int | None = Field(None, description="Head that was chosen, from 0; null for a probe with one head.")
    metrics: dict[str, float] = Field(description="Metrics by name, as in the selection.")


class Control(Strict):
    """What a rule without any representation reaches on the same samples."""

    metrics: dict[str, Metric] = Field(description="Metrics by name, as for a selection.")
    gain: Metric = Field(description="Headline metric of the run minus that of the control, with a paired interval.")


class Margin(Strict):
    """How this run compares with another one on the same samples, such as one of its controls."""

    name: str = Field(description="What the other run is, in words.")
    value: float = Field(description="Headline metric of the other run.")
    gain: Metric = Field(description="Headline metric of this run minus that of the other, with a paired interval.")
    p: float | None = Field(description="Two-sided p value, corrected by Holm; null with too few episodes or videos.")
    result: str = Field("", description="Digest of the options and latents of the other run.")


class ClassRow(Strict):
    """One class under the headline selection."""

    name: str = Field(description="Class name.")
    train: int = Field(description="Training samples of the class.")
    true: int = Field(description="Validation samples of the class.")
    predicted: int = Field(description="Validation samples predicted as the class.")
    precision: float = Field(description="Correct over predicted.")
    recall: Metric | None = Field(description="Correct over true; null for a class without validation samples.")
    f1: float = Field(description="Harmonic mean of precision and recall.")


class DimensionRow(Strict):
    """One action dimension on one split under the headline selection."""

    split: str = Field(description="'seen' or 'unseen'.")
    name: str = Field(description="Name of the dimension.")
    mse: Metric = Field(description="Mean squared error in normalised units.")
    r2: float | None = Field(description="Explained part of the variance; null where the targets are constant.")
    rmse: float = Field(description="Root mean squared error in physical units.")
    physical_mse: Metric | None = Field(None, description="Mean squared error in physical units, squared.")
    unit: str = Field("", description="Physical unit.")


class GroupRow(Strict):
    """One group of dimensions on one split under the headline selection."""

    split: str = Field(description="'seen' or 'unseen'.")
    name: str = Field(description="Name of the group.")
    mse: Metric = Field(description="Mean squared error over the group's dimensions in normalised units.")
    r2: float | None = Field(None, description="Explained part of the variance over the group's dimensions.")
    physical_mse: Metric | None = Field(None, description="In physical units, squared; null where these differ.")
    unit: str = Field("", description="Physical unit that the group's dimensions share.")


class PhysicalError(Strict):
    """An error in physical units."""

    mse: Metric = Field(description="Mean squared error in physical units, squared.")
    unit: str = Field(description="Physical unit, before squaring.")


class RobotRow(Strict):
    """One robot type on one split under the headline selection."""

    split: str = Field(description="'seen' or 'unseen'.")
    name: str = Field(description="Robot type.")
    rows: int = Field(description="Samples of the type.")
    groups: int = Field(description="Episodes that they come from.")
    mse: Metric = Field(description="Mean squared error in normalised units.")
    r2: float | None = Field(description="Explained part of the variance; null where the targets are constant.")
    degrees: Metric | None = Field(None, description="Mean angle between orientations; null for none.")
    physical: dict[str, PhysicalError] = Field(
        {},
        description="Errors of groups of dimensions that share a physical unit.",
    )


class OrientationRow(Strict):
    """One orientation on one split under the headline selection."""

    split: str = Field(description="'seen' or 'unseen'.")
    name: str = Field(description="Which orientation, such as that of one of two arms.")
    convention: str = Field(description="euler_xyz in radians about fixed axes, or quaternion_xyzw.")
    degrees: Metric = Field(description="Mean angle between predicted and true orientation over samples and steps.")


class Example(Strict):
    """One action chunk for the eye, chosen by the rank of its error, never by hand."""

    sample: str = Field(description="Sample id.")
    media: tuple[str, ...] = Field(description="Media paths of the sample.")
    group: str = Field(description="Episode or video.")
    quantile: float = Field(description="Rank of the sample's error in the split, 0 best and 1 worst.")
    mse: float = Field(description="Mean squared error of the sample in normalised units.")
    predicted: tuple[tuple[float, ...], ...] = Field(description="Predicted chunk (K, A) in physical units.")
    true: tuple[tuple[float, ...], ...] = Field(description="True chunk (K, A) in physical units.")
    pictures: tuple[str, ...] = Field((), description="Source and target frame as files, relative to this one.")


class EvalResult(RunFacts):
    """One result.json."""

    task: Literal["classification", "regression"] = Field(description="Kind of target.")
    headline: SelectionName = Field(description="The selection that is reported first.")
    primary: str = Field(description="Name of the metric that ranks runs.")
    selections: dict[SelectionName, Selection] = Field(description="The outcome, by way of choosing head and epoch.")
    controls: dict[str, Control] = Field(description="Rules without any representation, on the same samples.")
    interval: str = Field(
        description="How the intervals were made, over how many episodes or videos; or why there are none."
    )
    classes: tuple[ClassRow, ...] = Field((), description="Per-class table of the first seed.")
    confusion: tuple[tuple[int, ...], ...] = Field(
        (), description="Counts of the first seed: rows predicted, columns true."
    )
    dimensions: tuple[DimensionRow, ...] = Field((), description="Per-dimension table of a regression.")
    dimension_groups: tuple[GroupRow, ...] = Field((), description="Per-group table of a regression.")
    robots: tuple[RobotRow, ...] = Field((), description="Per-robot-type table of a regression.")
    orientations: tuple[OrientationRow, ...] = Field((), description="Angular errors of a regression.")
    per_seed: tuple[SeedRow, ...] = Field((), description="The probes one by one where several were trained.")
    margins: tuple[Margin, ...] = Field((), description="Distance from the controls of 'lary controls'.")
    examples: tuple[Example, ...] = Field((), description="Chunks of a regression for the eye.")
    history: tuple[dict[str, Any], ...] = Field((), description="One entry per epoch of the first seed.")
    warnings: tuple[str, ...] = Field((), description="What a reader of the numbers has to know.")

    @property
    def label(self) -> str:
        """The model's name, with what sets this run apart from the usual one of its kind."""
        parts = [f"{self.probe} probe"] if self.probe not in USUAL_PROBES else []
        parts += [f"{RANDOM} weights"] if self.model.revision == RANDOM else []
        parts += [self.control.replace("-", " ")] if self.control else []
        parts += [f"{self.project} random dimensions"] if self.project is not None else []
        return f"{self.model.name} ({', '.join(parts)})" if parts else self.model.name

    @property
    def is_control(self) -> bool:
        """Whether this run was made for others to be compared with, such as one on shuffled targets."""
        return self.control is not None or self.project is not None or self.model.revision == RANDOM

    @property
    def score(self) -> Metric:
        """The metric that ranks this run."""
        return self.selections[self.headline].metrics[self.primary]


def headline(selections: Mapping[SelectionName, Any]) -> SelectionName:
    """The selection to report first: picked on held-out data where there is one."""
    return "held_out" if "held_out" in selections else "best_on_validation"


def schema_text() -> str:
    """JSON Schema of result.json, draft 2020-12, as the file in the documentation has it."""
    found = EvalResult.model_json_schema(mode="serialization")
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def write_result(path: Path, result: EvalResult) -> None:
    """Write a result atomically."""
    write_json(path, result.model_dump(mode="json"))


def read_result(path: Path) -> EvalResult:
    """Read a result.

    Raises:
        LaryError: the file is missing, isn't JSON, was written by a newer schema, or doesn't fit the schema. An older
            one is brought to this schema (`migrated`).
    """
    data = read_json(path, "result")
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int):
        raise LaryError(f"{path} is no result of lary: it has no schema_version.")
    if version > SCHEMA_VERSION:
        raise LaryError(
            f"{path} has schema version {str(version)[:20]}, this lary reads up to {SCHEMA_VERSION}: update lary."
        )
    try:
        return EvalResult.model_validate(migrated(data, version))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise LaryError(f"{path} does not fit the schema of a result: {place}: {first['msg']}.") from error


def migrated(data: dict[str, Any], version: int) -> dict[str, Any]:
    """A result of an older schema in this one.

    Version 1 had one seed and no tables of robots and orientations. Versions 1 and 2 named files without digests.
    Before relative motion had a choice of frames it was that of the world.
    """
    if version < 2:
        data = {**data, "seeds": [data.get("seed", 0)]}
    if version < 3:
        names = data.get("files")
        files = {str(name): "" for name in names} if isinstance(names, list) else names or {}
        data = {**data, "schema_version": SCHEMA_VERSION, "files": files}
    if data.get("action_mode") == "relative" and data.get("relative_frame") is None:
        data = {**data, "relative_frame": "world"}
    return data
