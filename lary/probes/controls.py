"""What a probe without any latent would say: the bar that every number has to be read against."""

from __future__ import annotations

import numpy as np

from lary.probes.outcome import Floats, Ints


def majority_class(train_counts: Ints, count: int) -> Ints:
    """The most frequent training class for each of `count` samples, (n,) int64; the first of equals."""
    return np.full(count, int(np.argmax(train_counts)), dtype=np.int64)


def mean_action(train_targets: Floats, count: int) -> Floats:
    """The mean training chunk for each of `count` samples: (m, K, A) -> (n, K, A) float32, normalised."""
    mean = train_targets.mean(axis=0, dtype=np.float64).astype(np.float32)
    return np.broadcast_to(mean, (count, *mean.shape)).copy()
