"""Learning rate and weight decay at every update, as closed formulas."""

from __future__ import annotations

import math

from lary.probes.presets import HeadSettings


def learning_rate(head: HeadSettings, step: int, total: int, per_epoch: int) -> float:
    """Learning rate of update number `step`, counted from 1, of `total` updates with `per_epoch` in an epoch.

    A linear rise over ``head.warmup`` epochs, then a half cosine that reaches ``final_lr`` with the very last update.
    """
    rise = int(head.warmup * per_epoch)
    if step < rise:
        start = head.lr if head.start_lr is None else head.start_lr
        return start + step / max(1, rise) * (head.lr - start)
    share = (step - rise) / max(1, total - rise)
    return max(head.final_lr, _cosine(head.lr, head.final_lr, share))


def weight_decay(head: HeadSettings, step: int, total: int) -> float:
    """Weight decay of update number `step`, counted from 1: a half cosine from reference to final value."""
    final = head.weight_decay if head.final_weight_decay is None else head.final_weight_decay
    value = _cosine(head.weight_decay, final, step / total)
    return max(final, value) if final <= head.weight_decay else min(final, value)


def warmup_factor(update: int, total: int, warmup: float) -> float:
    """Factor on the regression probe's learning rate for update number `update`, counted from 0; the first is 0."""
    rise = int(total * warmup)
    return update / rise if update < rise else 1.0


def _cosine(start: float, final: float, share: float) -> float:
    return final + (start - final) * 0.5 * (1.0 + math.cos(math.pi * share))
