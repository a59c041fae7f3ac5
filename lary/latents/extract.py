"""Extraction: from a split's table to one latent file per row and the table that points to them."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lary import paths
from lary.configs import ExtractConfig, Mode
from lary.data.samples import SampleTable, check_media, find_table, read_table
from lary.data.spec import DATASETS, DatasetSpec
from lary.fileio import digest, read_json, write_json, write_text
from lary.latents.pipeline import Job, encode_blocks, make_encoder, model_of
from lary.latents.store import StoreIdentity, open_store, read_stamp
from lary.models.spec import ModelSpec, locate_weights
from lary.registry import load_plugin
from lary.runtime import log, pick_devices
from lary.settings import Settings
from lary.types import BenchmarkProtocol, Encoder, Failure, LaryError, Media, UsageError, as_path

if TYPE_CHECKING:
    import pandas

MODES: dict[Mode, Media] = {"image": "pair", "video": "clip"}
FAILURES = "failures.csv"
TIMING = "extraction.json"


@dataclass(frozen=True)
class ExtractReport:
    """What an extraction did."""

    table: Path
    rows: int
    done_before: int
    extracted: int
    failures: tuple[Failure, ...]
    seconds: float


def extract(config: ExtractConfig, settings: Settings, *, plugins: tuple[Path, ...] = ()) -> ExtractReport:
    """Extract the latents of one split; what is done already, by sample id and store identity, is not redone.

    Raises:
        UsageError: unknown names, contradicting options, a folder that holds latents of another extraction.
        LaryError: a missing table, no readable media, a model that can't be loaded.
    """
    started = time.monotonic()
    model, dataset = model_of(config), DATASETS.get(config.dataset)
    check_request(dataset, config)
    devices = pick_devices(config.gpus, config.device)
    explicit = as_path(config.input) if config.input else None
    source = find_table(dataset, config.split, settings.path("LARY_ROOT"), explicit)
    table = read_table(dataset, config.split, path=source, data_dir=settings.path("DATA_DIR"), limit=config.limit)
    tag = paths.tagged(model.name, config.protocol, config.latent, config.weights)
    folder = paths.latent_folder(settings, dataset.name, config.split, tag)
    weights = locate_weights(model, settings.values(), config.weights)
    job = Job(config, settings.path("DATA_DIR"), source, folder, weights, settings.values(), plugins)

    encoder: Encoder | None = None
    digest_of_weights = ""
    if model.weights is not None:
        encoder = make_encoder(job, model, devices[0])
        digest_of_weights = str(getattr(encoder, "weights_digest", "") or "")
    identity = store_identity(model, dataset, config, digest_of_weights)
    details = {
        "record": record_of(model, config.protocol, dataset.media),
        "weights_from": weights,
        "batch_size": config.batch_size,
    }
    open_store(folder, identity, details, overwrite=config.overwrite)
    job = replace(job, identity=identity)

    pending = missing_rows(table, folder, identity)
    before = len(table) - len(pending)
    if pending:
        warn_about_media(table, pending)
        if before:
            log.info("%s %s: %d of %d rows are done", dataset.name, config.split, before, len(table))
        if len(devices) > 1:
            encoder = None  # each device's process loads its own
        failures = run_job(job, table, pending, devices, encoder)
        add_timing(folder, len(pending) - len(failures), time.monotonic() - started)
    else:
        log.info("%s %s with %s: all %d rows are done", dataset.name, config.split, tag, len(table))
        failures = []
    target = paths.latent_table(settings, dataset.name, config.split, dataset.media, dataset.stride, tag)
    write_tables(table, target, folder, settings.path("LARY_LA_DIR"), failures)
    return ExtractReport(
        target, len(table), before, len(pending) - len(failures), tuple(failures), time.monotonic() - started
    )  # fmt: skip


def check_request(dataset: DatasetSpec, config: ExtractConfig) -> None:
    """Refuse options that contradict the record. Raises UsageError."""
    dataset.split(config.split)
    check_mode(dataset, config.mode)
    check_stride(dataset, config.stride)
    for name, value in (("--limit", config.limit), ("--batch-size", config.batch_size), ("--workers", config.workers)):
        if value is not None and value < 1:
            raise UsageError(f"{name} {value}: must be at least 1.")


def check_mode(dataset: DatasetSpec, mode: Mode | None) -> None:
    """Refuse a ``--mode`` that contradicts the record. Raises UsageError."""
    if mode is not None and MODES[mode] != dataset.media:
        right = next(mode for mode, media in MODES.items() if media == dataset.media)
        raise UsageError(f"--mode {mode}: data set '{dataset.name}' holds {dataset.media}s, so its mode is {right}.")


def check_stride(dataset: DatasetSpec, stride: int | None) -> None:
    """Refuse a ``--stride`` that contradicts the record. Raises UsageError."""
    if stride is None or stride == dataset.stride:
        return
    if dataset.stride is None:
        raise UsageError(f"--stride {stride}: data set '{dataset.name}' has no stride; leave the option out.")
    raise UsageError(f"--stride {stride}: data set '{dataset.name}' has stride {dataset.stride}; leave the option out.")


def record_of(model: ModelSpec, protocol: BenchmarkProtocol, media: Media) -> dict[str, Any]:
    """The fields of a model's record that decide its latents under a protocol."""
    options = model.options | (model.options_paper if protocol == "paper" else {})
    return {"preprocess": asdict(model.preprocessing(protocol, media)), "options": options}


def store_identity(model: ModelSpec, dataset: DatasetSpec, config: ExtractConfig, weights_digest: str) -> StoreIdentity:
    """The identity of the latents that a configuration asks for."""
    fields = {**record_of(model, config.protocol, dataset.media), "precision": config.precision}
    record = digest(json.dumps(fields, sort_keys=True, default=str))
    return StoreIdentity(
        model.name, dataset.name, config.split, config.protocol, record, weights_digest, config.seed
    )  # fmt: skip


def missing_rows(table: SampleTable, folder: Path, identity: StoreIdentity) -> list[int]:
    """Rows whose latents aren't there, belong to another sample, or come from another store."""
    if not folder.exists():
        return list(range(len(table)))

    def is_missing(row: int) -> bool:
        stamp = read_stamp(folder / paths.latent_name(row))
        return stamp is None or stamp.store != identity.key or stamp.sample != table[row].id

    with ThreadPoolExecutor(8) as pool:
        return [row for row, missing in enumerate(pool.map(is_missing, range(len(table)))) if missing]


def warn_about_media(table: SampleTable, pending: Sequence[int]) -> None:
    """Name the first missing files before the work starts. Raises LaryError if no file is there at all."""
    absent = check_media(table, pending)
    if not absent:
        return
    listed = "\n  ".join(str(path) for path in absent[:10])
    if len(absent) == len({path for row in pending for path in table.media_path(table[row])}):
        raise LaryError(
            f"None of the {len(absent)} media files of {table.path} exist; the first are\n  {listed}\n"
            f"Check DATA_DIR; this split's files are expected under {table.root}."
        )
    log.warning("%d media files are missing; their rows will be skipped. The first are\n  %s", len(absent), listed)


def run_job(
    job: Job, table: SampleTable, pending: Sequence[int], devices: Sequence[str], encoder: Encoder | None
) -> list[Failure]:
    """Work on the pending rows: in this process on one device, else in one process per device."""
    size = job.config.batch_size
    blocks = sorted({row // size for row in pending})
    if len(devices) == 1:
        return encode_blocks(job, table, blocks, set(pending), devices[0], encoder)
    failures: list[Failure] = []
    with ProcessPoolExecutor(len(devices), mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = {
            pool.submit(work_on_device, job, blocks[index :: len(devices)], sorted(pending), device): device
            for index, device in enumerate(devices)
        }
        for part in as_completed(parts):
            failures += part.result()
    return sorted(failures, key=lambda failure: failure.row)


def work_on_device(job: Job, blocks: list[int], pending: list[int], device: str) -> list[Failure]:
    """A worker process: some of the blocks on one device."""
    from lary.runtime import setup_logging

    setup_logging()
    for plugin in job.plugins:
        load_plugin(plugin)
    dataset = DATASETS.get(job.config.dataset)
    table = read_table(dataset, job.config.split, path=job.table, data_dir=job.data_dir, limit=job.config.limit)
    return encode_blocks(job, table, blocks, set(pending), device, None)


def add_timing(folder: Path, rows: int, seconds: float) -> None:
    """Add a run to the timing file of a store: how long its latents took, over all interrupted runs."""
    file = folder / TIMING
    before = read_json(file, "timing of the extraction") if file.exists() else {"rows": 0, "seconds": 0.0}
    write_json(file, {"rows": before["rows"] + rows, "seconds": round(before["seconds"] + seconds, 3)})


def write_tables(
    table: SampleTable, target: Path, folder: Path, latent_root: Path, failures: Sequence[Failure]
) -> None:
    """Write the table with ``la_path`` (empty for a failed row) and the failures file beside the latents."""
    failed = {failure.row for failure in failures}
    relative = folder.relative_to(latent_root).as_posix()
    frame = table.frame.copy()
    frame["la_path"] = [
        "" if row in failed else f"{relative}/{paths.latent_name(row)}" for row in range(len(table))
    ]  # fmt: skip
    write_text(target, to_csv(frame))
    report = folder / FAILURES
    if failures:
        write_failures(report, failures)
        log.error("%d rows could not be read: see %s", len(failures), report)
    else:
        report.unlink(missing_ok=True)


def write_failures(file: Path, failures: Sequence[Failure]) -> None:
    """Write skipped rows with their path and reason; rows count from 1, as in messages."""
    import pandas

    write_text(file, to_csv(pandas.DataFrame([asdict(replace(item, row=item.row + 1)) for item in failures])))


def to_csv(frame: pandas.DataFrame) -> str:
    """A table as CSV text with plain newlines."""
    return str(frame.to_csv(index=False, lineterminator="\n"))
