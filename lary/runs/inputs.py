"""What a probe run reads: the latents of its splits, their targets, and who their samples are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lary.configs import ClassifyConfig, RegressConfig, RelativeFrame
from lary.data.spec import DatasetSpec
from lary.latents.ref import LatentsRef, SplitLatents, find_latent_table, open_latents
from lary.latents.sources import read_stamp
from lary.latents.store import SHARD_MARK
from lary.models.spec import MODELS, ModelSpec, with_latent
from lary.probes.sources import named, projected, shuffled_order, static_pair
from lary.runs.changed import CHANGED, FRAME_CONTROLS, open_changed, separate
from lary.runtime import device_numbers, log
from lary.settings import Settings
from lary.types import LaryError, LatentSource, Sample, UsageError

ProbeConfig = ClassifyConfig | RegressConfig

CHECKED_ROWS = 1024
"""Rows of a split whose latents are checked against their sample."""

SEEDS = 2**32
"""Number of possible seeds, from 0."""


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


def find_model(config: ProbeConfig, dataset: DatasetSpec, settings: Settings) -> ModelSpec | None:
    """The record of the model; None for latents of a name that no record knows, written by another program.

    Raises:
        UsageError: there is neither a record nor a table of latents of that name.
    """
    try:
        return with_latent(MODELS.get(config.model), config.latent)
    except UsageError:
        train = LatentsRef.of(config, dataset.roles(config.splits)["train"])
        if config.model in MODELS.names() or find_latent_table(settings, train) is None:
            raise
        return None


def frame_of(config: ProbeConfig) -> RelativeFrame | None:
    """The frame of relative motion; None for other targets. Raises UsageError for a frame without motion."""
    if isinstance(config, ClassifyConfig):
        return None
    if config.action_mode == "relative":
        return config.relative_frame or "world"
    if config.relative_frame is not None:
        raise UsageError(f"--relative-frame {config.relative_frame}: it needs --action-mode relative.")
    return None


def open_splits(settings: Settings, dataset: DatasetSpec, config: ProbeConfig) -> dict[str, SplitLatents]:
    """Latents by role: ``train``, ``seen`` (the validation split) and, where it was extracted, ``unseen``.

    Raises:
        UsageError: missing latents, of different shapes, of another data set, or of another dimension than ``--dim``.
        LaryError: latents that can't be read or belong to other samples.
    """
    roles = dataset.roles(config.splits)
    refs = {role: LatentsRef.of(config, split) for role, split in roles.items()}
    absent = None
    if "unseen" in refs and find_latent_table(settings, refs["unseen"]) is None:
        absent = refs.pop("unseen").split
    splits = {role: open_latents(settings, ref) for role, ref in refs.items()}
    if absent is not None:
        log.info("%s has no latents of %s %s: scored without it", config.model, dataset.name, absent)
    shapes = {role: split.source.shape for role, split in splits.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{roles[role]} {shape}" for role, shape in shapes.items())
        raise UsageError(f"The splits of '{dataset.name}' hold latents of different shapes ({listed}): extract again.")
    dim = getattr(config, "dim", None)
    if dim is not None and dim != (found := splits["train"].source.shape[-1]):
        raise UsageError(f"--dim {dim}: the latents have dimension {found}; leave the option out.")
    check_samples(settings, splits)
    if config.control in FRAME_CONTROLS:
        for role, split in splits.items():
            if not separate(split, config.protocol):
                splits[role] = open_changed(settings, split, replace(refs[role], control=config.control))
    return splits


def check_samples(settings: Settings, splits: Mapping[str, SplitLatents]) -> None:
    """Refuse latents of another data set, and those in single files that were made of another sample of these splits
    than their row names, or by another extraction than the first row's.

    Rows of shards were checked when they were opened; files of other programs name no sample. Of many rows some are
    checked, evenly spaced: a table that was sorted or shifted shows in any of them.

    Raises:
        UsageError, LaryError: names the row, the file, and whose latents it holds.
    """
    for split in splits.values():
        identity, spec = split.store.get("identity", {}), split.table.spec
        if (of := identity.get("dataset", spec.name)) != spec.name:
            raise UsageError(
                f"{split.table.path} names latents of '{of}', not of '{spec.name}': run 'lary extract --model "
                f"{identity.get('model')} --dataset {spec.name} --split {split.table.split}' again."
            )
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
    """A warning per scored split that shows episodes or videos of the training split, found in the tables."""
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


def shown(split: SplitLatents, config: ProbeConfig, seed: int, *, training: bool) -> LatentSource:
    """The latents of a split as the probe sees them: through the control and the projection that were asked for.

    Every split goes through the same projection; orders are shuffled anew. Frames that were changed before they were
    encoded stay as they are.
    """
    source: LatentSource = named(split.source, lambda row: name_of(split.table[row]))
    control = None if CHANGED in split.store else config.control
    if control == "static-pair":
        source = static_pair(source)
    elif control == "shuffled-order":
        source = shuffled_order(source, seed if training else seed + 1)
    return source if config.project is None else projected(source, config.project, seed)


def name_of(sample: Sample) -> str:
    """A sample for a message: its id and the media that it was cut from."""
    return f"sample {sample.id} ({', '.join(dict.fromkeys(sample.media))})"
