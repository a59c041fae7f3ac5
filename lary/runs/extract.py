"""Extraction: from a split's table to its latents and the table that points to them.

Frame controls repeat or reorder the latents of a model that encodes each frame
by itself. One that mixes its frames has to see the changed frames: a table of
them is extracted into ``$LARY_LA_DIR/controls/<control>``.
"""

import json
import math
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lary.configs import ExtractConfig, InputOptions, Mode, ProbeControl
from lary.data.spec import DATASETS, DatasetSpec
from lary.data.splits import find_table
from lary.data.tables import INDEX_COLUMN, MEDIA_COLUMNS, SampleTable, read_table, write_csv
from lary.files import digest, read_failures, read_json, remove_torn, write_failures, write_json
from lary.latents.choice import check_frames_there
from lary.latents.pipeline import Interrupted, Job, KeptEncoder, UnitReport, make_encoder
from lary.latents.ref import LatentsRef, SplitLatents, check_format, find_latent_table, open_latents, open_store
from lary.latents.store import LatentStore, StoreIdentity, check_pool, read_manifest
from lary.locks import locked
from lary.models.choices import chosen_model, deciding_fields
from lary.models.running import LoadedEncoder
from lary.models.spec import locate_weights
from lary.registry import loaded_plugins
from lary.runs.engines import devices_of, encode_all
from lary.runtime import log, set_arithmetic
from lary.settings import Settings
from lary.types import BenchmarkProtocol, Failure, JsonDict, LaryError, Media, UsageError, as_path

MODES: dict[Media, Mode] = {"pair": "image", "clip": "video"}
FAILURES = "failures.csv"
TIMING = "extraction.json"
ROWS_CHECKED = 10_000
"""Rows of a long table whose media are looked for before the work starts."""
CHANGED = "changed"
"""The entry of a store's facts that names the control of its frames."""

FRAME_CONTROLS: tuple[ProbeControl, ...] = ("static-pair", "shuffled-order")
"""Controls that change the frames that the encoder sees, not the targets of the probe."""
SEED_OF_ORDERS = 0
"""Seed of the orders of frames, the same for the probes of all seeds."""


@dataclass(frozen=True)
class ExtractReport:
    """What an extraction did."""

    table: Path
    rows: int
    done_before: int
    extracted: int
    failures: tuple[Failure, ...]
    seconds: float


def extract(
    config: ExtractConfig, settings: Settings, held: KeptEncoder | None = None, control: ProbeControl | None = None
) -> ExtractReport:
    """Extract the latents of one split; what is done, by sample id and identity, stays.

    `held` keeps the encoder for the next call; `control` is that of changed frames.
    Raises UsageError for a wrong request or a folder of another extraction; LaryError for a
    missing table, media or model, another writer or a full disk; Interrupted after Ctrl-C.
    """
    started = time.monotonic()
    run = prepare_run(config, settings, held, control)
    table, target = run.table, run.ref.table(settings)
    with locked(run.folder):
        # What killed runs were writing: now, since it may be what fills the disk.
        remove_torn(run.folder)
        remove_torn(target.parent, target.name)
        store = open_run(run)
        recorded = store.check_replaced(table, overwrite=config.overwrite)
        missing = store.missing(table)
        pending = failed_rows(run.folder, missing) if config.retry_failed else missing
        before = len(table) - len(missing)
        log.info("%s: %s %d rows are done", run.title, f"{before} of" if missing else "all", len(table))
        if before and not recorded:
            log.warning("%s doesn't say which files its rows come from, so that replaced ones go unnoticed", run.folder)
        reports: list[UnitReport] = []
        stopped = False
        if pending:
            warn_about_media(table, pending)
            job = replace(run.job, store=store)
            reports, stopped = encode_all(job, table, pending, run.devices, run.encoder, run.title)
        done = sum(report.done for report in reports)
        failures = [failure for report in reports for failure in report.failures]
        failures.sort(key=lambda failure: failure.row or 0)
        if missing:
            rows, seconds = read_timing(run.folder)
            seconds = round(seconds + time.monotonic() - started, 3)
            write_json(run.folder / TIMING, {"rows": rows + done, "seconds": seconds})
        store.finish(table)
        listed = run.folder / FAILURES
        write_failures(listed, failures)
        if failures:
            again = "'lary extract --retry-failed' takes only these"
            log.error("%d rows failed (%s): see %s; %s", len(failures), failures[0].reason, listed, again)
        if (left := len(missing) - done - len(failures)) or stopped:
            raise unfinished(run, left)
        lost = [each.row or 0 for each in failures]
        store.write_table(table, target, run.ref.latent_root(settings), lost, new=bool(missing))
    return ExtractReport(target, len(table), before, done, tuple(failures), time.monotonic() - started)


@dataclass(frozen=True)
class Run:
    """An extraction with everything looked up and nothing written yet."""

    job: Job
    ref: LatentsRef
    table: SampleTable
    devices: list[str]
    identity: StoreIdentity
    details: JsonDict
    folder: Path
    encoder: LoadedEncoder

    @property
    def title(self) -> str:
        return f"{self.folder.name} on {self.identity.dataset} {self.identity.split}"


def prepare_run(
    config: ExtractConfig, settings: Settings, held: KeptEncoder | None = None, control: ProbeControl | None = None
) -> Run:
    """Look everything up. Raises as `extract`."""
    model = chosen_model(config)
    dataset = DATASETS.get(config.dataset)
    check_request(dataset, config)
    check_pool(model, config.pool)
    check_format(config.store, config.dtype)
    devices = devices_of(config)
    table = read_input(config, settings)
    check_frames_there(table, model, model.preprocessing(config.protocol, dataset.media))
    values = settings.values()
    weights = locate_weights(model, values, config.weights)
    job = Job(config, settings.path("DATA_DIR"), table.path, weights, values, loaded_plugins())
    # Where others encode, only the digest is needed here: their devices are left alone.
    alone = len(devices) == 1 and config.engine == "local"
    encoder = make_encoder(job, model, devices[0] if alone or config.dry_run else "cpu", held)
    record = deciding_fields(model, config.protocol, dataset.media)
    text = json.dumps(record | {"precision": config.precision}, sort_keys=True, default=str)
    identity = StoreIdentity(
        model.name,
        dataset.name,
        config.split,
        config.protocol,
        digest(text),
        encoder.identity.digest,
        config.seed,
        dataset.revision,
        config.pool,
        config.dtype,
        set_arithmetic(devices[0], config.precision),
    )
    ref = replace(LatentsRef.of(config), control=control)
    folder = ref.folder(settings)
    if not config.overwrite:
        identity = as_before(folder, identity)
    details = {
        "record": record,
        "weights_from": weights,
        "batch_size": config.batch_size,
        "precision": config.precision,
        "parameters_m": encoder.parameters_m,
    }
    return Run(job, ref, table, devices, identity, details, folder, encoder)


def read_input(config: ExtractConfig, settings: Settings) -> SampleTable:
    """The table of the split. Raises UsageError, LaryError."""
    dataset = DATASETS.get(config.dataset)
    split = config.split
    explicit = as_path(config.input) if config.input else None
    path = find_table(dataset, split, settings.path("LARY_ROOT"), explicit)
    return read_table(dataset, split, path=path, data_dir=settings.path("DATA_DIR"), limit=config.limit)


def open_run(run: Run) -> LatentStore:
    """The store of a run, claimed for its identity. Raises UsageError."""
    config = run.job.config
    return open_store(
        run.folder,
        run.identity,
        run.details,
        overwrite=config.overwrite,
        kind=config.store,
        unit_rows=config.shard_rows,
        batch_size=config.batch_size,
    )


def missing_rows(run: Run) -> list[int]:
    """The rows that a run has to do; nothing is changed."""
    there = read_manifest(run.folder) and not run.job.config.overwrite
    return open_run(run).missing(run.table) if there else list(range(len(run.table)))


def unfinished(run: Run, left: int) -> LaryError:
    """The error for rows left over: after Ctrl-C, or with ``--retry-failed``."""
    rest = f"{left} of {len(run.table)} rows are still to be done"
    if run.job.config.retry_failed:
        return LaryError(f"{rest}, so there is no table yet: run the same command without --retry-failed.")
    own = Path(sys.argv[0]).name in ("lary", "cli.py")
    again = shlex.join(["lary", *sys.argv[1:]]) if own else "the same command again"
    return Interrupted(f"Stopped: {rest}. Everything up to here is kept; resume with {again}")


def failed_rows(folder: Path, missing: Sequence[int]) -> list[int]:
    """The missing rows that the failures file names. Raises UsageError."""
    file = folder / FAILURES
    if not file.is_file():
        raise UsageError(f"--retry-failed: there is no {file}: the last run had no failures, or didn't end.")
    try:
        named = {failure.row for failure in read_failures(file)}
    except (OSError, ValueError) as error:
        raise UsageError(f"--retry-failed: {file} can't be read ({error}): leave the option out.") from None
    return [row for row in missing if row in named]


def check_request(dataset: DatasetSpec, config: ExtractConfig) -> None:
    """Refuse options that contradict the record. Raises UsageError."""
    dataset.split(config.split)
    check_media(dataset, config)
    for name in ("limit", "batch_size", "workers", "shard_rows", "read_timeout"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise UsageError(f"--{name.replace('_', '-')} {value:g}: must be more than 0.")


def check_media(dataset: DatasetSpec, config: InputOptions) -> None:
    """Refuse a ``--mode`` or ``--stride`` that contradicts the record. Raises UsageError."""
    for name, found in (("mode", MODES[dataset.media]), ("stride", dataset.stride)):
        asked = getattr(config, name)
        if asked not in (None, found):
            held = f"data set '{dataset.name}' holds {dataset.media}s and has {name} {found}"
            raise UsageError(f"--{name} {asked}: {held}; leave the option out.")


def as_before(folder: Path, identity: StoreIdentity) -> StoreIdentity:
    """The identity, without weights where a store of version 0.1 is there that names none."""
    unnamed = replace(identity, weights="")
    if not identity.weights or read_manifest(folder).get("key") != unnamed.key:
        return identity
    since = f"did not record the weights of '{identity.model}': if they have changed since, pass --overwrite"
    log.warning("%s was begun by version 0.1, which %s", folder, since)
    return unnamed


def warn_about_media(table: SampleTable, pending: Sequence[int]) -> None:
    """Name the first missing files. Raises LaryError if no file is there at all."""
    table = table.take(pending[:ROWS_CHECKED])
    if not (absent := table.missing_media()):
        return
    listed = "\n  ".join(map(str, absent[:10]))
    if len(absent) == len({path for sample in table for path in table.media_path(sample)}):
        raise LaryError(
            f"None of the {len(absent)} media files of {table.path} exist; the first are\n  {listed}\n"
            f"Check DATA_DIR; they are expected under {table.root}."
        )
    missing = f"{len(absent)} media files of the first {len(table)} rows are missing"
    log.warning("%s; their rows will be skipped. The first are\n  %s", missing, listed)


def read_timing(folder: Path) -> tuple[int, float]:
    """Extracted rows of a store and their seconds over all runs; zeros if unknown."""
    file = folder / TIMING
    if not file.exists():
        return 0, 0.0
    try:
        found = read_json(file, "timing of the extraction")
        rows = int(found["rows"])
        seconds = float(found["seconds"])
        if rows < 0 or not 0 <= seconds < math.inf:
            raise ValueError("it counts backwards")
    except (LaryError, KeyError, TypeError, ValueError, OverflowError) as error:
        log.warning("%s is ignored, since it holds no time: %s", file, error)
        return 0, 0.0
    return rows, seconds


# Frames that were changed before the encoder saw them


def separate(split: SplitLatents, protocol: BenchmarkProtocol) -> bool:
    """Whether the latents hold each frame alone; under ``paper`` some encoders mix them."""
    shape = split.source.shape
    chosen = split.store.get("record", {}).get("preprocess", {}).get("frames")  # not the table's
    return not chosen and protocol == "corrected" and len(shape) == 3 and shape[0] == split.frames


def extract_changed(config: ExtractConfig, control: ProbeControl, settings: Settings) -> ExtractReport | None:
    """Extract changed frames; None where the latents hold each frame. Raises as `extract`."""
    ref = LatentsRef.of(config)
    if separate(open_latents(settings, ref), config.protocol):
        return None
    table = read_input(config, settings)
    changed = replace(ref, control=control).table(settings)
    path = changed.with_name(f"{config.dataset}_metadata_{config.split}.csv")
    write_csv(path, list(table.frame.columns), list(changed_rows(table, control)))
    return extract(replace(config, input=path), settings, control=control)


def changed_rows(table: SampleTable, control: ProbeControl) -> Iterator[list[str]]:
    """The rows of a table with the source for all frames, or frames in a drawn order."""
    pair = table.spec.media == "pair"
    names = MEDIA_COLUMNS["pair"] if pair else (INDEX_COLUMN,)
    draw = np.random.default_rng(SEED_OF_ORDERS)
    for row in table.frame.to_dict("records"):
        frames = [row[name] for name in names] if pair else row[INDEX_COLUMN].split(",")
        changed = frames[:1] * len(frames)
        if control == "shuffled-order":
            changed = [frames[place] for place in draw.permutation(len(frames))]
        row.update(zip(names, changed if pair else [",".join(changed)], strict=True))
        yield list(row.values())


def open_changed(settings: Settings, split: SplitLatents, ref: LatentsRef) -> SplitLatents:
    """A split with its latents from changed frames. Raises UsageError, LaryError."""
    if find_latent_table(settings, ref) is None:
        shape = split.source.shape
        held = f"{shape[0]} steps" if len(shape) == 3 else "no steps"
        raise UsageError(
            f"--control {ref.control}: the latents of '{ref.model}' (protocol {ref.protocol}) hold {held} for "
            f"{split.frames} frames, so frames can't be exchanged after extraction, and there are no latents of "
            f"changed frames of {ref.dataset} {ref.split}. Run 'lary controls', or 'lary run' with this option."
        )
    other = open_latents(settings, ref)
    rows, kept, places = np.intersect1d(split.table.rows, other.table.rows, return_indices=True)
    own = split.take(kept.tolist())
    theirs = other.take(places.tolist())
    columns = MEDIA_COLUMNS[split.table.spec.media]
    first = own.table.frame[columns[0]].to_numpy()
    same = [first == theirs.table.frame[name].to_numpy() for name in columns]
    if not len(rows) or not np.logical_or.reduce(same).all():
        paths = f"{other.table.path} was made of another table than {split.table.path}"
        raise LaryError(f"{paths}: run 'lary controls' again.")
    store = other.store | {CHANGED: ref.control}
    return replace(own, source=theirs.source, store=store, folder=other.folder)
