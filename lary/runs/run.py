"""``lary run``: the latents that a probe needs, and the probe, in one go. Both parts go on where they were stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lary.configs import ClassifyConfig, ExtractConfig, RegressConfig, RunConfig
from lary.data.spec import DATASETS, DatasetSpec, LabelSpace
from lary.data.splits import find_table
from lary.runs.changed import FRAME_CONTROLS, extract_changed
from lary.runs.extract import extract
from lary.runs.inputs import check_options
from lary.runs.probe import ProbeRun, run_probe
from lary.runtime import log
from lary.settings import Settings
from lary.types import RANDOM, UsageError

PROBE_OPTIONS = (
    "model", "dataset", "splits", "gpus", "device", "protocol", "latent", "pool", "probe_preset", "seed", "seeds",
    "control", "project", "epochs", "probe_batch_size", "tracker", "resume", "overwrite",
)  # fmt: skip
REGRESSION_OPTIONS = ("model_type", "action_mode", "relative_frame", "sampler_steps")


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
