"""The record of a data set: what it shows and asks, and where its files are.

Loads no heavy library. The benchmark's are in ``catalog.json``, with the reasons
of fields that need one, from arXiv 2604.11689, section 3 and appendix, and the
published tables; the revision is the day on which all data were opened.
"""

import dataclasses
import functools
import importlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from lary.registry import Registry, aligned, record_folder, suggest
from lary.runtime import log
from lary.types import JsonDict, LaryError, Media, UsageError


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a data set: a label is a position in `classes` (sorted names)."""

    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if list(self.classes) != sorted(set(self.classes)):
            raise UsageError("The classes of a LabelSpace are distinct and sorted.")


@dataclass(frozen=True)
class Normalisation:
    """Constants, or statistics in a file below ``DATA_DIR``, or of the training split.

    `command` makes the file, `relative_command` that of relative actions.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    stats_file: str | None = None
    command: str = ""
    relative_command: str = ""


EPISODE = r"^(.*?ep_[^/]+)/"
"""Group of a pair: its episode folder, and any task folder before it."""
NO_ROBOT = "nan"
"""Key of rows without a robot type in the published statistics files."""

Convention = Literal["euler_xyz", "quaternion_xyzw"]
"""Roll, pitch, yaw (radians, fixed axes x, y, z), or a quaternion, real part last."""


@dataclass(frozen=True)
class Orientation:
    """Which action dimensions are one orientation, and what their values mean."""

    name: str
    dims: tuple[int, ...]
    convention: Convention


@dataclass(frozen=True)
class ActionSpace:
    """The actions between two frames: K = `horizon` absolute steps of A = len(`dims`) values.

    `groups` are the published ones; `orientations` are measured as angles.
    """

    dims: tuple[str, ...]
    horizon: int
    normalisation: Normalisation = Normalisation()
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    units: tuple[str, ...] = ()
    orientations: tuple[Orientation, ...] = ()


@dataclass(frozen=True)
class Split:
    """One split: its table below ``$LARY_ROOT/data``, and its folder below ``DATA_DIR``."""

    root: str
    table: str | None = None


@dataclass(frozen=True)
class Draw:
    """A split drawn from the tables of `sources` (splits with one root) by whole groups.

    A group validates if its name's hash is below `share`, in every table
    alike. `pattern` replaces the record's.
    """

    sources: tuple[str, ...]
    validates: bool
    share: float = 0.25
    pattern: str | None = None


@dataclass(frozen=True)
class Licence:
    """The terms of one source of a data set."""

    source: str
    name: str
    commercial: bool
    url: str = ""


@dataclass(frozen=True)
class DatasetSpec:
    """One data set.

    Attributes:
        name: the key on the command line; `title` is the paper's.
        media: ``pair`` (columns src_img, tgt_img) or ``clip`` (video_path, sample_indices).
        target: LabelSpace (``action`` holds a class) or ActionSpace (a .npy path).
        splits: by name; without ``table``: ``<name>_metadata_<split>.csv``.
        drawn: further splits, drawn from the tables of others on request.
        train, validation, unseen: the splits by their use in probes.
        stride: frames from source to target; in one `stride_series` only it differs.
        group_column: names the episode or video of a row.
        group_pattern: without it: regular expression on the first media path without ``images``;
            its first group, or its match, names the episode or video; else a sample is its own.
        media_depth: how many folders precede ``images`` / ``actions``; None: there are none.
        path_repair: regular expression and replacement for wrong paths.
        embodiment_column: column with the robot type; None: ``embodiment``, if there.
        embodiment: the robot type where there is no column.
        unnamed_robot: regular expression on the first path, and the type of matching empty cells.
        integrity_group: name in the published integrity report, if it is there.
        samples: number over all splits; None where it isn't published.
        repository: of the published files, owner/name.
        digests: of the samples of `revision` by split, as in a result.
    """

    name: str
    title: str
    media: Media
    target: LabelSpace | ActionSpace
    splits: Mapping[str, Split]
    licences: tuple[Licence, ...]
    drawn: Mapping[str, Draw] = field(default_factory=dict)
    train: str = "train"
    validation: str = "val"
    unseen: str | None = None
    stride: int | None = None
    stride_series: str = ""
    group_column: str | None = None
    group_pattern: str = r".*/"
    media_depth: int | None = None
    path_repair: tuple[str, str] | None = None
    embodiment_column: str | None = None
    embodiment: str = "robot"
    unnamed_robot: tuple[str, str] | None = None
    revision: str = ""
    digests: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    in_demo: bool = False
    integrity_group: str = ""
    samples: int | None = None
    repository: str = ""
    citation: str = ""

    def split(self, name: str) -> Split:
        """The split called `name`. Raises UsageError."""
        if name in self.drawn:
            return Split(self.splits[self.drawn[name].sources[0]].root)
        if name not in self.splits:
            known = [*self.splits, *self.drawn]
            raise UsageError(f"Data set '{self.name}' has no split '{name}'.{suggest(name, known)}")
        return self.splits[name]

    @property
    def split_sets(self) -> tuple[str, ...]:
        """Names of drawn splits that replace published ones, such as ``by-episode``."""
        mark = f"{self.train}_"
        found = [name.removeprefix(mark) for name in self.drawn if name.startswith(mark)]
        return tuple(name.replace("_", "-") for name in found if f"{self.validation}_{name}" in self.drawn)

    def roles(self, chosen: str | None) -> dict[str, str]:
        """Splits by role: ``train``, ``seen`` (which validates) and any ``unseen``.

        `chosen` is one of `split_sets`, or None for the published splits.
        Raises UsageError.
        """
        if chosen is not None and chosen not in self.split_sets:
            known = ", ".join(self.split_sets) or "only the published ones"
            raise UsageError(f"--splits {chosen}: data set '{self.name}' has no splits of that name, it has: {known}.")
        mark = "" if chosen is None else f"_{chosen.replace('-', '_')}"
        found = {"train": self.train + mark, "seen": self.validation + mark}
        return found if self.unseen is None else {**found, "unseen": self.unseen}

    def table_name(self, split: str) -> str:
        return self.split(split).table or f"{self.name}_metadata_{split}.csv"

    @property
    def labels(self) -> LabelSpace:
        """The label space. Raises UsageError for another target."""
        if not isinstance(self.target, LabelSpace):
            raise UsageError(f"Data set '{self.name}' holds action chunks, not classes: use 'lary regress'.")
        return self.target

    @property
    def actions(self) -> ActionSpace:
        """The action space. Raises UsageError for another target."""
        if not isinstance(self.target, ActionSpace):
            raise UsageError(f"Data set '{self.name}' holds classes, not action chunks: use 'lary classify'.")
        return self.target

    @property
    def commercial(self) -> str:
        """Whether all, some or none of the sources allow commercial use: yes, in part, no."""
        allowed = [licence.commercial for licence in self.licences]
        return "yes" if all(allowed) else "in part" if any(allowed) else "no"


def known_records() -> dict[str, DatasetSpec]:
    """The records in LARY_ROOT/data by name, without unreadable ones."""
    files = sorted(file for folder in record_folder for file in folder.glob("*_dataset.json"))
    records = (_record(file, file.stat().st_mtime_ns) for file in files)
    return {record.name: record for record in records if record}


@functools.cache
def _record(file: Path, time: int) -> DatasetSpec | None:
    try:
        return cast(DatasetSpec, importlib.import_module("lary.importers.records").load_record(file))
    except LaryError as error:
        log.warning("left out: %s", error)
        return None


DATASETS: Registry[DatasetSpec] = Registry("data set", group="lary.datasets", source=known_records)


def register_dataset(spec: DatasetSpec) -> DatasetSpec:
    """Add a data set to the registry; returns it."""
    return DATASETS.add(spec)


def kind_of(spec: DatasetSpec) -> str:
    """What is shown and asked, such as ``pair, 5 x 7 actions``."""
    if isinstance(spec.target, LabelSpace):
        return f"{spec.media}, {len(spec.target.classes)} classes"
    return f"{spec.media}, {spec.target.horizon} x {len(spec.target.dims)} actions"


def datasets_table() -> str:
    """The text of ``lary datasets``."""
    rows = [("key", "title", "kind", "splits", "size", "commercial", "licence")]
    for spec in DATASETS:
        names = "; ".join(dict.fromkeys(licence.name for licence in spec.licences))
        size = f"{spec.samples:,} samples" if spec.samples is not None else "-"
        rows.append((spec.name, spec.title, kind_of(spec), ",".join(spec.splits), size, spec.commercial, names))
    terms = "Terms, splits and citation of one: lary datasets KEY."
    sizes = "Size in bytes, of its files on the hub: lary data download --include KEY --dry-run."
    return "\n".join([*aligned(rows), "", terms, sizes])


def dataset_text(spec: DatasetSpec) -> str:
    """The text of ``lary datasets KEY``."""
    facts = dataclasses.asdict(spec)
    citation = facts.pop("citation")
    tables = {name: f"LARY_ROOT/data/{spec.table_name(name)}" for name in (*spec.splits, *spec.drawn)}
    facts |= {"kind": kind_of(spec), "commercial": spec.commercial, "tables": tables}
    lines = [f"{name}: {value if isinstance(value, str) else json.dumps(value)}" for name, value in facts.items()]
    return "\n".join([*lines, citation])


# --- patterns of records, which plug-ins may bring ---

QUICK = re.compile(r"\^[^*+?{|\\]*(?:(?<!\))[*+?]\??[^*+?{|\\]*){0,2}|[^*+?{]*|\.\*/")
"""Patterns that need no time limit."""
LETTERS, REPEATS, REPAIRS, SECONDS = 1000, 10_000, 16, 0.5
"""Limits of a pattern and its work."""


@functools.cache
def compiled(pattern: str, replacement: str = "") -> tuple[Any, JsonDict]:
    """A pattern, and its limit of time. Raises UsageError."""
    import regex

    braces = re.findall(r"(\)?)\{(\d*),?(\d*)", pattern)
    counts = [(end, max(1, *(int(n[:9] or 0) for n in ends))) for end, *ends in braces]
    repeats = max([1, *(n for _, n in counts)])
    repeats *= math.prod(n for end, n in counts if end)
    if len(pattern) > LETTERS or repeats > REPEATS:
        raise UsageError(f"The pattern '{pattern[:60]}' is too large.")
    try:
        quick = re.compile(pattern)
        quick.sub(replacement, "")
        if QUICK.fullmatch(pattern):
            return quick, {}
        return regex.compile(pattern), {"timeout": SECONDS}
    except (re.error, regex.error, IndexError, RecursionError, OverflowError) as error:
        raise UsageError(f"'{pattern}' is no regular expression: {error}.") from error


def evaluate(pattern: str, path: str, replacement: str | None = None) -> Any:
    """As `re.search` or `re.sub`. Raises UsageError."""
    expression, limit = compiled(pattern, replacement or "")
    try:
        if replacement is None:
            return expression.search(path, **limit)
        return expression.sub(replacement, path, REPAIRS, **limit)
    except TimeoutError:
        raise UsageError(f"'{pattern}' takes too long on '{path[:60]}'.") from None


def tupled(value: Any) -> Any:
    """A JSON value with tuples in place of its lists, as records have them."""
    if isinstance(value, dict):
        return {key: tupled(each) for key, each in value.items()}
    return tuple(map(tupled, value)) if isinstance(value, list) else value


def shipped_record(entry: JsonDict) -> DatasetSpec:
    """A record of ``catalog.json``, not validated: that library takes time to load."""
    fields = tupled(entry)
    target = fields["target"]
    if "classes" in target:
        fields["target"] = LabelSpace(**target)
    else:
        target["normalisation"] = Normalisation(**target["normalisation"])
        target["orientations"] = tuple(Orientation(**each) for each in target["orientations"])
        fields["target"] = ActionSpace(**target)
    fields["splits"] = {name: Split(**each) for name, each in fields["splits"].items()}
    fields["drawn"] = {name: Draw(**each) for name, each in fields.get("drawn", {}).items()}
    fields["licences"] = tuple(Licence(**each) for each in fields["licences"])
    return DatasetSpec(**fields)


for record in json.loads(Path(__file__).with_name("catalog.json").read_bytes())["records"]:
    register_dataset(shipped_record(record))
