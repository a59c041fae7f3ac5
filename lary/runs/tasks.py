"""The two kinds of probe runs: what each reads besides latents, trains, and writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from lary.configs import ClassifyConfig, RegressConfig
from lary.data.actions import Frame, in_frame
from lary.data.frames import read_clip
from lary.data.normalisation import Normaliser, Targets, load_normaliser, load_targets
from lary.data.spec import DatasetSpec
from lary.data.tables import SampleTable
from lary.files import write_failures
from lary.latents.ref import SplitLatents
from lary.probes.outcome import ClassificationOutcome, RegressionOutcome, SampleColumns
from lary.probes.presets import ProbePreset
from lary.results.folder import RunFolder
from lary.results.published import (
    action_scores,
    class_scores,
    write_actions,
    write_classification_files,
    write_regression_files,
    write_scores,
)
from lary.results.record import EvalResult, RunFacts
from lary.results.summarise import classification_result, regression_result
from lary.runs.extract import FAILURES, check_media
from lary.runs.inputs import ProbeConfig, frame_of, seeds_of, shown
from lary.runtime import log
from lary.settings import Settings
from lary.types import Failure, LaryError, MediaError, UsageError

if TYPE_CHECKING:
    from lary.probes.session import Session

RIDGE_REFUSES = ("epochs", "probe_batch_size", "sampler_steps")

Outcome = TypeVar("Outcome")


class ProbeTask(Generic[Outcome]):
    """The parts of a run in which classification and regression differ."""

    probe: str
    passes: int
    """Times that the training data are read, for the progress bar."""
    trained: bool = True
    """Whether the probe is trained by epochs, on one or several devices."""

    def prepare(self, splits: dict[str, SplitLatents], settings: Settings) -> None:
        """Read the targets of the splits; rows without a target are taken out of `splits`."""

    def train(self, splits: Mapping[str, SplitLatents], session: Session) -> Outcome:
        """Train and score the probe of one seed."""
        raise NotImplementedError

    def write(self, run: RunFolder, outcomes: Sequence[Outcome], splits: Mapping[str, SplitLatents]) -> tuple[str, ...]:
        """Write the files of a run; returns their names."""
        raise NotImplementedError

    def result(self, outcomes: Sequence[Outcome], facts: RunFacts) -> EvalResult:
        """The record of a run."""
        raise NotImplementedError


def task_of(config: ProbeConfig, dataset: DatasetSpec, preset: ProbePreset) -> ClassTask | ActionTask:
    """The kind of run that the options are for. Raises UsageError for options that contradict the data set."""
    if isinstance(config, ClassifyConfig):
        return ClassTask(config, dataset, preset)
    return ActionTask(config, dataset, preset)


class ClassTask(ProbeTask[ClassificationOutcome]):
    """Recognition of action classes by attentive probes."""

    probe = "attentive"

    def __init__(self, config: ClassifyConfig, dataset: DatasetSpec, preset: ProbePreset) -> None:
        self.config, self.preset, self.classes = config, preset, dataset.labels.classes
        self.passes = config.epochs or preset.classifier.epochs
        if config.classes is not None and config.classes != len(self.classes):
            raise UsageError(
                f"--classes {config.classes}: data set '{dataset.name}' has {len(self.classes)} classes; leave the "
                "option out."
            )

    def train(self, splits: Mapping[str, SplitLatents], session: Session) -> ClassificationOutcome:
        """Train all heads of one seed."""
        from lary.probes.classify import ClassifierInputs, train_classifier

        config, train, validation, seed = self.config, splits["train"], splits["seen"], session.seed
        labels = train.table.labels()
        inputs = ClassifierInputs(
            train=shown(train, config, seed, training=True),
            train_labels=labels[shuffled(len(labels), config, seed)], train_groups=train.table.groups(),
            validation=shown(validation, config, seed, training=False), labels=validation.table.labels(),
            samples=columns(validation), classes=self.classes,
        )  # fmt: skip
        return train_classifier(
            inputs, self.preset, session, epochs=config.epochs, batch_size=config.probe_batch_size,
            precision=config.precision,
        )  # fmt: skip

    def write(
        self, run: RunFolder, outcomes: Sequence[ClassificationOutcome], splits: Mapping[str, SplitLatents]
    ) -> tuple[str, ...]:
        """Write confusion matrix, class table and scores."""
        scores = write_scores(run.work, class_scores(outcomes), seeds_of(self.config))
        return ("log_r0.csv", "latest.pt", *write_classification_files(run.work, outcomes[0]), scores)

    def result(self, outcomes: Sequence[ClassificationOutcome], facts: RunFacts) -> EvalResult:
        """The record of the run."""
        return classification_result(outcomes[0], facts, outcomes[1:])


class ActionTask(ProbeTask[RegressionOutcome]):
    """Decoding of action chunks by an MLP, a diffusion transformer, or ridge regression."""

    def __init__(self, config: RegressConfig, dataset: DatasetSpec, preset: ProbePreset) -> None:
        self.config, self.dataset, self.preset, self.actions = config, dataset, preset, dataset.actions
        check_media(dataset, config.mode, config.stride)
        self.probe, self.trained = config.model_type, config.model_type != "ridge"
        self.frame: Frame = frame_of(config) or "world"
        self.targets: dict[str, Targets] = {}
        self.failures: list[Failure] = []
        if self.trained:
            self.passes = config.epochs or (preset.dit if config.model_type == "dit" else preset.regressor).epochs
            return
        self.passes = len(preset.ridge.shrinkages)
        for name in RIDGE_REFUSES:
            if (value := getattr(config, name)) is not None:
                raise UsageError(
                    f"--{name.replace('_', '-')} {value}: the ridge probe is not trained; leave the option out."
                )

    def prepare(self, splits: dict[str, SplitLatents], settings: Settings) -> None:
        """Read and normalise the actions; rows whose action file can't be read are taken out of the splits.

        Raises:
            LaryError: a robot type has no statistics, or no action file of a split can be read.
        """
        data_dir = settings.path("DATA_DIR")
        mode = self.config.action_mode
        normaliser = load_normaliser(self.dataset, data_dir, mode, splits["train"].table, self.frame)
        for role, split in splits.items():
            splits[role], self.targets[role] = self.with_targets(split, normaliser, data_dir)

    def with_targets(self, split: SplitLatents, normaliser: Normaliser, data_dir: Path) -> tuple[SplitLatents, Targets]:
        """A split and its normalised targets, without the rows whose action file can't be read."""
        mode = self.config.action_mode
        table = relative_table(split.table, data_dir, self.frame) if mode == "relative" else split.table
        targets = load_targets(table, normaliser, mode=mode, frame=self.frame)
        if not targets.failures:
            return split, targets
        self.failures += targets.failures
        rows = np.flatnonzero(targets.readable)
        if not len(rows):
            raise LaryError(
                f"None of the {len(targets.failures)} action files of {table.path} can be read; the first: "
                f"{targets.failures[0].reason} Check DATA_DIR: they are expected under {table.root}."
            )
        kept = Targets(targets.values[rows], targets.mean[rows], targets.std[rows], ())
        return split.take(rows.tolist()), kept

    def train(self, splits: Mapping[str, SplitLatents], session: Session) -> RegressionOutcome:
        """Train or fit the probe of one seed."""
        from lary.probes.regress import EvaluatedSplit, RegressorInputs

        config, train, values, seed = self.config, splits["train"], self.targets["train"].values, session.seed
        evaluated = {
            role: EvaluatedSplit(
                shown(split, config, seed, training=False), self.targets[role].values, columns(split),
                self.targets[role].mean, self.targets[role].std,
            )
            for role, split in splits.items()
            if role != "train"
        }  # fmt: skip
        inputs = RegressorInputs(
            train=shown(train, config, seed, training=True),
            train_targets=values[shuffled(len(values), config, seed)], train_groups=train.table.groups(),
            evaluated=evaluated, dims=self.actions.dims, groups=self.actions.groups,
        )  # fmt: skip
        if config.model_type == "ridge":
            from lary.probes.ridge import fit_ridge

            return fit_ridge(inputs, self.preset, session)
        from lary.probes.regress import train_regressor

        return train_regressor(
            inputs, self.preset, session, epochs=config.epochs, batch_size=config.probe_batch_size,
            probe=config.model_type, sampler_steps=config.sampler_steps,
        )  # fmt: skip

    def write(
        self, run: RunFolder, outcomes: Sequence[RegressionOutcome], splits: Mapping[str, SplitLatents]
    ) -> tuple[str, ...]:
        """Write the best row, trajectories, chunks, scores, and the rows that were left out."""
        write_failures(run.work / FAILURES, self.failures)
        if self.failures:
            log.error(
                "%d rows have no readable action and are left out: see %s", len(self.failures), run.folder / FAILURES
            )
        written = write_regression_files(run.work, outcomes[0], frames_of(splits["seen"]), self.actions.units)
        scores = write_scores(run.work, action_scores(outcomes), seeds_of(self.config))
        return ("best_model.pth", *written, scores, write_actions(run.work, outcomes[0]))

    def result(self, outcomes: Sequence[RegressionOutcome], facts: RunFacts) -> EvalResult:
        """The record of the run."""
        # The difference of two orientations' values is no orientation, the turn from one to the other is.
        turns = self.config.action_mode == "absolute" or self.frame != "world"
        return regression_result(outcomes[0], facts, outcomes[1:], self.actions.orientations if turns else ())


def relative_table(table: SampleTable, data_dir: Path, frame: Frame) -> SampleTable:
    """The table over ``regression_relative/`` (or that of local motion) where its files were made, else itself.

    Without those files the motion is computed from the absolute chunks; the values are the same.
    """
    root = (data_dir / in_frame(table.spec.split(table.split).root, frame)).absolute()
    moved = replace(table, root=root)
    return moved if moved.action_path(0).is_file() else table


def shuffled(count: int, config: ProbeConfig, seed: int) -> npt.NDArray[np.int64]:
    """Rows whose targets `count` training samples get: their own, or under ``shuffled-targets`` those of others."""
    if config.control != "shuffled-targets":
        return np.arange(count, dtype=np.int64)
    return np.random.default_rng(seed).permutation(count).astype(np.int64)


def columns(split: SplitLatents) -> SampleColumns:
    """Ids, media, groups and robot types of the samples of a split."""
    samples = [split.table[row] for row in range(len(split.table))]
    return SampleColumns(
        ids=tuple(sample.id for sample in samples), media=tuple(sample.media for sample in samples),
        groups=tuple(sample.group for sample in samples), embodiments=tuple(sample.embodiment for sample in samples),
    )  # fmt: skip


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
