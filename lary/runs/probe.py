"""One command, one function: a probe run from latents to its result.json and the published output files."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lary.configs import ClassifyConfig, RegressConfig, RelativeFrame
from lary.data.actions import Targets, load_normaliser
from lary.data.spec import DATASETS, DatasetSpec
from lary.files import digest
from lary.latents.ref import LatentsRef, SplitLatents
from lary.models.spec import MODELS, ModelSpec
from lary.probes.presets import PRESETS
from lary.results.folder import settle, writing
from lary.results.published import (
    action_scores,
    class_scores,
    write_actions,
    write_classification_files,
    write_regression_files,
    write_scores,
)
from lary.results.record import (
    FILE_NAME,
    DatasetFacts,
    EvalResult,
    ModelFacts,
    NamedDigest,
    Provenance,
    RunFacts,
    SplitSize,
    read_result,
    run_identity,
)
from lary.results.summarise import classification_result, regression_result
from lary.runs.devices import NOT_DECIDING, Place, check_stores, run_on, several_devices
from lary.runs.extract import check_mode, check_stride, read_timing
from lary.runs.inputs import (
    ProbeConfig,
    check_dim,
    check_options,
    columns,
    frames_of,
    open_splits,
    report_failures,
    seeds_of,
    shared_groups,
    shown,
    shuffled,
    variant_of,
    with_targets,
)
from lary.runtime import log, provenance
from lary.settings import Settings
from lary.types import Failure, Progress, UsageError

if TYPE_CHECKING:
    from lary.probes.chunks import RegressorInputs
    from lary.probes.outcome import RegressionOutcome
    from lary.probes.presets import ProbePreset


@dataclass(frozen=True)
class ProbeRun:
    """A finished run: its folder, its result, and whether it was done just now."""

    folder: Path
    result: EvalResult
    new: bool


def classify(
    config: ClassifyConfig, settings: Settings, opened: Mapping[str, SplitLatents] | None = None
) -> ProbeRun:  # fmt: skip
    """Train and score the attentive probe; a run that is done is not done again.

    `opened` are latents by role in place of the stored ones.

    Raises:
        UsageError: contradicting options, missing latents, or a folder that holds the result of another run.
        LaryError: unreadable latents, or a training that diverged.
    """
    check_options(config)
    model, dataset = MODELS.get(config.model), DATASETS.get(config.dataset)
    classes = dataset.labels.classes
    if config.classes is not None and config.classes != len(classes):
        raise UsageError(
            f"--classes {config.classes}: data set '{dataset.name}' has {len(classes)} classes; leave the option out."
        )
    preset = PRESETS.get(config.probe_preset)
    splits = dict(opened) if opened else open_splits(settings, dataset, model, config)
    check_stores(dataset.name, splits)
    check_dim(config.dim, splits)
    folder = run_folder(config, settings, dataset, model)
    if (found := finished(folder, config, splits)) is not None:
        return ProbeRun(folder, found, new=False)
    if devices := several_devices(config):
        run_on(devices, classify, config, settings)
        return ProbeRun(folder, read_result(folder / FILE_NAME), new=True)
    place = Place.of(config)

    from lary.probes.classify import ClassifierInputs, train_classifier

    identity = run_identity(inputs_of(config, splits))
    with writing(folder, identity, resume=config.resume, leads=place.team.leads) as run:
        train, validation = splits["train"], splits["seen"]
        started = time.monotonic()
        epochs, seeds = config.epochs or preset.classifier.epochs, seeds_of(config)
        outcomes = []
        with place.progress(len(seeds) * epochs * len(train.table), f"probe {dataset.name} {model.name}") as bar:
            for seed in seeds:
                labels = train.table.labels()
                inputs = ClassifierInputs(
                    train=shown(train, config, seed, training=True),
                    train_labels=labels[shuffled(len(labels), config, seed)],
                    train_groups=train.table.groups(), validation=shown(validation, config, seed, training=False),
                    labels=validation.table.labels(), samples=columns(validation), classes=classes,
                )  # fmt: skip
                own = folder_of(run.work, seed, seeds)
                with place.session(config, identity, seed, own, folder.name) as session:
                    outcomes.append(
                        train_classifier(
                            inputs, preset, protocol=config.protocol, device=place.device, seed=seed, folder=own,
                            progress=bar, epochs=config.epochs, batch_size=config.probe_batch_size,
                            precision=config.precision, session=session,
                        )
                    )  # fmt: skip
        place.team.leave()
        seconds = time.monotonic() - started
        scores = write_scores(run.work, class_scores(outcomes), seeds)
        files = ("log_r0.csv", "latest.pt", *write_classification_files(run.work, outcomes[0]), scores)
        facts = run_facts(config, dataset, model, splits, outcomes[0].settings, files, seconds, probe="attentive")
        result = run.publish(warned(classification_result(outcomes[0], facts, outcomes[1:]), dataset, splits))
    return ProbeRun(folder, result, new=True)


def regress(
    config: RegressConfig, settings: Settings, opened: Mapping[str, SplitLatents] | None = None
) -> ProbeRun:  # fmt: skip
    """Train and score the action probe; a run that is done is not done again.

    `opened` are latents by role in place of the stored ones.

    Raises:
        UsageError: contradicting options, missing latents or statistics, or a folder with the result of another run.
        LaryError: unreadable latents or actions, or a training that diverged.
    """
    check_options(config)
    model, dataset = MODELS.get(config.model), DATASETS.get(config.dataset)
    actions = dataset.actions
    check_stride(dataset, config.stride)
    check_mode(dataset, config.mode)
    preset = PRESETS.get(config.probe_preset)
    splits = dict(opened) if opened else open_splits(settings, dataset, model, config)
    check_stores(dataset.name, splits)
    folder, frame = run_folder(config, settings, dataset, model), frame_of(config)
    if (found := finished(folder, config, splits)) is not None:
        return ProbeRun(folder, found, new=False)
    if config.model_type != "ridge" and (devices := several_devices(config)):
        run_on(devices, regress, config, settings)
        return ProbeRun(folder, read_result(folder / FILE_NAME), new=True)
    place = Place.of(config)

    identity = run_identity(inputs_of(config, splits))
    with writing(folder, identity, resume=config.resume, leads=place.team.leads) as run:
        started = time.monotonic()
        data_dir = settings.path("DATA_DIR")
        normaliser = load_normaliser(dataset, data_dir, config.action_mode, splits["train"].table, frame or "world")
        targets: dict[str, Targets] = {}
        failures: list[Failure] = []
        for role, split in splits.items():
            asked = (normaliser, config.action_mode, data_dir, failures, frame or "world")
            splits[role], targets[role] = with_targets(split, *asked)
        report_failures(run, failures)
        seeds = seeds_of(config)
        rounds = len(preset.ridge.shrinkages) if config.model_type == "ridge" else epochs_of(config, preset)
        with place.progress(
            len(seeds) * rounds * len(splits["train"].table), f"probe {dataset.name} {model.name}"
        ) as bar:
            outcomes = [
                train_actions(
                    config, preset, regressor_inputs(config, dataset, splits, targets, seed), seed,
                    folder_of(run.work, seed, seeds), bar, place, identity, folder.name,
                )
                for seed in seeds
            ]  # fmt: skip
        place.team.leave()
        seconds = time.monotonic() - started
        written = write_regression_files(run.work, outcomes[0], frames_of(splits["seen"]), actions.units)
        scores = write_scores(run.work, action_scores(outcomes), seeds)
        files = ("best_model.pth", *written, scores, write_actions(run.work, outcomes[0]))
        facts = run_facts(config, dataset, model, splits, outcomes[0].settings, files, seconds, probe=config.model_type)
        # The difference of two orientations' values is no orientation, the turn from one to the other is.
        orientations = actions.orientations if frame != "world" else ()
        result = run.publish(warned(regression_result(outcomes[0], facts, outcomes[1:], orientations), dataset, splits))
    return ProbeRun(folder, result, new=True)


def frame_of(config: RegressConfig) -> RelativeFrame | None:
    """The frame of relative motion; None for absolute actions. Raises UsageError for a frame without motion."""
    if config.action_mode == "relative":
        return config.relative_frame or "world"
    if config.relative_frame is not None:
        raise UsageError(f"--relative-frame {config.relative_frame}: it needs --action-mode relative.")
    return None


def warned(result: EvalResult, dataset: DatasetSpec, splits: Mapping[str, SplitLatents]) -> EvalResult:
    """A result with a warning of what its splits share."""
    return result.model_copy(update={"warnings": (*result.warnings, *shared_groups(dataset, splits))})


def regressor_inputs(
    config: RegressConfig, dataset: DatasetSpec, splits: Mapping[str, SplitLatents], targets: Mapping[str, Targets],
    seed: int,
) -> RegressorInputs:  # fmt: skip
    """What a regression probe of one seed is trained and scored on."""
    from lary.probes.chunks import EvaluatedSplit, RegressorInputs

    train = splits["train"]
    evaluated = {
        role: EvaluatedSplit(
            shown(split, config, seed, training=False),
            targets[role].values,
            columns(split),
            targets[role].mean,
            targets[role].std,
        )
        for role, split in splits.items()
        if role != "train"
    }
    values = targets["train"].values
    return RegressorInputs(
        train=shown(train, config, seed, training=True), train_targets=values[shuffled(len(values), config, seed)],
        train_groups=train.table.groups(), evaluated=evaluated, dims=dataset.actions.dims,
        groups=dataset.actions.groups,
    )  # fmt: skip


def train_actions(
    config: RegressConfig, preset: ProbePreset, inputs: RegressorInputs, seed: int, folder: Path,
    bar: Progress | None, place: Place, identity: str, title: str,
) -> RegressionOutcome:  # fmt: skip
    """Train the kind of regression probe that was asked for. Raises UsageError for options it doesn't have."""
    if config.model_type == "ridge":
        from lary.probes.ridge import fit_ridge

        options = {"epochs": config.epochs, "probe-batch-size": config.probe_batch_size}
        options["sampler-steps"] = config.sampler_steps
        for name, value in options.items():
            if value is not None:
                raise UsageError(f"--{name} {value}: the ridge probe is not trained; leave the option out.")
        return fit_ridge(inputs, preset, protocol=config.protocol, seed=seed, folder=folder, progress=bar)

    from lary.probes.regress import train_regressor

    with place.session(config, identity, seed, folder, title) as session:
        return train_regressor(
            inputs, preset, protocol=config.protocol, device=place.device, seed=seed, folder=folder, progress=bar,
            epochs=config.epochs, batch_size=config.probe_batch_size, probe=config.model_type,
            sampler_steps=config.sampler_steps, session=session,
        )  # fmt: skip


def epochs_of(config: RegressConfig, preset: ProbePreset) -> int:
    """How many epochs a network is trained for."""
    return config.epochs or (preset.dit if config.model_type == "dit" else preset.regressor).epochs


def run_folder(config: ProbeConfig, settings: Settings, dataset: DatasetSpec, model: ModelSpec) -> Path:
    """Where a run leaves its files."""
    tag = LatentsRef.of(config, dataset.validation).tag + variant_of(config)
    logs = settings.path("LARY_LOG_DIR")
    if isinstance(config, ClassifyConfig):
        return logs / "classification" / dataset.name / tag
    frame = frame_of(config)
    target = f"{config.action_mode}_{frame}" if frame == "local" else config.action_mode
    return logs / "regression" / "logs" / f"{dataset.name}_{dataset.stride}_{tag}_{config.model_type}_{target}"


def folder_of(folder: Path, seed: int, seeds: Sequence[int]) -> Path:
    """Where the probe of a seed leaves its weights: in the run's folder, or for further seeds in one below it."""
    return folder if seed == seeds[0] else folder / f"seed_{seed}"


def inputs_of(config: ProbeConfig, splits: Mapping[str, SplitLatents]) -> tuple[NamedDigest, ...]:
    """Digests of what decides a run: its options and, by role, the tables and latents that it reads."""
    found = [NamedDigest(name="options", digest=digest(json.dumps(deciding_options(config), sort_keys=True)))]
    for role, split in splits.items():
        found.append(NamedDigest(name=f"table {role}", digest=split.table.digest))
        found.append(NamedDigest(name=f"latents {role}", digest=str(split.store.get("key") or "")))
    return tuple(found)


def deciding_options(config: ProbeConfig) -> dict[str, Any]:
    """The options that decide the numbers of a run."""
    return {name: value for name, value in asdict(config).items() if name not in NOT_DECIDING and value is not None}


def is_of(result: EvalResult, config: ProbeConfig, splits: Mapping[str, SplitLatents]) -> bool:
    """Whether a result is that of this very run; one of version 0.1 names no inputs, and has a digest of its own."""
    if result.inputs:
        return result.identity == run_identity(inputs_of(config, splits))
    inputs = {role: [split.table.digest, split.store.get("key")] for role, split in splits.items()}
    return result.identity == digest(json.dumps([2, deciding_options(config), inputs], sort_keys=True))


def finished(folder: Path, config: ProbeConfig, splits: Mapping[str, SplitLatents]) -> EvalResult | None:
    """The result of this very run if it is done.

    Raises:
        UsageError: the folder holds the result of another run and ``--overwrite`` was not given.
    """
    settle(folder)
    file = folder / FILE_NAME
    if config.overwrite or not file.exists():
        return None
    result = read_result(file)
    if is_of(result, config, splits):
        log.info("%s is done; --overwrite does it again", file)
        return result
    raise UsageError(
        f"{file} holds the result of another run (preset {result.preset}, seed {result.seed}, of {result.created}) or "
        "of other latents. Pass --overwrite to replace it, or --lary-log-dir for another folder."
    )


def run_facts(
    config: ProbeConfig, dataset: DatasetSpec, model: ModelSpec, splits: Mapping[str, SplitLatents],
    resolved: Mapping[str, Any], files: tuple[str, ...], seconds: float, *, probe: str,
) -> RunFacts:  # fmt: skip
    """What is known about a run besides its outcome."""
    train, inputs = splits["train"], inputs_of(config, splits)
    store = train.store.get("identity", {})
    missing = sum(split.left_out for split in splits.values())
    notes = model.paper_differences if config.protocol == "paper" else ()
    target_units = getattr(dataset.target, "units", ())
    timings = {f"extract {split.table.split}": read_timing(split.folder)[1] for split in splits.values()}
    return RunFacts(
        status="incomplete" if missing else "complete",
        identity=run_identity(inputs), inputs=inputs,
        dataset=DatasetFacts(
            name=dataset.name, title=dataset.title, revision=dataset.revision,
            stride=dataset.stride, units=target_units, split_set=config.splits or "",
            tables={split.table.split: split.table.digest for split in splits.values()},
            splits={
                split.table.split: SplitSize(rows=len(split.table), groups=len(set(split.table.groups())))
                for split in splits.values()
            },
        ),
        model=ModelFacts(
            name=model.name, paradigm=model.paradigm, revision=str(train.store.get("weights_from") or ""),
            weights=store.get("weights", ""), dim=train.source.shape[-1], shape=train.source.shape,
            parameters_m=model.parameters_m,
        ),
        probe=probe, action_mode=getattr(config, "action_mode", None),
        relative_frame=frame_of(config) if isinstance(config, RegressConfig) else None,
        protocol=config.protocol, protocol_notes=notes,
        preset=config.probe_preset, seed=seeds_of(config)[0], seeds=seeds_of(config), control=config.control,
        project=config.project,
        options_given=json.loads(json.dumps(asdict(config), default=str)),
        options=json.loads(json.dumps(dict(resolved), default=str)),
        provenance=Provenance(**provenance()),
        timings={name: value for name, value in timings.items() if value} | {"probe": round(seconds, 3)},
        failures=missing, files=dict.fromkeys(files, ""),
    )  # fmt: skip


def summary(result: EvalResult) -> str:
    """A few lines for the terminal: both selections and the controls, with intervals."""
    setting = f"protocol {result.protocol}, preset {result.preset}"
    lines = [f"{result.task} of {result.dataset.name} with {result.label} ({setting})"]
    for name, selection in result.selections.items():
        mark = "  <- headline" if name == result.headline else ""
        lines.append(f"  {name:20} {result.primary} {selection.metrics[result.primary].text()}{mark}")
    for rule, control in result.controls.items():
        lines.append(f"  control {rule:12} {result.primary} {control.metrics[result.primary].text()}")
    lines += [f"  note: {note}" for note in result.protocol_notes]
    lines += [f"  warning: {warning}" for warning in result.warnings]
    lines += [f"  seed {row.seed}: {result.primary} {row.metrics[result.primary]:.4f}" for row in result.per_seed]
    return "\n".join(lines)
