"""What a training needs of a device's memory, told before it starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lary.probes.fit import AHEAD, memory_bytes
from lary.types import UsageError

VALUE = 4
"""Bytes of a float32."""

BATCH_COPIES = AHEAD + 6
"""Batches read ahead, the one in work, its normalised form and their gradients."""

COPIES = {"weights": 1, "gradients": 1, "two moments of AdamW": 2}

CHUNK_TOKENS = 2048
"""Tokens that pass a network at once on a CPU: enough for its matrix products, few enough for its cache."""

CUDA_SHARE = 0.2
"""Of a CUDA device's memory that the activations of one pass may take."""


@dataclass(frozen=True)
class Need:
    """Bytes that a training takes: for each weight four values, and for the values of its batches."""

    weights: int
    batch: int

    @property
    def total(self) -> int:
        return VALUE * sum(COPIES.values()) * self.weights + self.batch


def count_weights(make: Callable[[], nn.Module]) -> int:
    """Weights of the network that `make` builds, without building it in memory."""
    with torch.device("meta"):
        network = make()
    return sum(parameter.numel() for parameter in network.parameters())


def training_need(weights: int, tokens: tuple[int, ...], batch_size: int) -> Need:
    """What training this many weights on batches of samples of this shape takes."""
    return Need(weights, VALUE * BATCH_COPIES * batch_size * math.prod(tokens))


def check_memory(need: Need, tokens: tuple[int, ...], device: str, what: str) -> None:
    """Refuse a training that the device can't hold. Raises UsageError with the numbers and the alternatives."""
    there = free_bytes(device)
    if need.total <= there:
        return
    shape = " x ".join(map(str, tokens))
    raise UsageError(
        f"The {what} needs {need.total / 1e9:.1f} GB for latents of {shape} values: "
        f"{(need.total - need.batch) / 1e9:.1f} GB for {', '.join(COPIES)} ({need.weights / 1e9:.2f} billion weights), "
        f"{need.batch / 1e9:.1f} GB for batches. On {device} {there / 1e9:.1f} GB are free. Pool the tokens with "
        "--pool mean or --pool grid:4, project their channels with --project 64, take a smaller --probe-batch-size "
        "where the batches are what is large, or use a device with more memory."
    )


def free_bytes(device: str) -> int:
    """Memory that is free on a torch device; on the CPU what this machine or container can still give."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    available = int(psutil.virtual_memory().available)
    try:  # a container counts files that it could drop as used
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        lines = Path("/sys/fs/cgroup/memory.stat").read_text().splitlines()
        droppable = sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))
        return max(0, min(available, memory_bytes() - used + droppable))
    except (OSError, ValueError):
        return available


def samples_at_once(tokens: tuple[int, ...], model_dim: int, depth: int, batch_size: int, device: str) -> int:
    """Samples whose activations are held at once in training; the gradients of a batch add up over such parts.

    On a CPU a part of the batch is faster than all of it; on CUDA it is what keeps long sequences within memory without
    computing anything twice.
    """
    length = math.prod(tokens[:-1])
    if device.startswith("cuda"):
        held = torch.cuda.get_device_properties(device).total_memory * CUDA_SHARE
        per_token = VALUE * 20 * model_dim * depth  # norms, queries, keys, values, two wide MLP layers and residuals
        return max(1, min(batch_size, int(held / (per_token * length))))
    return max(1, min(batch_size, CHUNK_TOKENS // length))
