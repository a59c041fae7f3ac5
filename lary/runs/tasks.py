"""What a probe run reads, and the two kinds of runs: what each trains and writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lary.arrays import Array, Ints, Pixels
from lary.configs import ClassifyConfig, RegressConfig, RelativeFrame
from lary.data.actions import in_frame
from lary.data.frames import read_clip
from lary.data.normalisation import Targets, load_normaliser, load_targets
from lary.data.spec import DATASETS, DatasetSpec
from lary.data.tables import SampleTable
from lary.files import digest, write_failures
from lary.latents.ref import LatentsRef, SplitLatents, find_latent_table, open_latents
from lary.latents.sources import read_stamp
from lary.latents.store import SHARD_MARK
from lary.models.choices import chosen_model
from lary.models.spec import MODELS, ModelSpec
from lary.probes.outcome import ClassificationOutcome, RegressionOutcome, SampleColumns
from lary.probes.presets import PRESETS, ProbeKind
from lary.probes.sources import finite_latents, keep_in_memory, projected, reordered
from lary.results import published
from lary.results.record import EvalResult, RunFacts
from lary.results.summarise import classification_result, regression_result
from lary.runs.extract import CHANGED, FAILURES, FRAME_CONTROLS, check_media, open_changed, separate
from lary.runs.folds import fold_rows, joined, joined_latents
from lary.runtime import device_numbers, log
from lary.settings import Settings
from lary.types import Failure, JsonDict, LaryError, LatentSource, MediaError, Sample, UsageError

if TYPE_CHECKING:
    from lary.probes.training import Session

ProbeConfig = ClassifyConfig | RegressConfig
Splits = Mapping[str, SplitLatents]

CHECKED_ROWS = 1024  # of a split, whose latents are checked against their sample
SEEDS = 2**32  # seeds are numbers from 0 to one less
SHUFFLED = "shuffled-targets"


def with_seeds(config: ProbeConfig) -> ProbeConfig:
    """The options with ``seed``, and with ``seeds`` where several are the default.

    A difference has no p value without several seeds. `paper` has the published one, and at the
    published width of the classification a second one takes days.
    """
    if config.seed is not None:
        return config
    classes = isinstance(config, ClassifyConfig)
    several = config.protocol == "corrected" and (config.probe_preset == "demo" or not classes)
    seeds = "0,1,2" if several and config.seeds is None else config.seeds
    return replace(config, seed=0 if classes else 42, seeds=seeds)


def seeds_of(config: ProbeConfig) -> tuple[int, ...]:
    """The seeds to train with: ``--seeds``, ``--seed``, or the default. Raises UsageError."""
    config = with_seeds(config)
    option, text = ("--seed", str(config.seed)) if config.seeds is None else ("--seeds", config.seeds)
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} '{text}': expected numbers such as 0,1,2.") from None
    if len(set(seeds)) != len(seeds):
        raise UsageError(f"{option} {text}: a seed is named twice; name each once.")
    if outside := [seed for seed in seeds if not 0 <= seed < SEEDS]:
        raise UsageError(f"{option} {outside[0]}: a seed is a number from 0 to {SEEDS - 1}.")
    return seeds


def check_options(config: ProbeConfig) -> Any:
    """Settings of the probe. Raises UsageError for options that are wrong with any data."""
    seeds_of(config)
    frame_of(config)
    device_numbers(config.gpus or "0")
    config.check_counts("epochs", "probe_batch_size", advice=", or leave the option out")
    if config.folds is not None and (config.folds < 2 or config.protocol == "paper"):
        why = "paper scores the published split alone" if config.protocol == "paper" else "must be at least 2"
        raise UsageError(f"--folds {config.folds}: {why}; leave the option out.")
    kind, steps = (getattr(config, name, None) for name in ("model_type", "sampler_steps"))
    return PRESETS.get(config.probe_preset).settings(kind or "attentive", config.epochs, config.probe_batch_size, steps)


def frame_of(config: ProbeConfig) -> RelativeFrame | None:
    """The frame of relative motion; None for other targets. Raises UsageError."""
    if isinstance(config, ClassifyConfig):
        return None
    frame = config.relative_frame
    if config.action_mode == "relative":
        return frame or "world"
    if frame is not None:
        raise UsageError(f"--relative-frame {frame}: it needs --action-mode relative.")
    return None


# --- latents ---


def find_model(config: ProbeConfig, dataset: DatasetSpec, settings: Settings) -> ModelSpec | None:
    """The record of the model; None for latents of a name of their own. Raises UsageError."""
    try:
        return chosen_model(config)
    except UsageError:
        train = LatentsRef.of(config, dataset.roles(config.splits)["train"])
        if config.model in MODELS.names() or find_latent_table(settings, train) is None:
            raise
        return None


def open_splits(settings: Settings, dataset: DatasetSpec, config: ProbeConfig) -> dict[str, SplitLatents]:
    """Latents by role: ``train``, ``seen`` and, if extracted, ``unseen``.

    Raises LaryError for latents that are missing, unreadable or of other samples.
    """
    roles = dataset.roles(config.splits)
    if config.folds:  # no probe of a fold is the one to score there
        roles.pop("unseen", None)
    refs = {role: LatentsRef.of(config, split) for role, split in roles.items()}
    unseen = refs.get("unseen")
    if unseen and find_latent_table(settings, unseen) is None:
        del refs["unseen"]
        log.info("%s has no latents of %s %s: scored without it", unseen.model, unseen.dataset, unseen.split)
    splits = {role: open_latents(settings, ref) for role, ref in refs.items()}
    dim = getattr(config, "dim", None)
    found = splits["train"].source.shape[-1]
    if dim not in (None, found):
        raise UsageError(f"--dim {dim}: the latents have dimension {found}; leave the option out.")
    for split in splits.values():
        check_samples(settings, split, splits)
    for role, split in splits.items():
        if config.control in FRAME_CONTROLS and not separate(split, config.protocol):
            ref = replace(refs[role], control=config.control)
            splits[role] = open_changed(settings, split, ref)
    return splits


def check_samples(settings: Settings, split: SplitLatents, splits: Splits) -> None:
    """Refuse latents of another sample or extraction than their row names. Raises LaryError.

    Shards were checked when opened; files of other programs name no sample. Of many rows
    some are read: a sorted or shifted table shows in any.
    """
    table, advice = split.table, "Run 'lary extract' on this split again"
    entries = table.frame["la_path"].tolist()
    for position in range(0, len(entries), -(-len(entries) // CHECKED_ROWS)):
        entry, own = entries[position], table[position]
        file = settings.path("LARY_LA_DIR") / entry if "/" in entry else split.folder / entry
        stamp = None if SHARD_MARK in entry else read_stamp(file)
        if stamp is None:
            continue
        where = f"{table.path}, row {own.row + 1}: {file}"
        if stamp.store != split.store.get("stamp", {}).get("store", stamp.store):
            raise LaryError(f"{where} was made by another extraction than the rows before. {advice}.")
        if stamp.sample == own.id:
            continue
        # A sample that no split has is the same one before its label was corrected.
        for other in (sample for each in splits.values() for sample in each.table):
            if other.id == stamp.sample:
                names = f"{name_of(other)}, not of {name_of(own)}"
                raise LaryError(f"{where} holds the latents of {names}. {advice}; what is done is kept.")


def shared_groups(dataset: DatasetSpec, splits: Splits) -> tuple[str, ...]:
    """Warnings of splits without sources, and of groups that training shares."""
    train, found = splits["train"].table, list[str]()
    if alone := [split.table for split in splits.values() if "" in split.table.sources]:
        found.append(
            f"{sum(table.sources.count('') for table in alone):,} {train.spec.media}s of "
            f"{' and '.join(table.split for table in alone)} name no episode or video, so each counts as a group of "
            "its own: intervals may be too narrow, and folds may share what they show"
        )
    for table in (split.table for role, split in splits.items() if role != "train"):
        groups = set(table.groups())
        both = groups & set(train.groups())
        # Equal names under two roots are two episodes.
        if not both or table.root != train.root:
            continue
        apart = [
            f"; '--splits {name}' keeps them apart"
            for name in dataset.split_sets
            if not dataset.drawn[dataset.roles(name)["train"]].pattern
        ]
        found.append(
            f"{len(both):,} of the {len(groups):,} {table.unit} of {table.split} are in "
            f"{train.split} as well: the scores say little about new ones{''.join(apart[:1])}"
        )
    return tuple(found)


def shown(split: SplitLatents, config: ProbeConfig, seed: int, *, training: bool) -> LatentSource:
    """The latents of a split through the probe's control and projection.

    All splits share the projection; orders are shuffled anew, but not of changed frames.
    """
    source = finite_latents(split.source, lambda row: name_of(split.table[row]))
    if config.control in FRAME_CONTROLS and CHANGED not in split.store:
        source = reordered(source, config.control, seed if training else seed + 1)
    if config.project is not None:
        source = projected(source, config.project, seed)
    return source


def name_of(sample: Sample) -> str:
    """A sample for a message: its id and its media."""
    return f"sample {sample.id} ({', '.join(dict.fromkeys(sample.media))})"


def columns(table: SampleTable, mark: str = "") -> SampleColumns:
    """Ids, media, groups and robot types of samples; ids and groups begin with `mark`."""
    found = ((mark + one.id, one.media, mark + one.group, one.embodiment) for one in table)
    return SampleColumns(*zip(*found, strict=True))


# --- tasks ---


class ProbeTask:
    """A probe run with everything looked up and nothing written yet."""

    def __init__(self, config: Any, settings: Settings, kind: ProbeKind) -> None:
        self.probe = check_options(config)
        self.config: Any = with_seeds(config)
        self.settings, self.kind = settings, kind
        self.dataset = DATASETS.get(config.dataset)
        self.model = find_model(config, self.dataset, settings)
        self.digests: dict[str, str] = {}

    @cached_property
    def splits(self) -> dict[str, SplitLatents]:
        return open_splits(self.settings, self.dataset, self.config)

    def read_targets(self) -> None:
        """Read what is not in the tables, once; `digests` then names it."""

    def latents(self, role: str, session: Session) -> LatentSource:
        """The latents of a split for the probe, in memory if small."""
        training = role == "train"
        source = shown(self.splits[role].on(session.device), self.config, session.seed, training=training)
        return keep_in_memory(source, session.team.size)

    def folds(self, session: Session, targets: Array, labels: Ints | None = None) -> Iterator[Any]:
        """Session, training, evaluated latents, rows and samples of each fold."""
        tables = [split.table for split in self.splits.values()]
        apart = tables[0].root != tables[1].root  # equal names are two episodes
        pooled: SampleColumns = joined([columns(table, f"{table.split} " * apart) for table in tables])
        groups = np.array(pooled.groups)
        first, second = (self.latents(role, session) for role in self.splits)
        for number, held in enumerate(fold_rows(self.config.folds, groups, labels)):
            rows = np.setdiff1d(np.arange(len(groups)), held)
            values = self.order(targets[rows], session)
            training = joined_latents(first, second, rows), values, tuple(groups[rows].tolist())
            samples = SampleColumns(*(tuple(column[row] for row in held) for column in vars(pooled).values()))
            folder = session.folder and session.folder / f"fold_{number + 1}"
            own = replace(session, folder=folder) if number else session
            yield own, training, joined_latents(first, second, held), held, samples

    def training(self, session: Session, targets: Array) -> tuple[LatentSource, Array, tuple[str, ...]]:
        """The training split, and its groups."""
        return self.latents("train", session), self.order(targets, session), self.splits["train"].table.groups()

    def order(self, targets: Array, session: Session) -> Array:
        """Targets (n, ...) of the samples; ``shuffled-targets`` gives them those of others."""
        shuffled = self.config.control == SHUFFLED
        return np.random.default_rng(session.seed).permutation(targets) if shuffled else targets


class ClassTask(ProbeTask):
    """Recognition of action classes by attentive probes."""

    def __init__(self, config: ClassifyConfig, settings: Settings) -> None:
        super().__init__(config, settings, "attentive")
        self.classes = self.dataset.labels.classes
        if config.classes not in (None, len(self.classes)):
            there = f"data set '{self.dataset.name}' has {len(self.classes)} classes"
            raise UsageError(f"--classes {config.classes}: {there}; leave the option out.")
        self.digests["classes"] = digest(*self.classes)

    def train(self, session: Session) -> ClassificationOutcome:
        """Train and score the heads of one seed."""
        from lary.probes.classify import ClassifierInputs, train_classifier

        seen, train = (self.splits[role].table for role in ("seen", "train"))
        if self.config.folds:
            labels = np.concatenate([train.labels(), seen.labels()])
            parts = []
            for own, (source, targets, _), latents, rows, samples in self.folds(session, labels, labels):
                inputs = ClassifierInputs(source, targets, latents, labels[rows], samples, self.classes)
                parts.append(train_classifier(inputs, self.probe, own))
            whole: ClassificationOutcome = joined(parts)
            return replace(whole, train_counts=np.bincount(labels, minlength=len(self.classes)))
        training = self.training(session, train.labels())[:2]
        validation = self.latents("seen", session)
        inputs = ClassifierInputs(*training, validation, seen.labels(), columns(seen), self.classes)
        return train_classifier(inputs, self.probe, session)

    def write(self, work: Path, outcomes: Sequence[ClassificationOutcome], facts: JsonDict) -> EvalResult:
        """Write the output files; returns the record of the run."""
        published.write_classification_files(work, outcomes[0])
        answers = published.answers_of(outcomes)
        published.write_scores(work, published.class_scores(outcomes), seeds_of(self.config), **answers)
        return classification_result(outcomes[0], RunFacts(**facts), outcomes[1:])


class ActionTask(ProbeTask):
    """Decoding of action chunks by an MLP, a diffusion transformer, or ridge regression."""

    def __init__(self, config: RegressConfig, settings: Settings) -> None:
        super().__init__(config, settings, config.model_type)
        check_media(self.dataset, config)
        self.actions = self.dataset.actions
        self.frame: RelativeFrame = frame_of(config) or "world"
        self.targets: dict[str, Targets] = {}
        self.failures: list[Failure] = []

    def read_targets(self) -> None:
        """Read the actions but for unreadable rows, and their digests. Raises LaryError."""
        if self.targets:
            return
        folder = self.settings.path("DATA_DIR")
        mode = self.config.action_mode
        train = self.splits["train"]
        normaliser = load_normaliser(self.dataset, folder, mode, train.table, self.frame)
        for role, split in self.splits.items():
            table = split.table
            if mode == "relative":
                root = folder / in_frame(table.spec.split(table.split).root, self.frame)
                moved = replace(table, root=root.absolute())
                # Without such files the motion is that of the absolute chunks, the same values.
                table = moved if moved.action_path(0).is_file() else table
            found = load_targets(table, normaliser, mode=mode, frame=self.frame)
            rows = np.flatnonzero(found.readable)
            if not len(rows):
                first = f"the first: {found.failures[0].reason} Check DATA_DIR: they are expected under {table.root}"
                raise LaryError(f"None of the {len(found.failures)} action files of {table.path} can be read; {first}.")
            self.failures += found.failures
            self.digests[f"targets {role}"] = found.digest
            if found.failures:
                self.splits[role] = split.take(rows.tolist())
                found = Targets(found.values[rows], found.mean[rows], found.std[rows], ())
            self.targets[role] = found
        numbers = [part.tobytes() for found in self.targets.values() for part in found[1:3]]
        self.digests["statistics"] = digest(*numbers)

    def train(self, session: Session) -> RegressionOutcome:
        from lary.probes.regress import EvaluatedSplit, RegressorInputs, train_regressor

        names = self.actions.dims, self.actions.groups
        if self.config.folds:
            pooled = [np.concatenate(own) for own in list(zip(*self.targets.values(), strict=True))[:3]]
            parts = []
            for part, (source, targets, groups), latents, rows, samples in self.folds(session, pooled[0]):
                values, mean, std = (own[rows] for own in pooled)
                held = {"seen": EvaluatedSplit(latents, values, samples, mean, std)}
                parts.append(train_regressor(RegressorInputs(source, targets, groups, held, *names), self.probe, part))
            whole: RegressionOutcome = joined(parts)
            return whole
        evaluated = {}
        for role, (values, mean, std, *_) in self.targets.items():
            if role != "train":
                samples = columns(self.splits[role].table)
                evaluated[role] = EvaluatedSplit(self.latents(role, session), values, samples, mean, std)
        inputs = RegressorInputs(*self.training(session, self.targets["train"].values), evaluated, *names)
        return train_regressor(inputs, self.probe, session)

    def write(self, work: Path, outcomes: Sequence[RegressionOutcome], facts: JsonDict) -> EvalResult:
        first, *others = outcomes
        write_failures(work / FAILURES, self.failures)
        if self.failures:
            log.error("%d rows have no readable action and are left out: see %s", len(self.failures), FAILURES)
        frames = None if self.config.folds else frames_of(self.splits["seen"])
        files = published.write_regression_files(work, first, frames, self.actions.units)
        published.write_scores(work, published.action_scores(outcomes), seeds_of(self.config))
        published.write_actions(work, outcomes)
        record = RunFacts(files=dict.fromkeys(files, ""), **facts)
        # The difference of two orientations' values is no orientation, the turn is one.
        turns = self.config.action_mode == "absolute" or self.frame != "world"
        return regression_result(first, record, others, self.actions.orientations if turns else ())


def frames_of(split: SplitLatents) -> Callable[[int], Pixels] | None:
    """Decoded frames by row, for pictures; None where the media are missing."""

    def read(row: int) -> Pixels:
        sample = split.table[row]
        return read_clip(split.table.media_path(sample), sample.frame_index, "pil")

    try:
        read(0)
    except MediaError as error:
        log.warning("no pictures beside the trajectories: %s", error)
        return None
    return read
