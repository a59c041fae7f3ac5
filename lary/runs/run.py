"""``lary run``: the latents that a probe needs, and the probe, in one go. Both parts resume where they were stopped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from lary.configs import ActionOptions, ClassifyConfig, ExtractConfig, RegressConfig, RunConfig
from lary.data.spec import DATASETS, DatasetSpec, LabelSpace
from lary.data.splits import find_table
from lary.runs.changed import FRAME_CONTROLS, extract_changed
from lary.runs.extract import extract
from lary.runs.inputs import ProbeConfig, check_options
from lary.runs.probe import ProbeRun, run_probe
from lary.runtime import log
from lary.settings import Settings
from lary.types import RANDOM, UsageError

RENAMED = {"probe_precision": "precision"}
"""Options of a probe that the extraction has another meaning for."""


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
    probe_config(config, dataset)
    return run_splits(config, roles_of(config, dataset, settings).values(), settings, plugins)


def run_splits(
    config: RunConfig, splits: Iterable[str], settings: Settings, plugins: tuple[Path, ...] = (),
    *, replace_latents: bool = True,
) -> RunReport:  # fmt: skip
    """Extract these splits and run the probe. Raises UsageError and LaryError as `run` does.

    Without `replace_latents`, ``--overwrite`` is for results alone.
    """
    probe = probe_config(config, DATASETS.get(config.dataset))
    reports = []
    for split in splits:
        asked = extract_config(config, split)
        asked = replace(asked, overwrite=asked.overwrite and replace_latents)
        reports.append(extract(asked, settings, plugins=plugins))
        if probe.control in FRAME_CONTROLS and (changed := extract_changed(asked, probe.control, settings, plugins)):
            reports.append(changed)
    found = run_probe(probe, settings)
    failures = sum(len(report.failures) for report in reports)
    return RunReport(found, sum(report.extracted for report in reports), max(failures, found.result.failures))


def probe_config(config: RunConfig, dataset: DatasetSpec) -> ProbeConfig:
    """The probe's part of the options. Raises UsageError for an option of the other kind of probe."""
    kind = ClassifyConfig if isinstance(dataset.target, LabelSpace) else RegressConfig
    given: dict[str, Any] = {name: value for name, value in asdict(config).items() if value is not None}
    given["pool"] = None if config.pool == "none" else config.pool
    given["weights"] = RANDOM if config.weights == RANDOM else None
    for own in ("precision", "mode", "stride"):  # the extraction checks them
        given.pop(own, None)
    if kind is RegressConfig and "probe_precision" in given:
        raise UsageError(f"--probe-precision: data set '{dataset.name}' is one of actions; leave the option out.")
    changed = [name for name, default in vars(ActionOptions()).items() if given.get(name) not in (None, default)]
    if kind is ClassifyConfig and changed:
        raise UsageError(
            f"--{changed[0].replace('_', '-')}: data set '{dataset.name}' is one of classes; leave the option out."
        )
    found = kind(**_of(kind, {RENAMED.get(name, name): value for name, value in given.items()}))
    check_options(found)
    return found


def extract_config(config: RunConfig, split: str) -> ExtractConfig:
    """The extraction's part of the options."""
    return ExtractConfig(**_of(ExtractConfig, asdict(config)) | {"split": split, "seed": config.model_seed})


def _of(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are fields of a class of options."""
    return {field.name: values[field.name] for field in fields(kind) if field.name in values}


def roles_of(config: RunConfig, dataset: DatasetSpec, settings: Settings) -> dict[str, str]:
    """Splits by role: ``train``, ``seen``, and ``unseen`` where its table is there."""
    roles = dataset.roles(config.splits)
    if "unseen" in roles:
        try:
            find_table(dataset, roles["unseen"], settings.path("LARY_ROOT"))
        except UsageError:
            log.info("%s has no table of %s here: scored without it", dataset.name, roles.pop("unseen"))
    return roles
