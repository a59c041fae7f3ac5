"""The stages of an extraction: read and prepare, encode, write, overlapping in threads.

Rows are worked on in blocks of the batch size, counted from the first row of the table, so that a resumed extraction
gives the same bits as an undisturbed one.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lary import paths
from lary.configs import ExtractConfig
from lary.data.samples import SampleTable
from lary.latents.store import Stamp, StoreIdentity, write_latents
from lary.models.precision import in_precision
from lary.models.promise import held_to_record
from lary.models.spec import MODELS, ModelContext, ModelSpec, build, with_latent
from lary.runtime import progress
from lary.types import Encoder, Failure, LaryError, Latents, MediaError


@dataclass(frozen=True)
class Job:
    """One extraction with everything looked up: what a worker process needs."""

    config: ExtractConfig
    data_dir: Path
    table: Path
    folder: Path
    weights: str | None
    variables: dict[str, str]
    plugins: tuple[Path, ...]
    identity: StoreIdentity | None = None


def model_of(config: ExtractConfig) -> ModelSpec:
    """The record of the model with the kind of latent that was asked for."""
    return with_latent(MODELS.get(config.model), config.latent)


def make_encoder(job: Job, model: ModelSpec, device: str) -> Encoder:
    """The model on its device, in the arithmetic that was asked for."""
    config = job.config
    encoder = in_precision(build(model, model_context(job, device)), device, config.precision, config.compile)
    return held_to_record(encoder, model, config.protocol)


def model_context(job: Job, device: str) -> ModelContext:
    """What the model's constructor gets on `device`."""
    config = job.config
    return ModelContext(
        device=device, protocol=config.protocol, weights=job.weights, revision=config.revision, seed=config.seed,
        settings=job.variables,
    )  # fmt: skip


def encode_blocks(
    job: Job, table: SampleTable, blocks: Sequence[int], pending: set[int], device: str, encoder: Encoder | None
) -> list[Failure]:
    """Read, encode and write blocks of rows; reading and writing overlap with the encoder in threads."""
    assert job.identity is not None
    model = model_of(job.config)
    encoder = encoder or make_encoder(job, model, device)
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

    preprocess = model.preprocessing(config.protocol, table.spec.media)

    def read(row: int) -> npt.NDArray[np.float32] | Failure:
        sample = table[row]
        try:
            return prepare(
                read_clip(table.media_path(sample), sample.frame_index, preprocess.reader, clamp=preprocess.clamp),
                preprocess,
            )
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
