"""A probe run, from latents to its result.json and the published output files."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lary.arrays import tokens_checksum
from lary.configs import ClassifyConfig, TrackerName
from lary.data.spec import DATASETS
from lary.files import digest
from lary.latents.ref import LatentsRef
from lary.latents.store import read_manifest, read_media
from lary.registry import load_plugin, loaded_plugins
from lary.results.folder import choice_of, publish, settle, writing
from lary.results.record import ALONE, FILE_NAME, EvalResult, NamedDigest, read_result, run_identity
from lary.runs.extract import read_timing
from lary.runs.tasks import ActionTask, ClassTask, ProbeConfig, frame_of, seeds_of, shared_groups
from lary.runtime import in_threads, log, pick_devices, progress, provenance, within_memory
from lary.settings import FOLDERS, Settings
from lary.types import JsonDict, LaryError, UsageError

if TYPE_CHECKING:
    from lary.probes.team import Team

Task = ClassTask | ActionTask

# Options that leave the numbers of a run alone.
NOT_DECIDING = ("device", "overwrite", "resume", "tracker")
SMALLER = "lower --probe-batch-size, or pool the tokens (--pool mean)"
LATER = ("classes", "media", "statistics", "targets", "tokens")
"""Inputs that results of earlier versions don't name."""


@dataclass(frozen=True)
class ProbeRun:
    """A finished run, and whether it was done just now."""

    folder: Path
    result: EvalResult
    new: bool


def run_probe(config: ProbeConfig, settings: Settings) -> ProbeRun:
    """Train and score the probe of the options, unless that is done.

    Raises UsageError for contradicting options, missing latents or another result; LaryError for
    unreadable files, or a training that diverged.
    """
    from lary.probes.team import Team, launch

    task, folder = task_of(config, settings), run_folder(config, settings)
    if (found := finished(folder, task)) is not None:
        return ProbeRun(folder, found, new=False)
    devices = pick_devices(config.gpus, config.device, every=task.kind != "ridge")
    if len(devices) > 1 and task.kind != "ridge":
        log.info("one process on each of %s; --gpus 0 takes one device", ", ".join(devices))
        launch(run_member, (config, settings, loaded_plugins()), devices)
    else:
        train_and_write(task, Team(), devices[0])
    return ProbeRun(folder, read_result(folder / FILE_NAME), new=True)


classify = regress = run_probe


def run_member(config: ProbeConfig, settings: Settings, plugins: tuple[Path, ...], team: Team, device: str) -> None:
    """Work of each process of several; the first writes the result."""
    for plugin in plugins:
        load_plugin(plugin)
    train_and_write(task_of(config, settings), team, device)


def task_of(config: ProbeConfig, settings: Settings) -> Task:
    if isinstance(config, ClassifyConfig):
        return ClassTask(config, settings)
    return ActionTask(config, settings)


def run_folder(config: ProbeConfig, settings: Settings) -> Path:
    """The folder of a run, such as ``dinov2@by-episode@project16``."""
    project = None if config.project is None else f"project{config.project}"
    folds = None if config.folds is None else f"folds{config.folds}"
    parts = filter(None, [config.splits, config.control, project, folds])
    tag = "@".join([LatentsRef.of(config, "").tag, *parts])
    root, dataset = settings.path("LARY_LOG_DIR"), DATASETS.get(config.dataset)
    if isinstance(config, ClassifyConfig):
        return root / "classification" / dataset.name / tag
    local = "_local" if frame_of(config) == "local" else ""
    target = f"{config.model_type}_{config.action_mode}{local}"
    return root / "regression" / "logs" / f"{dataset.name}_{dataset.stride}_{tag}_{target}"


def deciding_options(config: ProbeConfig) -> JsonDict:
    """The options that decide the numbers of a run."""
    given = asdict(config).items()
    return {name: value for name, value in given if value is not None and name not in NOT_DECIDING}


def probe_command(config: ProbeConfig, settings: Settings) -> list[str]:
    """The command of a probe alone, with its folders and plug-ins."""
    words = ["lary", "classify" if isinstance(config, ClassifyConfig) else "regress"]
    own, folders = vars(config), (settings.items[name] for name in FOLDERS)
    found = [(each.name, own[each.name]) for each in fields(config) if own[each.name] != each.default]
    found += [(each.name.lower(), each.value) for each in folders if each.value and each.origin != "default"]
    for name, value in (*found, *(("plugin", path) for path in loaded_plugins())):
        words += [] if name in NOT_DECIDING[1:] else [f"--{name.replace('_', '-')}", str(value)]
    return words


def inputs_of(task: Task) -> tuple[NamedDigest, ...]:
    """Digests of what decides a run."""
    task.read_targets()
    options = json.dumps(deciding_options(task.config), sort_keys=True)
    found = {"options": digest(options)}
    for role, split in task.splits.items():
        found[f"table {role}"] = split.table.digest
        key = split.store.get("key") and read_manifest(split.folder).get("key")
        found[f"latents {role}"] = str(key or "")
        if not key:  # another program's
            found[f"tokens {role}"] = digest(*in_threads(tokens_checksum, split.store.get("files", ()), 8, batch=64))
        if media := read_media(split.folder):
            found[f"media {role}"] = digest(*sorted(f"{facts[:33]} {path}" for path, facts in media.items()))
    return tuple(NamedDigest(name=name, digest=own) for name, own in (found | task.digests).items())


def finished(folder: Path, task: Task) -> EvalResult | None:
    """The result of a run that is done. Raises UsageError for one of other inputs."""
    settle(folder)
    file = folder / FILE_NAME
    if task.config.overwrite or not file.exists():
        return None
    result = read_result(file)
    found, known = ({each.name: each.digest for each in inputs} for inputs in (inputs_of(task), result.inputs))
    if not known:  # one of version 0.1 names no inputs, and has a digest of its own
        splits = task.splits.items()
        read = {role: [split.table.digest, split.store.get("key")] for role, split in splits}
        if result.identity == digest(json.dumps([2, deciding_options(task.config), read], sort_keys=True)):
            known = {name: own for name, own in found.items() if not name.startswith(LATER)}
    changed, unknown = [], []
    for name in found | known:
        kind, _, role = name.partition(" ")
        text = f"{kind} of {task.splits[role].table.split}" if role in task.splits else name
        if kind in LATER and not (name in found and name in known):
            unknown.append(text)
        elif found.get(name) != known.get(name):
            changed.append(text)
    if changed:
        raise UsageError(
            f"{file} holds the result of another run (preset {result.preset}, --seed{'s' * (len(result.seeds) > 1)} "
            f"{','.join(map(str, result.seeds))}, of {result.created}); since then, "
            f"there are other {', '.join(changed)}. Pass --overwrite to replace it, or another --lary-log-dir."
        )
    if unknown:
        log.warning("%s names no digest of: %s; changes of them since go unnoticed", file, ", ".join(unknown))
    if (choice := choice_of(result)) != "averaged":
        log.warning("%s: its epoch was %s, by an earlier rule; --overwrite makes it anew", file, choice)
    log.info("%s is done; --overwrite does it again", file)
    return result


def train_and_write(task: Task, team: Team, device: str) -> None:
    """Train the probes of all seeds on one device; the leading process writes the result."""
    import torch

    from lary.probes.training import WAITING, Session, tracking

    started = time.monotonic()
    config, seeds, inputs = task.config, seeds_of(task.config), inputs_of(task)
    identity, folder = run_identity(inputs), run_folder(config, task.settings)
    tracker: TrackerName = config.tracker if team.leads and task.kind != "ridge" else "none"
    with writing(folder, identity, lambda: finished(folder, task), resume=config.resume, leads=team.leads) as work:
        rows = len(task.splits["train"].table)
        if config.folds:
            rows = (config.folds - 1) * (rows + len(task.splits["seen"].table))
        total = len(seeds) * task.probe.epochs * rows
        outcomes: list[Any] = []
        spent: dict[str, list[float]] = defaultdict(list)
        title = f"probe {config.dataset} {config.model}"
        with progress(total, title) if team.leads else nullcontext() as bar:
            for seed in seeds:
                own = work if seed == seeds[0] else work / f"seed_{seed}"
                title = f"{config.dataset} {folder.name} seed {seed}"
                tracks = tracking(tracker, own, title, vars(config) | {"seed": seed})
                with within_memory(device, SMALLER), tracks as tracked:
                    session = Session(
                        protocol=config.protocol,
                        preset=config.probe_preset,
                        seed=seed,
                        device=device,
                        folder=own,
                        progress=bar,
                        identity=identity,
                        tracker=tracked,
                        team=team,
                        spent=spent,
                        precision=config.precision,
                    )
                    outcomes.append(task.train(session))
        if not team.leads:
            return
        devices = pick_devices(config.gpus, config.device, every=task.kind != "ridge")[: team.size]
        facts = run_facts(task, inputs, devices) | {"options": outcomes[0].settings}
        facts["provenance"] |= {"threads": torch.get_num_threads(), "processes": team.size, "devices": devices}
        whole, waited = time.monotonic() - started, sum(spent[WAITING])
        log.info("waited for latents in %.1f of %.1f s (%.0f %%)", waited, whole, 100 * waited / whole)
        facts["timings"] |= {"probe": round(whole, 3), WAITING: round(waited, 3)}
        if "precision" in task.splits["train"].store:
            facts["options"]["encoder_precision"] = task.splits["train"].store["precision"]
        if inputs_of(task) != inputs:
            raise LaryError("The latents changed while the probe read them: start it again.")
        result = task.write(work, outcomes, facts)
        warnings = [*result.warnings, *([] if config.folds else shared_groups(task.dataset, task.splits))]
        if task.model is None:
            warnings.append(f"The model '{config.model}' is unregistered: dimension and shape are those of its files.")
        publish(work, result.model_copy(update={"warnings": tuple(warnings)}))


def run_facts(task: Task, inputs: tuple[NamedDigest, ...], devices: Sequence[str]) -> JsonDict:
    """The fields of `RunFacts` that are known without an outcome."""
    config, data, model, train = task.config, task.dataset, task.model, task.splits["train"]
    splits = {split.table.split: split for split in task.splits.values()}
    tables, sizes, timings = {}, {}, {}
    for name, split in splits.items():
        tables[name] = split.table.digest
        sizes[name] = {"rows": len(split.table), "groups": len(set(split.table.groups()))}
        if seconds := read_timing(split.folder)[1]:
            timings[f"extract {name}"] = seconds
    missing = sum(split.left_out for split in splits.values())
    units, shape = getattr(data.target, "units", ()), train.source.shape
    dataset = {name: getattr(data, name) for name in ("name", "title", "revision", "stride")}
    dataset |= {"units": units, "split_set": config.splits or "", "tables": tables, "splits": sizes}
    dataset["unit"] = task.splits["seen"].table.unit
    dataset["samples"] = {name: digest(*split.table.ids) for name, split in splits.items()}
    known = all(data.digests.get(name) == own for name, own in dataset["samples"].items())
    dataset["revision_source"] = "verified" if known else "declared"
    options = train.store.get("record", {}).get("options", {})
    weights = {
        "name": config.name or config.model,
        "dim": shape[-1],
        "shape": shape,
        "revision": str(train.store.get("weights_from") or ""),
        "weights": train.store.get("identity", {}).get("weights", ""),
        # Of latents that another program wrote, or whose plug-in isn't named again.
        "paradigm": model.paradigm if model else "unregistered",
        "parameters_m": (model and model.parameters_m) or train.store.get("parameters_m"),
        "training": options["trained"] | {"sizes": options["network"]} if "trained" in options else {},
    }
    same = ("protocol", "control", "project", "folds", "action_mode")
    return {name: getattr(config, name, None) for name in same} | {
        "status": "incomplete" if missing else "complete",
        "failures": missing,
        "identity": run_identity(inputs),
        "inputs": inputs,
        "dataset": dataset,
        "model": weights,
        "probe": task.kind,
        "preset": config.probe_preset,
        "relative_frame": frame_of(config),
        "protocol_notes": protocol_notes(task),
        "seed": seeds_of(config)[0],
        "seeds": seeds_of(config),
        "options_given": asdict(config),
        "provenance": provenance(devices) | {"probe_command": probe_command(config, task.settings)},
        "timings": timings,
    }


PICKED = {"attentive": "the head, in the last epoch,", "ridge": "the penalty"}
"""What a probe picks on the reported split; other kinds pick their epoch."""


def protocol_notes(task: Task) -> tuple[str, ...]:
    """What ``paper`` changes, and where the published code differs from it."""
    if task.config.protocol != "paper":
        return ()
    picked = PICKED.get(task.kind, "the epoch")
    notes = [f"{picked} is picked on the reported split itself, so that the number is optimistic"]
    if task.kind != "ridge":
        notes.append(
            "the published training has batches of 256 in each of eight processes (2,048 together) and drops the last "
            "partial batch in training and validation; here a batch has "
            f"{task.probe.batch_size} rows over all devices, and every row counts"
        )
    return (*(task.model.paper_differences if task.model else ()), *notes)


def summary(result: EvalResult) -> str:
    """All selections and controls with intervals, as lines of text."""
    primary, setting = result.primary, f"protocol {result.protocol}, preset {result.preset}"
    lines = [f"{result.task} of {result.dataset.name} with {result.label} ({setting})"]
    for name, selection in result.selections.items():
        mark = "  <- headline" if name == result.headline else ""
        lines.append(f"  {name:20} {primary} {selection.metrics[primary].text()}{mark}")
        if (unseen := selection.metrics.get(f"un{primary}")) is not None:
            lines.append(f"  {'':20} un{primary} {unseen.text()}")
    for rule, control in result.controls.items():
        lines.append(f"  control {rule:12} {primary} {control.metrics[primary].text()}")
    lines += [f"  note: {note}" for note in result.protocol_notes]
    lines += [f"  note: {ALONE}"] if len(result.seeds) < 2 else []
    lines += [f"  warning: {warning}" for warning in result.warnings]
    lines += [f"  seed {row.seed}: {primary} {row.metrics[primary]:.4f}" for row in result.per_seed]
    return "\n".join(lines)
