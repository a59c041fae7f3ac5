"""A probe run, from latents to its result.json and the published output files: one course for both kinds of probe."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lary.configs import ClassifyConfig, RegressConfig
from lary.data.spec import DATASETS, DatasetSpec
from lary.files import check_writable, digest
from lary.latents.ref import LatentsRef, SplitLatents
from lary.models.spec import ModelSpec
from lary.probes.presets import PRESETS
from lary.registry import load_plugin, loaded_plugins
from lary.results.folder import settle, writing
from lary.results.record import (
    FILE_NAME,
    DatasetFacts,
    EvalResult,
    ModelFacts,
    NamedDigest,
    Provenance,
    RunFacts,
    SplitFacts,
    read_result,
    run_identity,
)
from lary.runs.extract import read_timing
from lary.runs.inputs import (
    ProbeConfig,
    check_options,
    find_model,
    frame_of,
    open_splits,
    seeds_of,
    shared_groups,
)
from lary.runs.tasks import ProbeTask, task_of
from lary.runtime import log, pick_devices, progress, provenance
from lary.settings import Settings
from lary.types import Progress, UsageError

if TYPE_CHECKING:
    from lary.probes.session import Session, Team

NOT_DECIDING = ("device", "overwrite", "resume", "tracker")
"""Options that leave the numbers of a run alone, and so are no part of its identity."""

UNREGISTERED = "unregistered"
"""Paradigm of a model whose latents another program wrote, or whose plug-in isn't named again."""


@dataclass(frozen=True)
class ProbeRun:
    """A finished run: its folder, its result, and whether it was done just now."""

    folder: Path
    result: EvalResult
    new: bool


def classify(config: ClassifyConfig, settings: Settings) -> ProbeRun:
    """Train and score the attentive probe. Raises UsageError and LaryError as `run_probe` does."""
    return run_probe(config, settings)


def regress(config: RegressConfig, settings: Settings) -> ProbeRun:
    """Train and score the action probe. Raises UsageError and LaryError as `run_probe` does."""
    return run_probe(config, settings)


def run_probe(config: ProbeConfig, settings: Settings) -> ProbeRun:
    """Train and score the probe that the options are for; a run that is done is not done again.

    Raises:
        UsageError: contradicting options, missing latents or statistics, or a folder with the result of another run.
        LaryError: unreadable latents or actions, or a training that diverged.
    """
    from lary.probes.session import is_member, launch

    check_options(config)
    dataset = DATASETS.get(config.dataset)
    model = find_model(config, dataset, settings)
    task: ProbeTask[Any] = task_of(config, dataset, PRESETS.get(config.probe_preset))
    splits = open_splits(settings, dataset, config)
    folder, seeds = run_folder(config, settings, dataset), seeds_of(config)
    if (found := finished(folder, config, splits)) is not None:
        return ProbeRun(folder, found, new=False)
    devices = [] if is_member() else pick_devices(config.gpus, config.device, every=task.trained)
    if len(devices) > 1 and task.trained:
        log.info("one process on each of %s; --gpus 0 takes one device", ", ".join(devices))
        launch(_member, (config, settings, loaded_plugins()), devices)
        return ProbeRun(folder, read_result(folder / FILE_NAME), new=True)
    place, started = Place.of(devices), time.monotonic()
    identity = run_identity(inputs_of(config, splits))
    with writing(folder, identity, resume=config.resume, leads=place.team.leads) as run:
        task.prepare(splits, settings)
        total = len(seeds) * task.passes * len(splits["train"].table)
        outcomes = []
        with place.progress(total, f"probe {dataset.name} {config.model}") as bar:
            for seed in seeds:
                own = run.work if seed == seeds[0] else run.work / f"seed_{seed}"
                with place.session(config, identity, seed, own, folder.name, bar, task.trained) as session:
                    outcomes.append(task.train(splits, session))
        place.team.leave()
        seconds = time.monotonic() - started
        files = task.write(run, outcomes, splits)
        facts = run_facts(config, dataset, model, splits, outcomes[0].settings, files, seconds, task.probe)
        result = task.result(outcomes, facts)
        warnings = (*result.warnings, *shared_groups(dataset, splits), *unregistered(config.model, model))
        result = run.publish(result.model_copy(update={"warnings": warnings}))
    return ProbeRun(folder, result, new=True)


def _member(config: ProbeConfig, settings: Settings, plugins: tuple[Path, ...]) -> None:
    """Work of each process of a run on several devices; the first one writes the result."""
    for plugin in plugins:
        load_plugin(plugin)
    run_probe(config, settings)


@dataclass(frozen=True)
class Place:
    """The process that a run happens in: its device, and the team that it belongs to."""

    device: str
    team: Team

    @classmethod
    def of(cls, devices: Sequence[str]) -> Place:
        """This process's, on the one device that was chosen, or as a member of a team."""
        from lary.probes.session import ALONE, join

        if devices:
            return cls(devices[0], ALONE)
        team, device = join()
        return cls(device, team)

    @contextmanager
    def progress(self, total: int, title: str) -> Iterator[Progress | None]:
        """A progress bar, in the leading process alone."""
        with progress(total, title) if self.team.leads else nullcontext() as bar:
            yield bar

    @contextmanager
    def session(self, config: ProbeConfig, identity: str, seed: int, folder: Path, title: str, bar: Progress | None,
                tracked: bool) -> Iterator[Session]:  # fmt: skip
        """Surroundings of the training of one seed, whose files go to `folder`; trackers show it as `title`.

        Raises:
            UsageError: the library of ``--tracker`` isn't installed.
            LaryError: the folder can't be written to.
        """
        from lary.probes.session import Session, open_tracker

        options = {name: value for name, value in asdict(config).items() if value is not None} | {"seed": seed}
        tracker = None
        if self.team.leads:
            check_writable(folder)
            name = config.tracker if tracked else "none"
            tracker = open_tracker(name, folder, f"{config.dataset} {title} seed {seed}", options)
        try:
            yield Session(
                protocol=config.protocol, seed=seed, device=self.device, folder=folder, progress=bar,
                identity=identity, resume=config.resume, tracker=tracker, team=self.team,
            )  # fmt: skip
        finally:
            if tracker is not None:
                tracker.finish()


def run_folder(config: ProbeConfig, settings: Settings, dataset: DatasetSpec) -> Path:
    """The folder of a run, by the model and all that sets the run apart: ``dinov2@by-episode@project16``."""
    parts = [config.splits, config.control, None if config.project is None else f"project{config.project}"]
    tag = "@".join([LatentsRef.of(config, "").tag, *filter(None, parts)])
    root = settings.path("LARY_LOG_DIR")
    if isinstance(config, ClassifyConfig):
        return root / "classification" / dataset.name / tag
    frame = frame_of(config)
    target = f"{config.action_mode}_{frame}" if frame == "local" else config.action_mode
    return root / "regression" / "logs" / f"{dataset.name}_{dataset.stride}_{tag}_{config.model_type}_{target}"


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
    config: ProbeConfig, dataset: DatasetSpec, model: ModelSpec | None, splits: Mapping[str, SplitLatents],
    resolved: Mapping[str, Any], files: Sequence[str], seconds: float, probe: str,
) -> RunFacts:  # fmt: skip
    """What is known about a run besides its outcome."""
    train, inputs, seeds = splits["train"], inputs_of(config, splits), seeds_of(config)
    missing = sum(split.left_out for split in splits.values())
    timings = {f"extract {split.table.split}": read_timing(split.folder)[1] for split in splits.values()}
    return RunFacts(
        status="incomplete" if missing else "complete",
        identity=run_identity(inputs), inputs=inputs,
        dataset=DatasetFacts(
            name=dataset.name, title=dataset.title, revision=dataset.revision, stride=dataset.stride,
            units=getattr(dataset.target, "units", ()), split_set=config.splits or "",
            tables={split.table.split: split.table.digest for split in splits.values()},
            splits={
                split.table.split: SplitFacts(rows=len(split.table), groups=len(set(split.table.groups())))
                for split in splits.values()
            },
        ),
        model=ModelFacts(
            name=config.model, paradigm=model.paradigm if model else UNREGISTERED,
            revision=str(train.store.get("weights_from") or ""),
            weights=train.store.get("identity", {}).get("weights", ""), dim=train.source.shape[-1],
            shape=train.source.shape, parameters_m=model.parameters_m if model else None,
        ),
        probe=probe, action_mode=getattr(config, "action_mode", None), relative_frame=frame_of(config),
        protocol=config.protocol,
        protocol_notes=model.paper_differences if model and config.protocol == "paper" else (),
        preset=config.probe_preset, seed=seeds[0], seeds=seeds, control=config.control, project=config.project,
        options_given=json.loads(json.dumps(asdict(config), default=str)),
        options=json.loads(json.dumps(dict(resolved), default=str)),
        provenance=Provenance(**provenance()),
        timings={name: value for name, value in timings.items() if value} | {"probe": round(seconds, 3)},
        failures=missing, files=dict.fromkeys(files, ""),
    )  # fmt: skip


def unregistered(name: str, model: ModelSpec | None) -> tuple[str, ...]:
    """A warning about a model without a record."""
    return () if model else (f"The model '{name}' is unregistered: dimension and shape are those of its files.",)


def summary(result: EvalResult) -> str:
    """A few lines for the terminal: every selection on each split, and the controls, with intervals."""
    setting = f"protocol {result.protocol}, preset {result.preset}"
    lines = [f"{result.task} of {result.dataset.name} with {result.label} ({setting})"]
    for name, selection in result.selections.items():
        mark = "  <- headline" if name == result.headline else ""
        lines.append(f"  {name:20} {result.primary} {selection.metrics[result.primary].text()}{mark}")
        if (unseen := selection.metrics.get(f"un{result.primary}")) is not None:
            lines.append(f"  {'':20} un{result.primary} {unseen.text()}")
    for rule, control in result.controls.items():
        lines.append(f"  control {rule:12} {result.primary} {control.metrics[result.primary].text()}")
    lines += [f"  note: {note}" for note in result.protocol_notes]
    lines += [f"  warning: {warning}" for warning in result.warnings]
    lines += [f"  seed {row.seed}: {result.primary} {row.metrics[result.primary]:.4f}" for row in result.per_seed]
    return "\n".join(lines)
