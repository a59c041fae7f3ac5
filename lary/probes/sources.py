"""What a probe trains on: latents, rows drawn, and memory for them."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lary.arrays import Array, Doubles, Floats, Ints
from lary.runtime import free_memory, memory_bytes, pinned
from lary.types import LaryError, LatentSource, UsageError

Rows = Sequence[int] | Ints
Tokens = npt.NDArray[Any]
"""Floating-point numbers, or the bits of bfloat16 as uint16, which NumPy lacks."""

MEMORY_SHARE = 0.125  # of all memory that the latents of a split may stay in
CHUNK = 256  # rows read at once where a split is read in order
AHEAD = 2  # batches that are read ahead
SCALED_BY = 256  # most rows for the statistics of channels

FLOAT = 4  # bytes of a float32
COPIES = 4  # of the weights: themselves, gradients, and two moments of AdamW
# Batches read ahead, the current one, its normalised form and their gradients.
BATCH_COPIES = AHEAD + 6
# Tokens in a forward pass on a CPU, of 256 channels or more: enough for matrix
# products, few enough for its cache. On CUDA, activations may take this share of memory.
CHUNK_TOKENS = 2048
CUDA_SHARE = 0.2


# --- latents ---


class LatentView:
    """A `LatentSource` whose rows (B,) a function reads, maybe of another `dim` or `count`."""

    def __init__(
        self, source: LatentSource, read: Callable[[Ints], Tokens], dim: int | None = None, count: int | None = None
    ) -> None:
        self._count, self._read = len(source) if count is None else count, read
        self.shape = (*source.shape[:-1], dim or source.shape[-1])

    def __len__(self) -> int:
        return self._count

    def read(self, rows: Rows) -> Tokens:
        return self._read(np.asarray(rows, dtype=np.int64))


def finite_latents(source: LatentSource, name: Callable[[int], str]) -> LatentSource:
    """Latents that raise LaryError, with a sample's name, if not finite."""

    def read(rows: Ints) -> Tokens:
        tokens = source.read(rows)
        # One pass without a temporary array, three times as fast as isfinite;
        # where squares of finite numbers overflow, every number is tested.
        if tokens.dtype == np.float32 and math.isfinite(np.vdot(tokens, tokens)):
            return tokens
        # Testing the exponents is four times as fast as isfinite for two bytes.
        ones = {"float16": 0x7C00, "uint16": 0x7F80}.get(tokens.dtype.name)
        finite = (tokens.view(np.uint16) & ones) != ones if ones else np.isfinite(tokens)
        if not finite.all():
            bad = rows[np.argmin(finite.reshape(len(tokens), -1).all(axis=1))]
            raise LaryError(
                f"The latents of {name(int(bad))} hold NaN or infinity: check the model with "
                "'lary check-model', and extract this split again."
            )
        return tokens

    return LatentView(source, read)


def wide(tokens: Tokens) -> Tokens:
    """Tokens as numbers that NumPy calculates with: bits of bfloat16 become float32."""
    return (tokens.astype(np.uint32) << 16).view(np.float32) if tokens.dtype == np.uint16 else tokens


def reordered(source: LatentSource, control: str, seed: int) -> LatentSource:
    """Latents (P, N, D) with shuffled steps, or all steps like the first.

    They need a step per frame; of other models `lary.runs.extract` changes frames.
    """
    steps = np.tile(np.arange(source.shape[0]), (len(source), 1))
    order = np.random.default_rng(seed).permuted(steps, axis=1)
    if control == "static-pair":
        order[:] = 0
    return LatentView(source, lambda rows: source.read(rows)[np.arange(len(rows))[:, None], order[rows]])


def projected(source: LatentSource, size: int, seed: int) -> LatentSource:
    """Latents (..., D) projected to (..., size) by a random matrix.

    A Gaussian one keeps squared lengths in expectation (Johnson and
    Lindenstrauss 1984). Raises UsageError for a wrong size.
    """
    dim = source.shape[-1]
    if not 1 <= size < dim:
        raise UsageError(f"--project {size}: must be from 1 to {dim - 1}, since the latents have dimension {dim}.")
    draw = np.random.default_rng(seed).standard_normal((dim, size))
    matrix = (draw / np.sqrt(size)).astype(np.float32)
    return LatentView(source, lambda rows: np.asarray(wide(source.read(rows)) @ matrix, np.float32), size)


def standardised(source: LatentSource, mean: Floats, std: Floats) -> LatentSource:
    """Latents (x - mean) / std by channel; `mean` and `std` (D,) float32."""
    return LatentView(source, lambda rows: (wide(source.read(rows)) - mean) / std)


def in_chunks(source: LatentSource, rows: Ints) -> Iterator[Tokens]:
    """The tokens of `rows`, 256 samples at once, to calculate with."""
    for start in range(0, len(rows), CHUNK):
        yield wide(source.read(rows[start : start + CHUNK]))


def channel_statistics(source: LatentSource, rows: Ints) -> tuple[Floats, Floats]:
    """Mean and standard deviation (D,) by channel, over up to 256 of `rows`.

    A channel that never changes gets the standard deviation 1.
    """
    count, total, squares = 0, np.zeros(source.shape[-1]), np.zeros(source.shape[-1])
    for part in in_chunks(source, rows[:: -(-len(rows) // SCALED_BY)]):
        tokens = part.reshape(-1, part.shape[-1]).astype(np.float64)
        count += len(tokens)
        total += tokens.sum(axis=0)
        squares += np.square(tokens).sum(axis=0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    std[std < 1e-6 * np.maximum(1.0, np.abs(mean))] = 1.0
    return mean.astype(np.float32), std.astype(np.float32)


def keep_in_memory(source: LatentSource, processes: int = 1) -> LatentSource:
    """A copy of `source` in memory, or itself if `processes` copies don't fit."""
    size = FLOAT * len(source) * math.prod(source.shape)
    if size > MEMORY_SHARE * memory_bytes() / processes:
        return source
    parts = np.array_split(np.arange(len(source)), -(-len(source) // CHUNK))
    tokens = np.concatenate([source.read(part) for part in parts])
    return LatentView(source, lambda rows: tokens[rows])


def on_device(tensor: Tensor, device: Any) -> Tensor:
    """A tensor on a device; nothing waits for the copy to CUDA."""
    return pinned(tensor.pin_memory, lambda: tensor, str(device)).to(device, non_blocking=True)


def read_batches(
    source: LatentSource, rows: Ints, size: int, device: str, share: slice = slice(None)
) -> Iterator[tuple[Ints, Tensor, int]]:
    """Batches of `size` rows, read ahead by a thread; the last may be smaller.

    Yields for every batch this process's `share` of its rows, their tokens (B,
    *shape) as float32 on `device`, and the number of rows of the whole batch.
    """

    def read(own: Ints) -> Tensor:
        if not len(own):  # still a batch: other processes wait for its gradients
            return torch.empty((0, *source.shape))
        tensor = torch.from_numpy(np.require(source.read(own), requirements=["C", "W"]))
        tensor = tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor
        return pinned(tensor.pin_memory, lambda: tensor, device)

    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    coming = (batch[share] for batch in batches)
    # On a CPU the arithmetic needs the cores.
    threads = AHEAD if device.startswith("cuda") else 1
    with ThreadPoolExecutor(threads) as pool:
        pending = deque(pool.submit(read, own) for own in islice(coming, AHEAD))
        for batch in batches:
            pending.extend(pool.submit(read, own) for own in islice(coming, 1))
            tokens = pending.popleft().result().to(device, non_blocking=True)
            # Widened on the device: half as many bytes of two-byte formats are copied.
            yield batch[share], tokens.float(), len(batch)


def check_splits(*splits: tuple[LatentSource, Array]) -> None:
    """Raise UsageError for wrong shapes of latents, or numbers of targets."""
    shapes = [source.shape for source, _ in splits]
    if not 1 <= len(shapes[0]) <= 3 or 0 in shapes[0]:
        raise UsageError(
            f"Latents of shape {shapes[0]} can't be probed: store tokens of shape (P, N, D), (N, D) or (D,)."
        )
    counts = [(len(source), len(targets)) for source, targets in splits]
    if len(set(shapes)) > 1 or any(first != second or not first for first, second in counts):
        raise UsageError(
            f"The splits have latents of shapes {shapes}, and latents and targets {counts}: they "
            "must agree, with a sample in every split. Extract all splits in the same way."
        )


# --- rows ---


def class_weights(labels: Ints) -> Doubles:
    """Probability of each sample (n,), so that every class is equally likely."""
    _, positions, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / (counts[positions] * len(counts)), dtype=np.float64)


def balanced_indices(weights: Doubles, epoch: int, seed: int = 0) -> Ints:
    """Draw as many rows as there are for an epoch (from 0), with replacement."""
    count, generator = len(weights), np.random.default_rng(seed + epoch)
    return generator.choice(count, count, p=weights / weights.sum()).astype(np.int64)


# --- memory ---


def check_memory(
    make: Callable[[], nn.Module], copies: float, batch: int, shape: tuple[int, ...], device: str, share: float = 0.0
) -> None:
    """Refuse to train `copies` of a network where the device can't hold them.

    `batch` samples have tokens of `shape`; activations take a `share` of a
    CUDA device's memory. Raises UsageError.
    """
    with torch.device("meta"):  # the weights are counted without being made
        weights = int(copies) * sum(parameter.numel() for parameter in make().parameters())
    trained = FLOAT * COPIES * weights * copies / int(copies)
    batches = FLOAT * BATCH_COPIES * batch * math.prod(shape)
    free = free_memory(device)
    if share and device.startswith("cuda"):
        batches += int(share * torch.cuda.get_device_properties(device).total_memory)
    if trained + batches > free:
        raise UsageError(
            f"A probe of {weights / 1e9:.2f} billion weights on latents of shape {shape} needs "
            f"{trained / 1e9:.1f} GB for weights, gradients and moments, {batches / 1e9:.1f} GB "
            f"for batches; {device} has {free / 1e9:.1f} GB free: pass --pool mean, --project 64, or "
            "a smaller --probe-batch-size."
        )


def samples_at_once(tokens: tuple[int, ...], model_dim: int, depth: int, device: str) -> int:
    """Samples per forward pass of a batch, whose gradients add up.

    On a CPU a part of the batch is faster than all of it; on CUDA it is what
    keeps long sequences within memory without computing anything twice.
    """
    length = math.prod(tokens[:-1])
    if not device.startswith("cuda"):
        return max(1, CHUNK_TOKENS * max(1, 256 // model_dim) // length)
    held = torch.cuda.get_device_properties(device).total_memory * CUDA_SHARE
    # 20: norms, queries, keys, values, two wide MLP layers and residuals.
    return max(1, int(held / (FLOAT * 20 * model_dim * depth * length)))
