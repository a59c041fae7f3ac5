"""Extraction: from a split's table to one latent file per row and the table that points to them.

Rows are worked on in blocks of the batch size, counted from the first row of the table. A block is encoded as a
whole, at the same positions in the batch however often a run was interrupted, so that a resumed extraction gives
the same bits as an undisturbed one.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lary import paths
from lary.configs import ExtractConfig, Mode
from lary.data.samples import SampleTable, check_media, find_table, read_table
from lary.data.spec import DATASETS, DatasetSpec
from lary.fileio import digest, read_json, write_json, write_text
from lary.latents.store import Stamp, StoreIdentity, open_store, read_stamp, write_latents
from lary.models.spec import MODELS, ModelContext, ModelSpec, build, locate_weights
from lary.registry import load_plugin
from lary.runtime import log, pick_devices, progress
from lary.settings import Settings
from lary.types import BenchmarkProtocol, Encoder, Failure, LaryError, Latents, Media, MediaError, UsageError

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


@dataclass(frozen=True)
class Job:
    """One extraction with everything looked up: what a worker process needs."""

    config: ExtractConfig
    data_dir: Path
    table: Path
    folder: Path
    weights: str | None
    plugins: tuple[Path, ...]
    identity: StoreIdentity | None = None


def extract(config: ExtractConfig, settings: Settings, *, plugins: tuple[Path, ...] = ()) -> ExtractReport:
    """Extract the latents of one split; what is done already, by sample id and store identity, is not redone.

    Raises:
        UsageError: unknown names, contradicting options, a folder that holds latents of another extraction.
        LaryError: a missing table, no readable media, a model that can't be loaded.
    """
    started = time.monotonic()
    model, dataset = MODELS.get(config.model), DATASETS.get(config.dataset)
    check_request(dataset, config)
    devices = pick_devices(config.gpus)
    explicit = config.input.expanduser() if config.input else None
    source = find_table(dataset, config.split, settings.path("LARY_ROOT"), explicit)
    table = read_table(dataset, config.split, path=source, data_dir=settings.path("DATA_DIR"), limit=config.limit)
    tag = paths.tagged(model.name, config.protocol)
    folder = paths.latent_folder(settings, dataset.name, config.split, tag)
    weights = locate_weights(model, settings.values(), config.weights)
    job = Job(config, settings.path("DATA_DIR"), source, folder, weights, plugins)

    encoder: Encoder | None = None
    digest_of_weights = ""
    if model.weights is not None:
        encoder = build(model, model_context(job, devices[0]))
        digest_of_weights = str(getattr(encoder, "weights_digest", "") or "")
    identity = store_identity(model, dataset, config, digest_of_weights)
    details = {"record": record_of(model, config.protocol), "weights_from": weights, "batch_size": config.batch_size}
    open_store(folder, identity, details, overwrite=config.overwrite)
    job = replace(job, identity=identity)

    pending = missing_rows(table, folder, identity)
    before = len(table) - len(pending)
    if pending:
        warn_about_media(table, pending)
        if before:
            log.info("%s %s: %d of %d rows are done", dataset.name, config.split, before, len(table))
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


def record_of(model: ModelSpec, protocol: BenchmarkProtocol) -> dict[str, Any]:
    """The fields of a model's record that decide its latents under a protocol."""
    options = model.options | (model.options_paper if protocol == "paper" else {})
    return {"preprocess": asdict(model.preprocessing(protocol)), "options": options}


def store_identity(model: ModelSpec, dataset: DatasetSpec, config: ExtractConfig, weights_digest: str) -> StoreIdentity:
    """The identity of the latents that a configuration asks for."""
    record = digest(json.dumps(record_of(model, config.protocol), sort_keys=True, default=str))
    return StoreIdentity(
        model.name, dataset.name, config.split, config.protocol, record, weights_digest, config.seed
    )  # fmt: skip


def model_context(job: Job, device: str) -> ModelContext:
    """What the model's constructor gets on `device`."""
    config = job.config
    return ModelContext(
        device=device, protocol=config.protocol, weights=job.weights, revision=config.revision, seed=config.seed
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


def encode_blocks(
    job: Job, table: SampleTable, blocks: Sequence[int], pending: set[int], device: str, encoder: Encoder | None
) -> list[Failure]:
    """Read, encode and write blocks of rows; reading and writing overlap with the encoder in threads."""
    assert job.identity is not None
    model = MODELS.get(job.config.model)
    encoder = encoder or build(model, model_context(job, device))
    size = job.config.batch_size
    alone = device == "cpu"  # rows are encoded one by one there, so what is done in a block needs no company
    rows = [
        [row for row in range(block * size, min((block + 1) * size, len(table))) if not alone or row in pending]
        for block in blocks
    ]
    failures: list[Failure] = []
    writes: deque[Future[None]] = deque()
    threads = job.config.workers or min(8, (os.cpu_count() or 2))
    title = f"{model.name} {job.config.dataset} {job.config.split} on {device}"
    total = sum(row in pending for block in rows for row in block)
    with progress(total, title) as bar, ThreadPoolExecutor(2) as writers:
        for block in read_blocks(table, model, job.config, rows, threads):
            for row, tokens, codes in encode_block(encoder, block, size, device):
                if row in pending:
                    stamp = Stamp(table[row].id, job.identity.key, job.identity.model)
                    target = job.folder / paths.latent_name(row)
                    writes.append(writers.submit(write_latents, target, tokens, codes, stamp))
            failures += [failure for failure in block.failures if failure.row in pending]
            while len(writes) > 4 * size or (writes and writes[0].done()):
                writes.popleft().result()
            bar.advance(sum(row in pending for row in block.rows))
        for write in writes:
            write.result()
    return failures


@dataclass
class Block:
    """Decoded and preprocessed clips of consecutive rows: (T, 3, H, W) float32 each."""

    rows: Sequence[int]
    clips: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)


def read_blocks(
    table: SampleTable, model: ModelSpec, config: ExtractConfig, rows: Sequence[Sequence[int]], threads: int
) -> Iterator[Block]:
    """Blocks in order, read ahead by `threads` threads; at most three blocks are in memory."""
    from lary.data.frames import read_clip
    from lary.models.preprocess import prepare

    preprocess = model.preprocessing(config.protocol)

    def read(row: int) -> npt.NDArray[np.float32] | Failure:
        sample = table[row]
        try:
            return prepare(read_clip(table.media_path(sample), sample.frame_index, preprocess.reader), preprocess)
        except MediaError as error:
            return Failure(row, sample.media[0], str(error))

    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[tuple[Sequence[int], list[Future[Any]]]] = deque()
        waiting = iter(rows)
        while True:
            while len(ahead) < 3 and (block_rows := next(waiting, None)) is not None:
                ahead.append((block_rows, [pool.submit(read, row) for row in block_rows]))
            if not ahead:
                return
            block_rows, futures = ahead.popleft()
            block = Block(block_rows)
            for row, future in zip(block_rows, futures, strict=True):
                item = future.result()
                if isinstance(item, Failure):
                    block.failures.append(item)
                else:
                    block.clips[row] = item
            yield block


def encode_block(
    encoder: Encoder, block: Block, size: int, device: str
) -> Iterator[tuple[int, npt.NDArray[Any], npt.NDArray[Any] | None]]:
    """Tokens and codes of each readable row; a row with tokens that aren't finite joins the block's failures.

    A row's result must depend on nothing but the row: kernels round differently for batches of different sizes. On a
    CPU, where batches gain nothing, rows are encoded one by one. Elsewhere a batch always has `size` places, a row
    always the same one, and a row that can't be read leaves its place black.
    """
    import torch

    for members in batches_of(block, 1 if device == "cpu" else size):
        places = max(place for _, place in members) + 1 if device == "cpu" else size
        batch = np.zeros((places, *block.clips[members[0][0]].shape), dtype=np.float32)
        for row, place in members:
            batch[place] = block.clips[row]
        with torch.inference_mode():
            latents = encoder.encode(torch.from_numpy(batch).to(device))
        tokens = checked_tokens(latents, places)
        codes = None if latents.codes is None else latents.codes.cpu().numpy()
        for row, place in members:
            if np.isfinite(tokens[place]).all():
                yield row, tokens[place], None if codes is None else codes[place]
            else:
                block.failures.append(Failure(row, "", "The model gave tokens that are not finite."))


def batches_of(block: Block, size: int) -> list[list[tuple[int, int]]]:
    """Readable rows of a block with their places in a batch of `size`; clips of one batch have one shape."""
    batches: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
    for row, clip in sorted(block.clips.items()):
        batches.setdefault((row // size, clip.shape), []).append((row, row % size))
    return list(batches.values())


def checked_tokens(latents: Latents, places: int) -> npt.NDArray[np.float32]:
    """Tokens as float32 on the CPU. Raises LaryError for a shape that no encoder may return."""
    tokens = latents.tokens
    if tokens.ndim not in (3, 4) or tokens.shape[0] != places:
        raise LaryError(
            f"The model returned tokens of shape {tuple(tokens.shape)} for a batch of {places}: expected (B, P, N, D), "
            "or (B, N, D) if it mixes time."
        )
    found: npt.NDArray[np.float32] = tokens.float().cpu().numpy()
    return found


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
