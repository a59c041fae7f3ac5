"""Attention of the attentive probe: the weights with which its query attends to the tokens of a sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lary.probes.classify import ClassifierTraining
from lary.probes.nets import AttentiveProbe, QueryAttention, split_heads
from lary.probes.outcome import Floats, Ints
from lary.probes.sources import standardised
from lary.types import LaryError, LatentSource


@dataclass(frozen=True)
class SelectedHead:
    """The head of a finished run that its result reports, and the scaling of channels that it expects, or None."""

    network: AttentiveProbe
    scaling: tuple[Floats, Floats] | None


@dataclass(frozen=True)
class HeadAttention:
    """Scores (B, L) of some samples, and their attention (B, S), the mean over heads of softmax weights; rows sum to 1.

    S counts the tokens of all steps, step by step.
    """

    logits: Floats
    weights: Floats


def load_head(folder: Path, classes: int) -> SelectedHead:
    """Load the reported head from a run's ``latest.pt``.

    Raises:
        LaryError: there is no such file, it is torn, or holds no head of this many classes.
    """
    file = folder / ClassifierTraining.checkpoint
    if not file.is_file():
        raise LaryError(f"{file} does not exist: run the probe again with --overwrite, then it is written.")
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        weights, settings, scaling = state["selected"]["weights"], state["settings"], state["scaling"]
        dim = weights["projector.0.weight"].shape[1]
        network = AttentiveProbe(
            dim, classes, settings["model_dim"], settings["num_heads"], settings["depth"], settings["max_temporal_len"]
        )
        network.load_state_dict(weights)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LaryError(f"{file} holds no head that can be used ({reason}): run the probe again.") from error
    pair = None if scaling is None else (scaling["mean"].numpy(), scaling["std"].numpy())
    return SelectedHead(network.eval(), pair)


@torch.no_grad()
def attend(head: SelectedHead, source: LatentSource, rows: Sequence[int] | Ints) -> HeadAttention:
    """Scores and attention of the samples at `rows`, on the CPU."""
    read = standardised(source, *head.scaling) if head.scaling else source
    tokens = torch.from_numpy(np.ascontiguousarray(read.read(np.asarray(rows, dtype=np.int64)), dtype=np.float32))
    seen: list[Tensor] = []

    def note(module: QueryAttention, inputs: tuple[Tensor, Tensor]) -> None:
        seen.append(attention_weights(module, *inputs))

    handle = head.network.classifier.pooler.cross_attention_block.xattn.register_forward_pre_hook(note)
    try:
        logits = head.network(tokens)
    finally:
        handle.remove()
    return HeadAttention(logits.numpy(), seen[0].mean(dim=(1, 2)).numpy())


def attention_weights(module: QueryAttention, queries: Tensor, tokens: Tensor) -> Tensor:
    """Softmax weights (B, heads, Q, S) with which queries (B, Q, D) attend to tokens (B, S, D)."""
    q = split_heads(module.q(queries), module.heads)
    k = split_heads(module.kv(tokens).chunk(2, dim=-1)[0], module.heads)
    return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), dim=-1)
