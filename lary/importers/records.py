"""Records of imported data sets, their plug-ins, and their tables.

A record is JSON, ``LARY_ROOT/data/<name>_dataset.json``, and known by its name
there: nothing of an imported data set is run as code. The plug-in beside it,
``plugin.txt``, is for another ``LARY_ROOT``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lary.data.normalisation import measure_table
from lary.data.spec import DATASETS, EPISODE, ActionSpace, DatasetSpec, LabelSpace, Normalisation, Split, compiled
from lary.data.tables import read_table, write_csv
from lary.files import adapter, check_name, inside, parsed, read_json, write_bytes, write_failures
from lary.importers.episodes import ATOMIC_CLASSES, MOST_VALUES, Cut, PairCut, TaskCut
from lary.types import Failure, LaryError, UsageError


class ImportReport(NamedTuple):
    plugin: Path
    rows: Mapping[str, int]
    failures: Sequence[Failure]
    validating: int


def check_new(name: str, tables: Path) -> str:
    """A key for a data set imported into `tables`. Raises UsageError if it is another's."""
    check_name(name, "--name")
    if name in DATASETS.names() and not (tables / f"{name}_dataset.json").exists():
        raise UsageError(f"--name {name}: a data set of that name exists already; choose another.")
    return name


def pair_record(
    name: str, cut: Cut, dims: Sequence[str], normalisation: Normalisation | None = None, **fields: Any
) -> DatasetSpec:
    if isinstance(cut, TaskCut):
        fields |= {"media_depth": 0}
    elif isinstance(cut, PairCut):
        target = ActionSpace(tuple(dims), cut.stride, normalisation or Normalisation())
        fields |= {"target": target, "group_pattern": EPISODE, "media_depth": 0}
    else:
        fields |= {"target": LabelSpace(ATOMIC_CLASSES), "group_pattern": r"^([^/]+)/"}
    splits = dict.fromkeys(("train", "val"), Split(f"{cut.task}/{name}"))
    return DatasetSpec(name=name, title=name, media="pair", splits=splits, stride=cut.stride, **fields)


def save_import(
    spec: DatasetSpec,
    tables: Path,
    data_dir: Path,
    columns: Sequence[str],
    rows: Sequence[tuple[str, list[str]]],
    failures: Sequence[Failure],
    wanted: Sequence[str] = ("train", "val"),
) -> ImportReport:
    """Write tables, statistics and failures of an import, and at last its record and plug-in.

    Each row has its split. Raises LaryError if a wanted split has none; other
    tables are removed.
    """
    plugin, listed = tables / f"{spec.name}_dataset.py", tables / f"{spec.name}_import_failures.csv"
    write_failures(listed, failures)
    found = {split: [cells for name, cells in rows if name == split] for split in wanted}
    for split, part in found.items():
        if not part:
            reason = "it is too short, or nothing in it moves far enough."
            if failures:
                names = ", ".join(str(failure.path) for failure in failures[:5])
                reason = f"{len(failures)} failed, listed in {listed} ({names}). The first: {failures[0].reason}"
            raise LaryError(f"Nothing of the {split} split of {spec.name} could be imported: {reason}")
    for split in spec.splits:
        path = tables / spec.table_name(split)
        if split in found:
            write_csv(path, columns, found[split])
        else:
            path.unlink(missing_ok=True)
    if isinstance(spec.target, ActionSpace) and spec.target.normalisation.stats_file:
        measure_table(spec, tables / spec.table_name("train"), data_dir, workers=4)
    save_record(spec, plugin)
    counts = {split: len(part) for split, part in found.items()}
    groups = set[str]()
    if "val" in found:
        groups.update(read_table(spec, "val", path=tables / spec.table_name("val"), data_dir=data_dir).groups())
    return ImportReport(plugin, counts, failures, len(groups))


def save_record(spec: DatasetSpec, plugin: Path) -> None:
    """Write a record as JSON, and beside it the plug-in that loads it."""
    write_bytes(plugin.with_suffix(".json"), adapter(DatasetSpec).dump_json(spec, indent=1) + b"\n")
    write_bytes(plugin, Path(__file__).with_name("plugin.txt").read_bytes())


def load_record(path: Path) -> DatasetSpec:
    """Read a record. Raises LaryError with the first wrong field."""
    spec = parsed(DatasetSpec, read_json(path, "data set record"), f"The data set record {path}")
    try:
        _check_record(spec)
    except UsageError as error:
        raise LaryError(f"The data set record {path} is wrong: {error}") from error
    return spec


def _check_record(spec: DatasetSpec) -> None:
    target, series, splits = spec.target, spec.drawn.values(), spec.splits.values()
    real, names = {*spec.splits}, {*spec.splits, *spec.drawn}
    for name in (spec.name, *names):
        check_name(name, "the name")
    places = [place for split in splits for place in (split.root, split.table)]
    right = {
        "train": spec.train in names - {spec.validation},
        "validation": spec.validation in names,
        "unseen": spec.unseen in {None, *names},
        "drawn": all(each.sources and real >= {*each.sources} and 0 < each.share < 1 for each in series),
        "stride": spec.stride is None or spec.stride > 0,
        "media_depth": 0 <= (spec.media_depth or 0) < 64,
    }
    if isinstance(target, ActionSpace):
        places.append(target.normalisation.stats_file)
        count, kinds = len(target.dims), {"euler_xyz": 3, "quaternion_xyzw": 4}
        known, groups = {*range(count)}, target.groups.values()
        right |= {
            "target.dims": 0 < count <= MOST_VALUES,
            "target.horizon": 0 < target.horizon <= MOST_VALUES,
            "target.groups": all(part and known >= {*part} for part in groups),
            "target.orientations": all(
                known >= {*each.dims} and len(each.dims) == kinds[each.convention] for each in target.orientations
            ),
        }
    for place in places:
        if place is not None:
            inside(Path(), place)
    compiled(*spec.path_repair or [""])
    robot = (spec.unnamed_robot or [""])[0]
    for pattern in (spec.group_pattern, robot, *(each.pattern for each in series)):
        compiled(pattern or "")
    if wrong := ", ".join(name for name in right if not right[name]):
        raise UsageError(f"{wrong}: unknown, or out of range.")
