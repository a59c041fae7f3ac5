"""``lary run``: the latents that a probe needs, and the probe, in one go. Both parts go on where they were stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lary.configs import ClassifyConfig, ExtractConfig, RegressConfig, RunConfig
from lary.data.samples import find_table
from lary.data.spec import DATASETS, DatasetSpec, LabelSpace
from lary.files import write_failures
from lary.latents.ref import SplitLatents
from lary.latents.store import check_format
from lary.models.spec import MODELS
from lary.runs.changed import FRAME_CONTROLS, extract_changed
from lary.runs.extract import extract, prepare_run
from lary.runs.inputs import check_options, check_steps
from lary.runs.probe import ProbeRun, classify, finished, regress, run_folder
from lary.runtime import log, pick_devices
from lary.settings import Settings
from lary.types import RANDOM, Failure, LaryError, UsageError

FRAME_FAILURES = "failures_frames.csv"
"""Of a run without a store; with one they stand beside the latents."""

PROBE_OPTIONS = (
    "model", "dataset", "splits", "gpus", "protocol", "latent", "pool", "probe_preset", "seed", "seeds", "control",
    "project", "epochs", "probe_batch_size", "tracker", "resume", "overwrite",
)  # fmt: skip
REGRESSION_OPTIONS = ("model_type", "action_mode", "relative_frame", "sampler_steps")
KEPT_SHARE = 0.25
"""Of memory, for the latents of all splits of a run without a store."""


@dataclass(frozen=True)
class RunReport:
    """What ``lary run`` did: the probe's run, samples extracted now, rows without latents or actions."""

    probe: ProbeRun
    extracted: int
    failures: int


def run(config: RunConfig, settings: Settings, *, plugins: tuple[Path, ...] = ()) -> RunReport:
    """Extract what is missing of every split and run the probe, unless that is done.

    Raises:
        UsageError: unknown names, contradicting options, folders that hold other latents or another result.
        LaryError: a failed extraction or training.
    """
    dataset = DATASETS.get(config.dataset)
    probe = probe_config(config, dataset)
    roles = roles_of(config, dataset, settings)
    if config.no_store:
        return run_without_store(config, settings, dataset, probe, roles, plugins)
    extracted = failures = 0
    for split in roles.values():
        done = extract(extract_config(config, split), settings, plugins=plugins)
        extracted += done.extracted
        failures += len(done.failures)
        if probe.control in FRAME_CONTROLS:
            changed = extract_changed(extract_config(config, split), probe.control, settings, plugins)
            extracted += changed.extracted if changed else 0
            failures += len(changed.failures) if changed else 0
    found = run_probe(probe, settings)
    return RunReport(found, extracted, max(failures, found.result.failures))


def run_probe(
    config: ClassifyConfig | RegressConfig, settings: Settings, opened: Mapping[str, SplitLatents] | None = None
) -> ProbeRun:
    """The probe that a configuration is for."""
    if isinstance(config, ClassifyConfig):
        return classify(config, settings, opened)
    return regress(config, settings, opened)


def config_for(dataset: DatasetSpec, options: Mapping[str, Any]) -> ClassifyConfig | RegressConfig:
    """The configuration of the probe that a data set's target asks for; None leaves an option at its default.

    Raises:
        UsageError: an option of the regression probes for a data set of classes, or one that no data can make right.
    """
    found = config_of(dataset, {name: value for name, value in options.items() if value is not None})
    check_options(found)
    return found


def config_of(dataset: DatasetSpec, given: Mapping[str, Any]) -> ClassifyConfig | RegressConfig:
    """The configuration of the probe that a target asks for. Raises UsageError for an option of the other kind."""
    if not isinstance(dataset.target, LabelSpace):
        if "precision" in given:
            raise UsageError(f"--probe-precision: data set '{dataset.name}' is one of actions; leave the option out.")
        return RegressConfig(**given)
    if odd := [name for name in REGRESSION_OPTIONS if name in given]:
        raise UsageError(
            f"--{odd[0].replace('_', '-')}: data set '{dataset.name}' is one of classes; leave the option out."
        )
    return ClassifyConfig(**given)


def probe_config(config: RunConfig, dataset: DatasetSpec) -> ClassifyConfig | RegressConfig:
    """The probe's part of the options. Raises UsageError."""
    options = {name: getattr(config, name) for name in (*PROBE_OPTIONS, *REGRESSION_OPTIONS)}
    options["pool"] = None if config.pool == "none" else config.pool
    options["precision"] = config.probe_precision
    options["weights"] = RANDOM if config.weights == RANDOM else None
    if config.no_store and config.gpus is not None:
        options["gpus"] = config.gpus.split(",")[0]
    return config_for(dataset, options)


def extract_config(config: RunConfig, split: str) -> ExtractConfig:
    """The extraction's part of the options."""
    own = {field.name for field in fields(ExtractConfig)} & {field.name for field in fields(RunConfig)} - {"seed"}
    return ExtractConfig(**{name: getattr(config, name) for name in own}, split=split, seed=config.model_seed)


def roles_of(config: RunConfig, dataset: DatasetSpec, settings: Settings) -> dict[str, str]:
    """Splits by role: ``train``, ``seen``, and ``unseen`` where its table is there."""
    roles = dataset.roles(config.splits)
    if "unseen" in roles:
        try:
            find_table(dataset, roles["unseen"], settings.path("LARY_ROOT"))
        except UsageError:
            log.info("%s has no table of %s here: scored without it", dataset.name, roles.pop("unseen"))
    return roles


def run_without_store(
    config: RunConfig, settings: Settings, dataset: DatasetSpec, probe: ClassifyConfig | RegressConfig,
    roles: Mapping[str, str], plugins: Sequence[Path],
) -> RunReport:  # fmt: skip
    """Train the probe on latents that are encoded as they are needed; no file of latents is written.

    Raises:
        UsageError, LaryError: as `run`.
    """
    from lary.probes.fit import memory_bytes
    from lary.runs.on_demand import announced, open_frames

    if config.engine != "local" or len(pick_devices(config.gpus, config.device)) > 1:
        raise UsageError("--no-store: latents are encoded on the device that trains; name one device of this machine.")
    check_format("npz", config.dtype)
    model = MODELS.get(config.model)
    folder = run_folder(probe, settings, dataset, model)
    runs = {role: prepare_run(extract_config(config, split), settings, tuple(plugins)) for role, split in roles.items()}
    if (found := finished(folder, probe, {role: announced(each) for role, each in runs.items()})) is not None:
        return RunReport(ProbeRun(folder, found, new=False), 0, found.failures)
    samples = sum(len(each.table) for each in runs.values())
    splits: dict[str, SplitLatents] = {}
    failures: list[Failure] = []
    for role, each in runs.items():
        room = int(KEPT_SHARE * memory_bytes() * len(each.table) / samples)
        splits[role], failed = open_frames(each, room)
        failures += failed
    if len({split.source.shape for split in splits.values()}) > 1:
        raise LaryError(f"The splits of '{dataset.name}' have latents of different shapes: check their tables.")
    if probe.control in FRAME_CONTROLS:
        for split in splits.values():
            check_steps(split, probe)
    done = run_probe(probe, settings, splits)
    if failures:
        write_failures(done.folder / FRAME_FAILURES, failures)
        log.error("%d rows could not be read: see %s", len(failures), done.folder / FRAME_FAILURES)
    encoded = sum(len(split.table) for split in splits.values())
    return RunReport(done, encoded, max(len(failures), done.result.failures))
