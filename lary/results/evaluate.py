"""One command, one function: a probe run from latents to its result.json and the published output files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lary import paths
from lary.configs import ClassifyConfig, RegressConfig
from lary.data.actions import Normaliser, Targets, load_normaliser, load_targets
from lary.data.frames import read_clip
from lary.data.spec import DATASETS, DatasetSpec
from lary.fileio import digest, read_json
from lary.latents.extract import FAILURES, TIMING, check_mode, check_stride, write_failures
from lary.latents.table import SplitLatents, find_latent_table, open_latents
from lary.models.spec import MODELS, ModelSpec
from lary.probes.outcome import SampleColumns
from lary.probes.presets import PRESETS
from lary.results.published import write_classification_files, write_regression_files
from lary.results.record import (
    FILE_NAME,
    SCHEMA_VERSION,
    DatasetFacts,
    EvalResult,
    ModelFacts,
    Provenance,
    RunFacts,
    SplitFacts,
    read_result,
    write_result,
)
from lary.results.summarise import classification_result, regression_result
from lary.runtime import log, pick_devices, progress, provenance
from lary.settings import Settings
from lary.types import Failure, LaryError, MediaError, UsageError

ProbeConfig = ClassifyConfig | RegressConfig


@dataclass(frozen=True)
class ProbeRun:
    """A finished run: its folder, its result, and whether it was done just now."""

    folder: Path
    result: EvalResult
    new: bool


def classify(config: ClassifyConfig, settings: Settings) -> ProbeRun:
    """Train and score the attentive probe; a run that is done is not done again.

    Raises:
        UsageError: contradicting options, missing latents, or a folder that holds the result of another run.
        LaryError: unreadable latents, or a training that diverged.
    """
    model, dataset = MODELS.get(config.model), DATASETS.get(config.dataset)
    classes = dataset.labels.classes
    if config.classes is not None and config.classes != len(classes):
        raise UsageError(f"--classes {config.classes}: data set '{dataset.name}' has {len(classes)} classes.")
    preset = PRESETS.get(config.probe_preset)
    splits = open_splits(settings, dataset, model, config)
    check_dim(config.dim, splits)
    folder = paths.classification_folder(
        settings, dataset.name, paths.tagged(model.name, config.protocol, config.latent)
    )
    if (found := finished(folder, config, splits)) is not None:
        return ProbeRun(folder, found, new=False)

    from lary.probes.classify import ClassifierInputs, train_classifier

    train, validation = splits["train"], splits["seen"]
    started = time.monotonic()
    inputs = ClassifierInputs(
        train=train.source, train_labels=train.table.labels(), train_groups=train.table.groups(),
        validation=validation.source, labels=validation.table.labels(), samples=columns(validation), classes=classes,
    )  # fmt: skip
    epochs = config.epochs or preset.classifier.epochs
    with progress(epochs * len(train.table), f"probe {dataset.name} {model.name}") as bar:
        outcome = train_classifier(
            inputs, preset, protocol=config.protocol, device=pick_devices(config.gpus)[0], seed=config.seed,
            folder=folder, progress=bar, epochs=config.epochs, batch_size=config.probe_batch_size,
        )  # fmt: skip
    seconds = time.monotonic() - started
    files = ("log_r0.csv", "latest.pt", *write_classification_files(folder, outcome))
    facts = run_facts(config, dataset, model, splits, outcome.settings, files, seconds, probe="attentive")
    result = classification_result(outcome, facts)
    write_result(folder / FILE_NAME, result)
    return ProbeRun(folder, result, new=True)


def regress(config: RegressConfig, settings: Settings) -> ProbeRun:
    """Train and score the action probe; a run that is done is not done again.

    Raises:
        UsageError: contradicting options, missing latents or statistics, or a folder with the result of another run.
        LaryError: unreadable latents or actions, or a training that diverged.
    """
    model, dataset = MODELS.get(config.model), DATASETS.get(config.dataset)
    actions = dataset.actions
    check_stride(dataset, config.stride)
    check_mode(dataset, config.mode)
    preset = PRESETS.get(config.probe_preset)
    splits = open_splits(settings, dataset, model, config)
    tag = paths.tagged(model.name, config.protocol, config.latent)
    folder = paths.regression_folder(
        settings, dataset.name, dataset.stride, tag, config.model_type, config.action_mode
    )  # fmt: skip
    if (found := finished(folder, config, splits)) is not None:
        return ProbeRun(folder, found, new=False)

    from lary.probes.regress import EvaluatedSplit, RegressorInputs, train_regressor

    started = time.monotonic()
    normaliser = load_normaliser(dataset, settings.path("DATA_DIR"), config.action_mode, splits["train"].table)
    targets: dict[str, Targets] = {}
    failures: list[Failure] = []
    for role, split in splits.items():
        splits[role], targets[role] = with_targets(split, normaliser, failures)
    report_failures(folder, failures)
    evaluated = {
        role: EvaluatedSplit(split.source, targets[role].values, columns(split), targets[role].mean, targets[role].std)
        for role, split in splits.items()
        if role != "train"
    }
    train = splits["train"]
    inputs = RegressorInputs(
        train=train.source, train_targets=targets["train"].values, train_groups=train.table.groups(),
        evaluated=evaluated, dims=actions.dims, groups=actions.groups,
    )  # fmt: skip
    epochs = config.epochs or preset.regressor.epochs
    with progress(epochs * len(train.table), f"probe {dataset.name} {model.name}") as bar:
        outcome = train_regressor(
            inputs, preset, protocol=config.protocol, device=pick_devices(config.gpus)[0], seed=config.seed,
            folder=folder, progress=bar, epochs=config.epochs, batch_size=config.probe_batch_size,
        )  # fmt: skip
    seconds = time.monotonic() - started
    written = write_regression_files(folder, outcome, frames_of(splits["seen"]), actions.units)
    files = ("best_model.pth", *written)
    facts = run_facts(config, dataset, model, splits, outcome.settings, files, seconds, probe=config.model_type)
    result = regression_result(outcome, facts)
    write_result(folder / FILE_NAME, result)
    return ProbeRun(folder, result, new=True)


def open_splits(
    settings: Settings, dataset: DatasetSpec, model: ModelSpec, config: ProbeConfig
) -> dict[str, SplitLatents]:
    """Latents by role: ``train``, ``seen`` (the validation split) and, where it was extracted, ``unseen``."""
    roles = {"train": dataset.train, "seen": dataset.validation}
    if dataset.unseen is not None:
        if find_latent_table(settings, dataset, dataset.unseen, model.name, config.protocol, config.latent) is None:
            log.info("%s has no latents of %s %s: scored without it", model.name, dataset.name, dataset.unseen)
        else:
            roles["unseen"] = dataset.unseen
    splits = {
        role: open_latents(settings, dataset, split, model.name, config.protocol, config.latent)
        for role, split in roles.items()
    }
    shapes = {role: split.source.shape for role, split in splits.items()}
    if len(set(shapes.values())) > 1:
        told = ", ".join(f"{roles[role]} {shape}" for role, shape in shapes.items())
        raise UsageError(f"The splits of '{dataset.name}' hold latents of different shapes ({told}): extract again.")
    return splits


def with_targets(split: SplitLatents, normaliser: Normaliser, failures: list[Failure]) -> tuple[SplitLatents, Targets]:
    """A split and its normalised targets, without the rows whose action file can't be read; those join `failures`.

    Raises:
        LaryError: a robot type has no statistics, or no action file of the split can be read.
    """
    targets = load_targets(split.table, normaliser)
    if not targets.failures:
        return split, targets
    failures += targets.failures
    rows = np.flatnonzero(targets.readable)
    if not len(rows):
        raise LaryError(
            f"None of the {len(targets.failures)} action files of {split.table.path} can be read; the first: "
            f"{targets.failures[0].reason} Check DATA_DIR: they are expected under {split.table.root}."
        )
    kept = Targets(targets.values[rows], targets.mean[rows], targets.std[rows], ())
    return split.take(rows.tolist()), kept


def report_failures(folder: Path, failures: Sequence[Failure]) -> None:
    """Write the rows that were left out to the run's failures file; none, and there is no such file."""
    file = folder / FAILURES
    if not failures:
        file.unlink(missing_ok=True)
        return
    write_failures(file, failures)
    log.error("%d rows have no readable action and are left out: see %s", len(failures), file)


def check_dim(dim: int | None, splits: Mapping[str, SplitLatents]) -> None:
    """Refuse a ``--dim`` that contradicts the latents. Raises UsageError."""
    found = splits["train"].source.shape[-1]
    if dim is not None and dim != found:
        raise UsageError(f"--dim {dim}: the latents have dimension {found}; leave the option out.")


def identity_of(config: ProbeConfig, splits: Mapping[str, SplitLatents]) -> str:
    """A digest of what decides a run: its options and the latents that it reads."""
    asked = {name: value for name, value in asdict(config).items() if name != "overwrite"}
    inputs = {role: [split.table.digest, split.store.get("key")] for role, split in splits.items()}
    return digest(json.dumps([SCHEMA_VERSION, asked, inputs], sort_keys=True))


def finished(folder: Path, config: ProbeConfig, splits: Mapping[str, SplitLatents]) -> EvalResult | None:
    """The result of this very run if it is done.

    Raises:
        UsageError: the folder holds the result of another run and ``--overwrite`` was not given.
    """
    file = folder / FILE_NAME
    if not file.exists():
        return None
    result = read_result(file)
    if result.identity == identity_of(config, splits):
        log.info("%s is done; --overwrite does it again", file)
        return None if config.overwrite else result
    if config.overwrite:
        return None
    raise UsageError(
        f"{file} holds the result of another run (preset {result.preset}, seed {result.seed}, of {result.created}) or "
        "of other latents. Pass --overwrite to replace it, or --lary-log-dir for another folder."
    )


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


def run_facts(
    config: ProbeConfig, dataset: DatasetSpec, model: ModelSpec, splits: Mapping[str, SplitLatents],
    resolved: Mapping[str, Any], files: tuple[str, ...], seconds: float, *, probe: str,
) -> RunFacts:  # fmt: skip
    """What is known about a run besides its outcome."""
    train = splits["train"]
    store = train.store.get("identity", {})
    missing = sum(split.left_out for split in splits.values())
    notes = model.paper_differences if config.protocol == "paper" else ()
    target_units = getattr(dataset.target, "units", ())
    timings = {f"extract {split.table.split}": read_timing(split) for split in splits.values()}
    return RunFacts(
        status="incomplete" if missing else "complete",
        identity=identity_of(config, splits),
        dataset=DatasetFacts(
            name=dataset.name, title=dataset.title, revision=dataset.revision,
            stride=dataset.stride, units=target_units,
            tables={split.table.split: split.table.digest for split in splits.values()},
            splits={
                split.table.split: SplitFacts(rows=len(split.table), groups=len(set(split.table.groups())))
                for split in splits.values()
            },
        ),
        model=ModelFacts(
            name=model.name, paradigm=model.paradigm, revision=str(train.store.get("weights_from") or ""),
            weights=store.get("weights", ""), dim=train.source.shape[-1], shape=train.source.shape,
            parameters_m=model.parameters_m,
        ),
        probe=probe, action_mode=getattr(config, "action_mode", None), protocol=config.protocol, protocol_notes=notes,
        preset=config.probe_preset, seed=config.seed,
        options_given=json.loads(json.dumps(asdict(config), default=str)),
        options=json.loads(json.dumps(dict(resolved), default=str)),
        provenance=Provenance(**provenance()),
        timings={name: value for name, value in timings.items() if value} | {"probe": round(seconds, 3)},
        failures=missing, files=files,
    )  # fmt: skip


def read_timing(split: SplitLatents) -> float:
    """Seconds that the extraction of a split took, all its runs together; 0 where nobody measured."""
    file = split.source.files[0].parent / TIMING
    return float(read_json(file, "timing of the extraction")["seconds"]) if file.exists() else 0.0


def summary(result: EvalResult) -> str:
    """A few lines for the terminal: both selections and the controls, with intervals."""
    setting = f"protocol {result.protocol}, preset {result.preset}"
    lines = [f"{result.task} of {result.dataset.name} with {result.model.name} ({setting})"]
    for name, selection in result.selections.items():
        mark = "  <- headline" if name == result.headline else ""
        lines.append(f"  {name:20} {result.primary} {selection.metrics[result.primary].text()}{mark}")
    for rule, control in result.controls.items():
        lines.append(f"  control {rule:12} {result.primary} {control.metrics[result.primary].text()}")
    lines += [f"  note: {note}" for note in result.protocol_notes]
    lines += [f"  warning: {warning}" for warning in result.warnings]
    return "\n".join(lines)
