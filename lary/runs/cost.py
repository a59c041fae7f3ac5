"""Dry runs: seconds by stage and bytes of extractions and probes, from a few rows and steps on this machine.

What grows with rows, batches or epochs is scaled; all else, such as imports
and figures, counts as it was measured.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from lary.configs import ExtractConfig, RunConfig
from lary.latents.pipeline import MOST_WORKERS, KeptEncoder, encode_units, plan_units
from lary.latents.ref import LatentsRef, SplitLatents, find_latent_table, open_latents
from lary.registry import aligned
from lary.runs.extract import CHANGED, FRAME_CONTROLS, Run, missing_rows, open_run, prepare_run, separate
from lary.runtime import log, memory_bytes, pick_devices
from lary.settings import Setting, Settings
from lary.types import LaryError

if TYPE_CHECKING:  # else an extraction that is done would wait for the imports of probes
    from lary.lam.configs import TrainLamConfig
    from lary.runs.tasks import ProbeConfig

Cost = dict[str, float]  # seconds by stage, and bytes
STAGES = ("start", "media", "encoding", "latents", "training", "evaluation", "scoring")
"""`media` is the wait for decoded frames, `encoding` all else of an extraction."""
BYTES = ("written", "read")
SECONDS = 5.0
"""Length of a measurement."""
PACE_SECONDS = 1.0
"""Length of the measurement before it."""
MOST_ROWS = 4096
FEW = 8
"""Rows of a first batch on a CPU."""
LONGEST_BATCH = 30.0
"""Most seconds of a whole batch there."""
RIDGE_WORK = 2e10
"""Most work of a fit of the ridge."""
PACE_STEPS = 2
"""Fewest steps of a training."""


@dataclass(frozen=True)
class Trial:
    """A split with a few rows extracted: what all missing rows cost, and the latents of the few."""

    run: Run
    missing: int
    cost: Cost
    latents: SplitLatents | None
    measured: str = ""
    failures: Sequence[str] = ()


def evenly(rows: Sequence[int], most: int) -> list[int]:
    """Some of the rows, evenly."""
    return [rows[int(at)] for at in np.linspace(0, len(rows) - 1, max(1, min(len(rows), most)))]


def added_up(costs: Iterable[Cost]) -> Cost:
    found = dict.fromkeys((*STAGES, *BYTES), 0.0)
    for cost in costs:
        found |= {name: found[name] + value for name, value in cost.items()}
    return found


def encode_some(run: Run, rows: Sequence[int], size: int, together: int, settings: Settings) -> tuple[Any, ...]:
    """Extract for some seconds; returns rows, seconds, waits, seconds of a later row, failures."""
    table, waits, ends, failures = run.table.take(rows), list[float](), list[tuple[float, int]](), list[str]()
    store = open_run(replace(run, folder=run.ref.folder(settings)))
    store = replace(store, unit_rows=min(store.unit_rows, ceil(together / size) * size))
    job = replace(run.job, config=replace(run.job.config, batch_size=size), store=store, processes=len(run.devices))
    most, begun = PACE_SECONDS if together == size else SECONDS, time.monotonic()
    for report in encode_units(
        *(job, table, plan_units(range(len(rows)), store.unit_rows), run.encoder.device, run.encoder),
        waits=waits,
        advance=lambda count: ends.append((time.monotonic(), count)),
        stopped=lambda: time.monotonic() - ends[0][0] > most,
    ):
        failures += [f"row {rows[each.row or 0] + 1}: {each.reason}" for each in report.failures]
    seconds, count = time.monotonic() - begun, sum(each for _, each in ends)
    store.write_table(table, run.ref.table(settings), run.ref.latent_root(settings), ())
    later = count - ends[0][1]
    return count, seconds, sum(waits), (ends[-1][0] - ends[0][0]) / later if later else seconds / count, failures


def try_extraction(config: ExtractConfig, settings: Settings, folder: Path, held: KeptEncoder) -> Trial:
    """Extract a few missing rows of a split into a folder. Raises UsageError and LaryError."""
    begun = time.monotonic()
    run = prepare_run(config, settings, held)
    missing = missing_rows(run)
    cost: Cost = {"start": time.monotonic() - begun}
    if not missing:
        return Trial(run, 0, cost, None)
    own, other = (
        Settings(settings.items | dict.fromkeys(("LARY_ROOT", "LARY_LA_DIR"), Setting("", str(place), "")), place)
        for place in (folder, folder / "first")
    )
    # A CPU encodes row by row; an accelerator's batches are always whole.
    singly = run.encoder.device == "cpu" and not config.cpu_batch
    size = 1 if singly else config.batch_size
    warm = evenly(missing, 2 * MOST_WORKERS * size)
    first, first_seconds, _, pace, _ = encode_some(run, warm, size, size, other)
    count = min(MOST_ROWS, max(4 * size, int(SECONDS / pace)))
    size = config.batch_size if count >= 4 * config.batch_size else size
    count, seconds, waited, _, failures = encode_some(run, evenly(missing, count), size, count, own)
    # Beyond its rows, the first pass starts readers and checks the encoder.
    cost["start"] += max(0.0, first_seconds - first * seconds / count)
    todo = len(missing) if singly else config.batch_size * len({row // config.batch_size for row in missing})
    share = todo / count / len(run.devices)
    written = sum(file.stat().st_size for file in run.ref.folder(own).iterdir()) * len(missing) / count
    cost |= {"media": waited * share, "encoding": (seconds - waited) * share, "written": written}
    done = count - len(failures)
    latents, measured = (open_latents(own, run.ref), f"{done} rows in {seconds:.1f} s") if done else (None, "")
    return Trial(run, len(missing), cost, latents, measured, failures)


def estimate(config: ExtractConfig, settings: Settings) -> str:
    """Measure a few missing rows and say what an extraction needs."""
    started = time.process_time()
    with TemporaryDirectory() as folder:
        trial = try_extraction(config, settings, Path(folder), {})
    run, cost, missing = trial.run, trial.cost, trial.missing
    cost["start"] += started
    parent = next(place for place in (run.folder, *run.folder.absolute().parents) if place.exists())
    free, need = shutil.disk_usage(parent).free, cost.get("written", 0.0)
    lines = [f"{run.title}: {len(run.table)} rows, {len(run.table) - missing} done, {missing} to do"]
    if trial.measured:
        parts = ", ".join(f"{stage} {cost[stage]:.1f}" for stage in STAGES[:3])
        lines += [
            f"  measured      {trial.measured}",
            f"  time          {sum(map(cost.__getitem__, STAGES[:3])):.0f} s on {len(run.devices)} devices: {parts}",
            f"  to write      {need / 1e9:.3f} GB into {run.folder}{': NOT ENOUGH SPACE' if need > free else ''}",
        ]
    elif missing:
        lines.append("  time, bytes   unknown, since nothing could be measured")
    lines.append(f"  free there    {free / 1e9:.3f} GB")
    return "\n".join(lines + [f"  unreadable    {each}" for each in trial.failures])


@dataclass(frozen=True)
class Tried:
    """A probe in two epochs: seconds before, beside epochs, and of scores; seconds per row by stage."""

    rows: Mapping[str, int]
    once: tuple[float, float, float]
    pace: Mapping[str, float]
    saving: Sequence[float]


class Estimates:
    """Costs of runs; each split and each kind of training is tried once."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self.held = KeptEncoder()
        self.trials: dict[LatentsRef, Trial] = {}
        self.tried: dict[str, Tried] = {}
        self.trained: dict[str, tuple[Cost, str]] = {}

    def of_training(self, config: TrainLamConfig) -> tuple[Cost, str]:
        """The cost of a training without cached features, and a model like it. Raises LaryError."""
        from lary.lam import train_lam
        from lary.lam.codebook import monitor_due

        # Whatever these are, the cost is the same.
        key = repr(replace(config, out=Path(), seed=0, lr=None, weight_decay=0.0))
        if key in self.trained:
            return dict(self.trained[key][0]), self.trained[key][1]
        brief = replace(config, out=self.folder / f"lam{len(self.trained)}", accumulate=1, cache_features=False)
        brief = replace(brief, tracker="none", export="none", overwrite=True, stop_on_collapse=False)
        few = max(FEW, len(pick_devices(config.gpus, config.device, every=True)))
        brief = replace(brief, batch_size=min(config.batch_size, few))
        steps = PACE_STEPS
        for last in (False, True):
            begun, before = time.monotonic(), logging.root.manager.disable
            logging.disable(logging.WARNING)  # its codebook is of no interest
            try:
                spent = train_lam(replace(brief, steps=steps), self.settings)["seconds"]
            finally:
                logging.disable(before)
            seconds, pace = time.monotonic() - begun, spent["training"] / steps
            larger = config.batch_size / brief.batch_size
            if not last and pace * larger < LONGEST_BATCH:
                brief, pace = replace(brief, batch_size=config.batch_size), pace * larger
            steps = steps if last else max(PACE_STEPS, int(SECONDS / pace))
        due = [sum(monitor_due(step, every) for step in range(every + 1)) for every in (config.steps, steps)]
        cost = added_up([]) | {
            "start": seconds - sum(spent.values()),
            "training": pace * larger * config.accumulate * config.steps,
            "evaluation": spent["evaluation"] * due[0] / due[1],
            "written": float(sum(file.stat().st_size for file in brief.out.glob("*.safetensors"))),
        }
        self.trained[key] = cost, f"lam:{brief.out}"
        return dict(cost), f"lam:{brief.out}"

    def of_run(self, config: RunConfig) -> Cost:
        """The cost of a run after earlier ones. Raises UsageError and LaryError."""
        from lary.runs.run import extract_config, probe_config, roles_here

        costs, splits, probe = list[Cost](), {}, probe_config(config)
        for role, split in roles_here(config, self.settings).items():
            asked, begun = extract_config(config, split), time.monotonic()
            if trial := self.trials.get(LatentsRef.of(asked)):
                prepare_run(asked, self.settings, self.held)
                own: Cost = {"start": time.monotonic() - begun}
            else:
                trial = try_extraction(asked, self.settings, self.folder, self.held)
                self.trials[trial.run.ref], own = trial, trial.cost
            if not trial.missing and find_latent_table(self.settings, trial.run.ref):
                trial = replace(trial, latents=open_latents(self.settings, trial.run.ref))
            if trial.latents is None:
                reason = next(iter(trial.failures), "all rows are done, but 'lary extract' has to write their table")
                raise LaryError(f"Nothing of {split} can be read: {reason}")
            costs.append(own)
            splits[role] = replace(trial.latents, table=trial.run.table)
            if probe.control in FRAME_CONTROLS and not separate(trial.latents, config.protocol):
                costs.append(own)  # the changed frames are extracted, too
                splits[role] = replace(splits[role], store={**trial.latents.store, CHANGED: probe.control})
        self.held.clear()
        return added_up([*costs, self.of_probe(probe, splits)])

    def of_probe(self, config: ProbeConfig, splits: dict[str, SplitLatents]) -> Cost:
        """The cost of all seeds and folds. Raises UsageError and LaryError."""
        from lary.probes.sources import CHUNK, FLOAT, MEMORY_SHARE
        from lary.probes.training import STATE_SHARE
        from lary.runs.probe import task_of
        from lary.runs.tasks import seeds_of

        task, sizes = task_of(config, self.settings), {role: len(split.table) for role, split in splits.items()}
        if config.folds:
            count = sizes["train"] + sizes["seen"]
            sizes = {"train": count - count // config.folds, "seen": count // config.folds}
        own, ridge, values = task.probe, task.kind == "ridge", prod(splits["train"].source.shape)
        devices, start = pick_devices(config.gpus, config.device, every=not ridge), 0.0
        brief = {} if ridge else {"epochs": 2}
        key = repr((config.dataset, task.kind, config.precision, config.project, values, replace(own, **brief)))
        if key not in self.tried:
            few = FEW if devices[0] == "cpu" else own.batch_size
            rows = {role: min(count, (2 if role == "train" else 1) * few) for role, count in sizes.items()}
            first = self.try_probe(config, splits, devices[0], rows, brief | {"batch_size": few})
            rows = {role: min(count, MOST_ROWS) for role, count in sizes.items()}
            while ridge and rows["train"] * values * min(rows["train"], values) > RIDGE_WORK and rows["train"] > FEW:
                rows["train"] //= 2
            for role, count in rows.items() if not ridge else ():
                # Whole batches, but for those that would take too long.
                pace = first.pace["training" if role == "train" else "evaluation"]
                least = own.batch_size if pace * own.batch_size < LONGEST_BATCH else FEW
                rows[role] = min(count, max(1, int(SECONDS / pace / least)) * least)
            brief["batch_size"] = min(own.batch_size, rows["train"])
            self.tried[key] = self.try_probe(config, splits, devices[0], rows, brief)
            start = max(0.0, sum(first.once) - sum(self.tried[key].once))
        tried, repeats = self.tried[key], len(seeds_of(config)) * (config.folds or 1)
        averaged = task.kind in ("mlp", "dit") and config.protocol == "corrected"
        passes = {role: own.epochs + (averaged and role != "train") for role in sizes}
        count, scored = sizes["train"], sum(sizes.values()) - sizes["train"]
        work = min(count, values) / min(tried.rows["train"], values) if ridge else 1.0
        training = own.epochs * count * work * tried.pace["training"] / len(devices)
        evaluation = passes["seen"] * scored * tried.pace["evaluation"] / len(devices)
        source, limit, begun = splits["train"].source, MEMORY_SHARE * memory_bytes() / len(devices), time.perf_counter()
        some = evenly(range(len(source)), CHUNK)
        rate = len(source.read(some)) and (time.perf_counter() - begun) / len(some)
        passes = {role: 1 if FLOAT * size * values <= limit else passes[role] for role, size in sizes.items()}
        if passes["train"] > 1:  # reading ahead hides the shorter of the two
            training = max(training, passes["train"] * count * rate)
        # The state is saved after the first epoch, and then for a share of the time.
        save, *_, last = tried.saving
        training += last + save * min(own.epochs - 1, 1 + STATE_SHARE * (training + evaluation) / max(save, 1e-9))
        width = 4 if getattr(source, "dtype", "float32") == "float32" else 2
        pooled, seen = scored * (config.folds or 1), sum(tried.rows.values()) - tried.rows["train"]
        return {
            "start": start,
            "latents": tried.once[0] * sum(sizes.values()) / sum(tried.rows.values()) + repeats * tried.once[1],
            "training": repeats * training,
            "evaluation": repeats * evaluation,
            "scoring": tried.once[2] * max(1.0, pooled / seen),
            "read": repeats * width * values * sum(passes[role] * size for role, size in sizes.items()),
        }

    def try_probe(
        self, config: ProbeConfig, splits: Mapping[str, SplitLatents], device: str, rows: Mapping[str, int], brief: Any
    ) -> Tried:
        """Train on some rows, whose latents are the few there are, repeated."""
        from lary.probes.training import Session
        from lary.runs.probe import inputs_of, run_facts, task_of
        from lary.runs.tasks import seeds_of

        times, spent = [time.perf_counter()], defaultdict[str, list[float]](list)
        task, seeds = task_of(replace(config, folds=None), self.settings), seeds_of(config)
        task.probe, task.splits = replace(task.probe, **brief), {}
        for role, count in rows.items():
            table, source = splits[role].table, splits[role].source
            table = table.take(evenly(range(len(table)), count))
            source = source.take(np.resize(np.arange(len(source)), len(table)))
            task.splits[role] = replace(splits[role], table=table, source=source)
        inputs = inputs_of(task)
        times.append(time.perf_counter())
        with TemporaryDirectory(dir=self.folder) as folder, np.errstate(all="ignore"):  # few rows, equal seeds
            session = Session(
                protocol=config.protocol,
                preset=config.probe_preset,
                seed=seeds[0],
                device=device,
                folder=Path(folder),
                identity="dry run",
                precision=config.precision,
                spent=spent,
            )
            outcome: Any = task.train(session)
            times.append(time.perf_counter())
            facts = run_facts(task, inputs, [device]) | {"options": outcome.settings}
            task.write(Path(folder), [outcome] * len(seeds), facts)
        prepared, trained, scored = np.diff([*times, time.perf_counter()]).tolist()
        counts = {"training": rows["train"], "evaluation": sum(rows.values()) - rows["train"]}
        beside = trained - sum(sum(spent[stage]) for stage in (*counts, "saving"))
        # A ridge also works before its epochs.
        first, epochs = (0, task.probe.epochs) if task.kind == "ridge" else (-1, 1)
        pace = {stage: sum(spent[stage][first:]) / epochs / count for stage, count in counts.items()}
        return Tried(rows, (prepared, beside, scored), pace, spent["saving"])


def estimate_runs(
    configs: Mapping[str, RunConfig], settings: Settings, trainings: Iterable[TrainLamConfig] = ()
) -> str:
    """A table of what trainings cost, and runs with these or other models, and its sum."""
    import lary.runs.probe  # noqa: F401 (a run does so)

    started, costs = time.process_time(), dict[str, Cost]()
    models = {each.model: each.model for each in configs.values()}
    with TemporaryDirectory() as folder:
        estimates = Estimates(settings, Path(folder))
        works: dict[str, Any] = {f"  {each.out.name}": each for each in trainings} | dict(configs)
        models |= {f"lam:{each.out}": "" for each in trainings}  # until one is like it
        for title, config in works.items():
            try:
                if not isinstance(config, RunConfig):
                    costs[title], models[f"lam:{config.out}"] = estimates.of_training(config)
                elif model := models[config.model]:
                    costs[title] = estimates.of_run(replace(config, model=model))
                else:
                    continue
                costs[title]["start"] += 0.0 if len(costs) > 1 else started
            except LaryError as error:
                log.warning("%s: its cost is unknown: %s", title.strip(), error)
    if len(costs) > 1:
        costs["  sum"] = added_up(costs.values())
    rows = [("", *STAGES, "all, s", *(f"{name}, GB" for name in BYTES))]
    for title, cost in costs.items():
        seconds = [cost[stage] for stage in STAGES]
        values = [f"{each:.1f}" for each in (*seconds, sum(seconds))] + [f"{cost[name] / 1e9:.3g}" for name in BYTES]
        rows.append((title, *values))
    return "\n".join(aligned(rows)) if costs else ""
