"""Presets, which set sizes and training of all probes (``--probe-preset``).

``paper``, whose numbers are the defaults, is the published setting (arXiv
2604.11689). ``demo`` is a short one for a CPU: it ranks representations;
its numbers are not comparable with published ones.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from lary.registry import Registry
from lary.types import UsageError

ProbeKind = Literal["attentive", "mlp", "dit", "ridge"]

TRAINING_STEPS = 1000
"""Timesteps of the diffusion that the DiT probe is trained on."""


@dataclass(frozen=True)
class HeadSettings:
    """Learning rate and weight decay of a head, and the ends of their cosines.

    The learning rate rises from `start_lr` during `warmup` epochs. None stands
    for `lr` and `weight_decay`, respectively.
    """

    lr: float
    weight_decay: float
    final_lr: float = 0.0
    final_weight_decay: float | None = None
    start_lr: float | None = None
    warmup: float = 0.0


def learning_rate(head: HeadSettings, step: int, total: int, per_epoch: int) -> float:
    """Learning rate of update `step` in 1..`total`, `per_epoch` in an epoch.

    A linear rise over ``head.warmup`` epochs, then a half cosine that reaches
    ``final_lr`` with the very last update.
    """
    rise = int(head.warmup * per_epoch)
    if step < rise:
        start = head.lr if head.start_lr is None else head.start_lr
        return start + step / max(1, rise) * (head.lr - start)
    share = (step - rise) / max(1, total - rise)
    return max(head.final_lr, _cosine(head.lr, head.final_lr, share))


def weight_decay(head: HeadSettings, step: int, total: int) -> float:
    """Weight decay of update `step`, from 1: a half cosine to its final value."""
    final = head.weight_decay if head.final_weight_decay is None else head.final_weight_decay
    value = _cosine(head.weight_decay, final, step / total)
    return max(final, value) if final <= head.weight_decay else min(final, value)


def _cosine(start: float, final: float, share: float) -> float:
    return final + (start - final) * 0.5 * (1.0 + math.cos(math.pi * share))


PUBLISHED = (5e-3, 0.01), (3e-3, 0.1), (1e-3, 0.4), (3e-4, 0.8), (1e-4, 0.01)
"""Learning rates and weight decays of the five published heads."""


@dataclass(frozen=True)
class ClassifierSettings:
    """The attentive probe.

    `depth` includes the cross-attention block. `bfloat16` applies where the
    device has it and ``--precision`` is not given. `standardise` brings
    channels to mean 0 and standard deviation 1; the published probe doesn't,
    and learns little from small values in few epochs.
    """

    model_dim: int = 768
    num_heads: int = 16
    depth: int = 4
    epochs: int = 20
    batch_size: int = 256
    heads: tuple[HeadSettings, ...] = tuple(HeadSettings(*rates) for rates in PUBLISHED)
    max_temporal_len: int = 128
    label_smoothing: float = 0.1
    bfloat16: bool = False
    standardise: bool = False


@dataclass(frozen=True)
class RegressorSettings:
    """The MLP probe; its learning rate rises for a share `warmup` of updates."""

    hidden_dim: int = 4096
    num_blocks: int = 2
    epochs: int = 20
    batch_size: int = 256
    lr: float = 1e-4
    weight_decay: float = 1e-4
    warmup: float = 0.1


@dataclass(frozen=True)
class DitSettings:
    """The DiT probe; other `sampler_steps` than the published 500 are DDIM's."""

    hidden_dim: int = 512
    depth: int = 6
    num_heads: int = 8
    epochs: int = 20
    batch_size: int = 256
    lr: float = 1e-4
    weight_decay: float = 1e-4
    warmup: float = 0.1
    sampler_steps: int = 500


@dataclass(frozen=True)
class RidgeSettings:
    """The ridge probe: penalties in mean non-zero eigenvalues of the Gram matrix."""

    shrinkages: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)
    batch_size: int = 256

    @property
    def epochs(self) -> int:
        """Number of fits, one per penalty."""
        return len(self.shrinkages)


# Options of the command line by field, for messages.
OPTIONS = {"epochs": "epochs", "batch_size": "probe-batch-size", "sampler_steps": "sampler-steps"}
ActionSettings = RegressorSettings | DitSettings | RidgeSettings


@dataclass(frozen=True)
class ProbePreset:
    """Settings of all probes under one name, which every result states."""

    name: str
    classifier: ClassifierSettings = ClassifierSettings()
    regressor: RegressorSettings = RegressorSettings()
    dit: DitSettings = DitSettings()
    ridge: RidgeSettings = RidgeSettings()

    def settings(
        self, kind: ProbeKind, epochs: int | None, batch_size: int | None, sampler_steps: int | None = None
    ) -> Any:
        """Settings of a kind of probe, with given values. Raises UsageError."""
        names: dict[str, str] = {"attentive": "classifier", "mlp": "regressor"}
        own: Any = getattr(self, names.get(kind, kind))
        given = {"epochs": epochs, "batch_size": batch_size, "sampler_steps": sampler_steps}
        changes = {name: value for name, value in given.items() if value is not None}
        for name, value in changes.items():
            option = f"--{OPTIONS[name]} {value}"
            if kind == "ridge" or not hasattr(own, name):
                raise UsageError(f"{option}: the probe {kind} takes none; leave it out, or take the probe dit.")
            if name == "sampler_steps" and not 1 <= value <= TRAINING_STEPS:
                raise UsageError(f"{option}: must be from 1 to {TRAINING_STEPS}; 500 is published.")
        return replace(own, **changes)


PRESETS: Registry[ProbePreset] = Registry("probe preset")

PRESETS.add(ProbePreset(name="paper", classifier=ClassifierSettings(bfloat16=True)))

DEMO = (2e-2, 0.01), (7e-3, 0.4)
BRIEF: Any = {"epochs": 20, "batch_size": 32, "lr": 1e-3, "weight_decay": 1e-2}

PRESETS.add(
    ProbePreset(
        name="demo",
        classifier=ClassifierSettings(
            model_dim=32,
            num_heads=4,
            depth=1,
            epochs=8,
            batch_size=16,
            standardise=True,
            heads=tuple(HeadSettings(*rates) for rates in DEMO),
        ),
        regressor=RegressorSettings(hidden_dim=128, num_blocks=1, **BRIEF),
        dit=DitSettings(hidden_dim=64, depth=2, num_heads=4, sampler_steps=10, **BRIEF),
    )
)
