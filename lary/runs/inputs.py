"""What a probe run reads: the latents of its splits, their targets, and who their samples are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lary.configs import ClassifyConfig, RegressConfig
from lary.data.actions import ActionMode, Normaliser, Targets, load_targets
from lary.data.frames import read_clip
from lary.data.poses import Frame, in_frame
from lary.data.samples import SampleTable
from lary.data.spec import DatasetSpec
from lary.files import write_failures
from lary.latents.npz import read_stamp
from lary.latents.ref import LatentsRef, SplitLatents, find_latent_table, open_latents
from lary.latents.store import SHARD_MARK
from lary.models.spec import ModelSpec, with_latent
from lary.probes.outcome import SampleColumns
from lary.probes.sources import NamedSource, ProjectedSource, ShuffledOrderSource, StaticSource
from lary.results.folder import RunFolder
from lary.runs.changed import CHANGED, FRAME_CONTROLS, open_changed, separate
from lary.runs.extract import FAILURES
from lary.runtime import device_numbers, log
from lary.settings import Settings
from lary.types import Failure, LaryError, LatentSource, MediaError, Sample, UsageError

ProbeConfig = ClassifyConfig | RegressConfig

CHECKED_ROWS = 1024
"""Of a split, whose latents are held against their sample."""

SEEDS = 2**32
"""So many there are, from 0."""


def seeds_of(config: ProbeConfig) -> tuple[int, ...]:
    """The seeds to train with: ``--seeds``, or the one of ``--seed``. Raises UsageError."""
    if config.seeds is None:
        return (config.seed,)
    try:
        seeds = tuple(int(part) for part in config.seeds.split(","))
    except ValueError:
        raise UsageError(f"--seeds '{config.seeds}': expected numbers such as 0,1,2.") from None
    if len(set(seeds)) != len(seeds):
        raise UsageError(f"--seeds {config.seeds}: a seed stands there twice; name each once.")
    return seeds


def check_options(config: ProbeConfig) -> None:
    """Refuse options that no data can make right, before anything is read. Raises UsageError."""
    for name in ("epochs", "probe_batch_size"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value}: must be at least 1, or leave the option out.")
    if outside := [seed for seed in seeds_of(config) if not 0 <= seed < SEEDS]:
        option = "--seed" if config.seeds is None else "--seeds"
        raise UsageError(f"{option} {outside[0]}: a seed is a number from 0 to {SEEDS - 1}.")
    if config.gpus is not None:
        device_numbers(config.gpus)


def variant_of(config: ProbeConfig) -> str:
    """What stands behind the model's name in folder names: ``@by-episode``, ``@static-pair``, ``@project16``."""
    parts: list[str] = [config.splits] if config.splits else []
    parts += [config.control] if config.control else []
    parts += [f"project{config.project}"] if config.project is not None else []
    return "".join(f"@{part}" for part in parts)


def open_splits(
    settings: Settings, dataset: DatasetSpec, model: ModelSpec, config: ProbeConfig
) -> dict[str, SplitLatents]:
    """Latents by role: ``train``, ``seen`` (the validation split) and, where it was extracted, ``unseen``."""
    with_latent(model, config.latent)
    roles = dataset.roles(config.splits)
    refs = {role: LatentsRef.of(config, split) for role, split in roles.items()}
    absent = None
    if "unseen" in refs and find_latent_table(settings, refs["unseen"]) is None:
        absent = refs.pop("unseen").split
    splits = {role: open_latents(settings, ref) for role, ref in refs.items()}
    if absent is not None:
        log.info("%s has no latents of %s %s: scored without it", model.name, dataset.name, absent)
    shapes = {role: split.source.shape for role, split in splits.items()}
    if len(set(shapes.values())) > 1:
        told = ", ".join(f"{roles[role]} {shape}" for role, shape in shapes.items())
        raise UsageError(f"The splits of '{dataset.name}' hold latents of different shapes ({told}): extract again.")
    check_samples(settings, splits)
    if config.control in FRAME_CONTROLS:
        for role, split in splits.items():
            if not separate(split, config.protocol):
                splits[role] = open_changed(settings, split, replace(refs[role], control=config.control))
    return splits


def check_samples(settings: Settings, splits: Mapping[str, SplitLatents]) -> None:
    """Refuse latents in single files that were made of another sample of these splits than their row names, or by
    another extraction than the first row's.

    Rows of shards were checked when they were opened; files of other programs don't tell. Of many rows some are looked
    at, evenly spaced: a table that was sorted or shifted shows in any of them.

    Raises:
        LaryError: names the row, the file, and whose latents it holds.
    """
    for split in splits.values():
        entries = split.table.frame["la_path"].tolist()
        for position in range(0, len(entries), -(-len(entries) // CHECKED_ROWS)):
            entry = entries[position]
            if SHARD_MARK in entry:
                continue
            file = settings.path("LARY_LA_DIR") / entry if "/" in entry else split.folder / entry
            stamp, own = read_stamp(file), split.table[position]
            if stamp is not None and stamp.store != split.store.get("stamp", {}).get("store", stamp.store):
                raise LaryError(
                    f"{split.table.path}, row {own.row + 1}: {file} was made by another extraction than the rows "
                    "before: one table must hold latents of one. Run 'lary extract' on this split again."
                )
            if stamp is not None and stamp.sample != own.id and (other := find_sample(stamp.sample, splits)):
                raise LaryError(
                    f"{split.table.path}, row {own.row + 1}: {file} holds the latents of {other}, not of "
                    f"{name_of(own)}. Run 'lary extract' on this split again; what is done is kept."
                )


def find_sample(wanted: str, splits: Mapping[str, SplitLatents]) -> str | None:
    """The sample of an id, for a message; None where no split has it, such as after a correction of its label."""
    for split in splits.values():
        for sample in split.table:
            if sample.id == wanted:
                return name_of(sample)
    return None


def shared_groups(dataset: DatasetSpec, splits: Mapping[str, SplitLatents]) -> tuple[str, ...]:
    """A warning per scored split that shows episodes or videos of the training split, told by the tables themselves."""
    train = splits["train"].table
    known, found = set(train.groups()), []
    for table in (split.table for role, split in splits.items() if role != "train"):
        groups = set(table.groups())
        both = len(groups & known) if table.root == train.root else 0  # equal names under two roots are two episodes
        if both:
            apart = [name for name in dataset.split_sets if not dataset.drawn[dataset.roles(name)["train"]].pattern]
            advice = f"; '--splits {apart[0]}' keeps them apart" if apart else ""
            found.append(
                f"{both:,} of the {len(groups):,} episodes or videos of {table.split} are in {train.split} as well, so "
                f"the scores say little about new ones{advice}"
            )
    return tuple(found)


def check_steps(split: SplitLatents, config: ProbeConfig) -> None:
    """Refuse a control of the frames on latents without a store that mix frames. Raises UsageError."""
    if not separate(split, config.protocol):
        raise UsageError(
            f"--control {config.control}: '{config.model}' (protocol {config.protocol}) mixes the frames of a sample, "
            "so they have to be changed before they are encoded: leave --no-store out."
        )


def shown(split: SplitLatents, config: ProbeConfig, seed: int, *, training: bool) -> LatentSource:
    """The latents of a split as the probe sees them: through the control and the projection that were asked for.

    Every split goes through the same projection; orders are shuffled anew. Frames that were changed before they were
    encoded stay as they are.
    """
    source: LatentSource = NamedSource(split.source, lambda row: name_of(split.table[row]))
    control = None if CHANGED in split.store else config.control
    if control == "static-pair":
        source = StaticSource(source)
    elif control == "shuffled-order":
        source = ShuffledOrderSource(source, seed if training else seed + 1)
    return source if config.project is None else ProjectedSource(source, config.project, seed)


def name_of(sample: Sample) -> str:
    """A sample for a message: its id and the media that it was cut from."""
    return f"sample {sample.id} ({', '.join(dict.fromkeys(sample.media))})"


def shuffled(count: int, config: ProbeConfig, seed: int) -> npt.NDArray[np.int64]:
    """Whose target each of `count` training samples gets: its own, or that of another under ``shuffled-targets``."""
    if config.control != "shuffled-targets":
        return np.arange(count, dtype=np.int64)
    return np.random.default_rng(seed).permutation(count).astype(np.int64)


def with_targets(
    split: SplitLatents, normaliser: Normaliser, mode: ActionMode, data_dir: Path, failures: list[Failure],
    frame: Frame = "world",
) -> tuple[SplitLatents, Targets]:  # fmt: skip
    """A split and its normalised targets, without the rows whose action file can't be read; those join `failures`.

    Raises:
        LaryError: a robot type has no statistics, or no action file of the split can be read.
    """
    table = relative_table(split.table, data_dir, frame) if mode == "relative" else split.table
    targets = load_targets(table, normaliser, mode=mode, frame=frame)
    if not targets.failures:
        return split, targets
    failures += targets.failures
    rows = np.flatnonzero(targets.readable)
    if not len(rows):
        raise LaryError(
            f"None of the {len(targets.failures)} action files of {table.path} can be read; the first: "
            f"{targets.failures[0].reason} Check DATA_DIR: they are expected under {table.root}."
        )
    kept = Targets(targets.values[rows], targets.mean[rows], targets.std[rows], ())
    return split.take(rows.tolist()), kept


def relative_table(table: SampleTable, data_dir: Path, frame: Frame = "world") -> SampleTable:
    """The table over ``regression_relative/`` (or that of local motion) where its files were made, else itself.

    Without those files the motion is computed from the absolute chunks; the values are the same.
    """
    root = (data_dir / in_frame(table.spec.split(table.split).root, frame)).absolute()
    moved = replace(table, root=root)
    return moved if moved.action_path(moved[0]).is_file() else table


def report_failures(run: RunFolder, failures: Sequence[Failure]) -> None:
    """Write the rows that were left out to the run's failures file; none, and there is no such file."""
    write_failures(run.work / FAILURES, failures)
    if failures:
        log.error("%d rows have no readable action and are left out: see %s", len(failures), run.folder / FAILURES)
    else:
        (run.folder / FAILURES).unlink(missing_ok=True)


def check_dim(dim: int | None, splits: Mapping[str, SplitLatents]) -> None:
    """Refuse a ``--dim`` that contradicts the latents. Raises UsageError."""
    found = splits["train"].source.shape[-1]
    if dim is not None and dim != found:
        raise UsageError(f"--dim {dim}: the latents have dimension {found}; leave the option out.")


def columns(split: SplitLatents) -> SampleColumns:
    """Who the samples of a split are."""
    samples = [split.table[row] for row in range(len(split.table))]
    return SampleColumns(
        ids=tuple(sample.id for sample in samples),
        media=tuple(sample.media for sample in samples),
        groups=tuple(sample.group for sample in samples),
        embodiments=tuple(sample.embodiment for sample in samples),
    )


def frames_of(split: SplitLatents) -> Callable[[int], npt.NDArray[np.uint8]] | None:
    """Decoded frames by row, for pictures; None where the media aren't on this machine."""
    table = split.table

    def read(row: int) -> npt.NDArray[np.uint8]:
        sample = table[row]
        return read_clip(table.media_path(sample), sample.frame_index)

    try:
        read(0)
    except MediaError as error:
        log.warning("no pictures beside the trajectories: %s", error)
        return None
    return read
