"""Splits of a data set: finding their tables, drawing them, and splitting one.

The paper splits composite actions 70:30, all else 75:25, stratified by class.
Splits by row are scikit-learn's ``train_test_split``, in its shuffled order.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lary.arrays import Ints
from lary.data import tables
from lary.data.configs import GroupOptions, SplitConfig
from lary.data.spec import DATASETS, EPISODE, DatasetSpec, LabelSpace
from lary.files import csv_text, digest, write_text
from lary.settings import unexported
from lary.types import UsageError

PATTERNS = {"episode": EPISODE, "segment": r"^(.*)/"}
"""What stays together, in the first path; a segment is a folder."""
CLIPS, PAIRS = 0.3, 0.25
"""The paper's shares of validation."""


def find_table(spec: DatasetSpec, split: str, root: Path, explicit: Path | None = None) -> Path:
    """The CSV of a split: `explicit`, or by the published names below `root`, ``$LARY_ROOT``.

    A drawn split is drawn. Raises UsageError.
    """
    names = dict.fromkeys((spec.table_name(split), f"{spec.name}_metadata_{split}.csv", f"{spec.name}_{split}.csv"))
    if not explicit and split in spec.drawn:
        return draw_table(spec, split, root)
    tried, hint = [root / "data" / name for name in names], "Set LARY_ROOT to the folder above data/, or pass --input"
    if spec.repository:
        hint += f"; 'lary data download --include {spec.name}' fetches it"
    if explicit:
        tried, hint = [explicit], "Check the path"
    for path in tried:
        if path.is_file():
            return path
    listed = " nor ".join(map(str, tried))
    raise UsageError(f"There is no table of {spec.name} {split}: no file {listed}. {hint}.{unexported(root)}")


def offer_folds(count: int) -> str:
    """Offer cross-validation where fewer than 20 episodes or videos validate."""
    few = f"Only {count} episodes or videos validate, which leaves wide intervals or none"
    offer = "'lary run --folds 5' cross-validates over those of training and validation split together."
    return f"{few}: {offer}" if 0 < count < 20 else ""


def draw_table(spec: DatasetSpec, split: str, root: Path) -> Path:
    """The table of a drawn split: the rows of its groups, in order.

    Raises UsageError where a source is missing or the existing table differs.
    """
    path, rule = root / "data" / spec.table_name(split), spec.drawn[split]
    try:
        sources = [find_table(spec, name, root) for name in rule.sources]
    except UsageError:
        if path.is_file():
            return path  # it was drawn on another machine
        raise
    first = tables.MEDIA_COLUMNS[spec.media][0]
    own, pattern = None if rule.pattern else spec.group_column, rule.pattern or spec.group_pattern
    header, chosen = list[str](), list[list[str]]()
    for table in sources:
        columns, rows = tables.read_csv(table, header or [first, own or first])
        header = header or columns
        if columns != header:
            raise UsageError(f"{table} has the columns {', '.join(columns)}; expected {', '.join(header)}.")
        for row in rows:
            place = tables.usual_cell(spec, row[columns.index(first)], first)
            name = row[columns.index(own)].strip() if own else tables.matched(pattern, place)
            if validates(name or tables.REVERSED.sub("", place), rule.share) == rule.validates:
                chosen.append(row)
    text = csv_text([header, *chosen])
    if not path.is_file():
        write_text(path, text)
    elif path.read_bytes() != text.encode():
        raise UsageError(
            f"The table {path} is not what the tables of {' and '.join(rule.sources)} give: remove it to "
            "have it drawn again, or pass it with --input."
        )
    return path


def validates(group: str, share: float) -> bool:
    """Whether the hash of a group's name is in the `share` that validates."""
    return int(digest(group, length=8), 16) < share * 16**8


class SplitReport(NamedTuple):
    train: Path
    val: Path
    rows: tuple[int, ...]
    groups: tuple[int, ...]


def write_split(table: Path, config: SplitConfig) -> SplitReport:
    """Split a table into two, with its columns. Raises UsageError."""
    targets = []
    for given, name in ((config.train, "train_"), (config.val, "val_")):
        if given is None and "all_" not in table.name:
            raise UsageError(f"Name --train and --val: {table.name} has no 'all_' to replace.")
        targets.append(given or table.with_name(table.name.replace("all_", name)))
    if len({path.resolve() for path in (*targets, table)}) < 3:
        raise UsageError(f"--train {targets[0]}, --val {targets[1]} and the table {table} must be three files.")
    spec = None if config.dataset is None else DATASETS.get(config.dataset)
    header = tables.read_frame(table, 1)
    media = next((names[0] for names in tables.MEDIA_COLUMNS.values() if names[0] in header), None)
    if media is None:
        raise UsageError(f"{table} has neither of the columns src_img and video_path.")
    clips = media in tables.MEDIA_COLUMNS["clip"]
    labelled = isinstance(spec.target, LabelSpace) if spec else clips
    column = config.stratify or (tables.TARGET_COLUMN if labelled else None)
    frame = tables.read_frame(table, needed=[column] if column else [])
    strata = None if column is None else frame[column].tolist()
    share = config.share if config.share is not None else CLIPS if clips else PAIRS
    if spec and config.by in ("video", "episode"):
        config = replace(config, group_column=config.group_column or spec.group_column)
    groups = own_groups(table, config, media)
    if config.by != "row" and not groups:
        known = PATTERNS.get(config.by) or DATASETS.get("human_1st").group_pattern
        pattern = known if not spec or config.by == "segment" else spec.group_pattern
        paths = [cell.strip().replace("\\", "/") for cell in frame[media]]
        paths = [tables.usual_cell(spec, path, media) for path in paths] if spec else paths
        groups = [tables.matched(pattern, path) or tables.REVERSED.sub("", path) for path in paths]
    how = share, strata, config.seed
    parts = split_groups(groups, *how) if groups else split_rows(len(frame), *how)
    for path, part in zip(targets, parts, strict=True):
        tables.write_csv(path, frame.columns, frame.iloc[part].to_numpy())
    counts = tuple(len({groups[index] for index in part} if groups else part) for part in parts)
    return SplitReport(targets[0], targets[1], tuple(map(len, parts)), counts)


def own_groups(table: Path, config: GroupOptions, media: str) -> list[str]:
    """The groups that options find in a table. Raises UsageError for none."""
    if not (config.group_column or config.group_pattern):
        return []
    column, pattern = config.group_column or media, config.group_pattern or "(?s).+"
    cells = tables.read_frame(table, needed=[column])[column].tolist()
    try:
        groups = [tables.matched(pattern, cell.strip()) for cell in cells]
    except UsageError as error:
        raise UsageError(f"--group-pattern {error}") from error
    if "" in groups:
        row = groups.index("")
        where = f"{table}, row {row + 1}: column '{column}'"
        raise UsageError(f"{where} holds '{cells[row][:200]}', in which the pattern '{pattern}' finds no group.")
    return groups


def split_rows(count: int, share: float, strata: Sequence[str] | None, seed: int) -> tuple[Ints, Ints]:
    """Row numbers of training and validation, shuffled by scikit-learn, as published."""
    from sklearn.model_selection import train_test_split

    try:
        train, val = train_test_split(np.arange(count), test_size=share, random_state=seed, stratify=strata)
        return train, val
    except ValueError as error:
        raise UsageError(f"The table can't be split so: {str(error).rstrip('.')}.") from error


def split_groups(groups: Sequence[str], share: float, strata: Sequence[str] | None, seed: int) -> tuple[Ints, Ints]:
    """Row numbers of training and validation, in the table's order, with whole groups.

    In random order, a group validates where that brings its classes nearer to
    their shares, which end within half of their largest group. Raises
    UsageError for an empty part.
    """
    if seed < 0:
        raise UsageError(f"--seed {seed}: must be at least 0.")
    if not 0 < share < 1:
        raise UsageError(f"--test-size {share}: expected a share between 0 and 1.")
    names, group_of = np.unique(groups, return_inverse=True)
    classes, class_of = np.unique(strata or [""] * len(groups), return_inverse=True)
    totals = np.bincount(class_of, minlength=len(classes)).astype(np.float64)
    wanted, taken = share * totals, np.zeros(len(classes))
    order = np.argsort(group_of, kind="stable")
    members_of = np.split(class_of[order], np.cumsum(np.bincount(group_of))[:-1])
    chosen = np.zeros(len(names), bool)
    for group in np.random.default_rng(seed).permutation(len(names)):
        members, sizes = np.unique(members_of[group], return_counts=True)
        gain = ((2 * (taken[members] - wanted[members]) + sizes) * sizes / totals[members]).sum()
        if gain < 0 and not math.isclose(gain, 0, abs_tol=1e-12):
            chosen[group] = True
            taken[members] += sizes
    validates = chosen[group_of]
    if validates.all() or not validates.any():
        raise UsageError(
            f"The table has {len(names)} groups, too few to put a share of {share} of their classes into validation: "
            "add episodes or videos, or choose another share."
        )
    return np.flatnonzero(~validates), np.flatnonzero(validates)
