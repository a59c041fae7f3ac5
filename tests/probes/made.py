"""Made-up latents with something to learn, and small trainings on them, for the tests of all probes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from lary.probes.classify import ClassifierInputs, train_classifier
from lary.probes.outcome import ClassificationOutcome, RegressionOutcome, SampleColumns
from lary.probes.presets import ClassifierSettings, DitSettings, HeadSettings, ProbePreset, RegressorSettings
from lary.probes.regress import EvaluatedSplit, RegressorInputs, train_regressor
from lary.probes.training import Session

CLASSES = ("close", "open", "pull", "push")
KINDS = ("attentive", "mlp", "dit", "ridge")
TINY = ProbePreset(
    name="tiny",
    classifier=ClassifierSettings(
        model_dim=16, num_heads=2, depth=1, epochs=10, batch_size=16, standardise=True,
        heads=(HeadSettings(1e-2, 0.01), HeadSettings(5e-3, 0.1)),
    ),
    regressor=RegressorSettings(hidden_dim=32, num_blocks=1, epochs=20, batch_size=16, lr=1e-2, weight_decay=1e-4),
    dit=DitSettings(hidden_dim=16, depth=1, num_heads=2, epochs=3, batch_size=16, lr=1e-2, sampler_steps=4),
)  # fmt: skip

Outcome = ClassificationOutcome | RegressionOutcome


@dataclass
class InMemory:
    """Latents in memory."""

    tokens: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tokens.shape[1:]

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        return self.tokens[np.asarray(rows)]


class Killed(Exception):
    """The end of a process."""


class Bar:
    """Progress that counts rows, and ends the training after so many steps."""

    def __init__(self, steps: int = 0) -> None:
        self.left, self.total, self.skipped = steps, 0, 0

    def advance(self, count: int = 1) -> None:
        self.left -= 1
        self.total += count
        if not self.left:
            raise Killed

    def skip(self, count: int) -> None:
        self.skipped += count


def columns(count: int) -> SampleColumns:
    names = tuple(f"v{index}" for index in range(count))
    return SampleColumns(names, tuple((f"{name}.mp4",) for name in names), names, ("arm",) * count)


def clips(count: int, signal: float, seed: int) -> tuple[InMemory, np.ndarray]:
    """Tokens (n, 3, 4, 6): noise, and in one token of each step a pattern of the class and the step."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(99).standard_normal((len(CLASSES), 3, 6))
    labels = np.arange(count) % len(CLASSES)
    tokens = rng.standard_normal((count, 3, 4, 6))
    tokens[:, :, 0] += signal * patterns[labels]
    return InMemory(tokens.astype(np.float32)), labels


def classifier_inputs(signal: float = 4.0, train: int = 80, validation: int = 36) -> ClassifierInputs:
    (source, labels), (shown, truth) = clips(train, signal, 0), clips(validation, signal, 1)
    return ClassifierInputs(source, labels, shown, truth, columns(validation), CLASSES)


def regressor_inputs(noise: float = 0.05, train: int = 120, count: int = 40) -> RegressorInputs:
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((24, 6)) / math.sqrt(24)
    tokens = rng.standard_normal((train + 2 * count, 2, 3, 4)).astype(np.float32)
    chunks = tokens.reshape(len(tokens), -1) @ mixing + noise * rng.standard_normal((len(tokens), 6))
    chunks = chunks.reshape(-1, 2, 3).astype(np.float32)
    splits = {}
    for number, role in enumerate(("seen", "unseen")):
        rows = slice(train + number * count, train + (number + 1) * count)
        scale = np.ones((count, 3), np.float32)
        splits[role] = EvaluatedSplit(InMemory(tokens[rows]), chunks[rows], columns(count), 0 * scale, scale)
    groups = tuple(f"episode{index // 3}" for index in range(train))
    parts = {"position": (0, 1), "gripper": (2,)}
    return RegressorInputs(InMemory(tokens[:train]), chunks[:train], groups, splits, ("x", "y", "gripper"), parts)


def changed(inputs: Any, change: Any) -> Any:
    """Inputs of either kind of probe, with `change` applied to the tokens of every split."""
    own = {"train": InMemory(change(inputs.train.tokens))}
    if isinstance(inputs, ClassifierInputs):
        return replace(inputs, **own, validation=InMemory(change(inputs.validation.tokens)))
    splits = dict(inputs.evaluated)
    for role, split in splits.items():
        splits[role] = replace(split, latents=InMemory(change(split.latents.tokens)))
    return replace(inputs, **own, evaluated=splits)


def train(kind: Any, inputs: Any = None, preset: ProbePreset = TINY, **options: Any) -> Any:
    """A small training of one kind of probe; options are those of a session, of the settings, and ``precision``."""
    own = {field.name: options.pop(field.name) for field in fields(Session) if field.name in options}
    session = Session(**{"protocol": "corrected", "seed": 42, "preset": "tiny", **own})
    given = {name: options.pop(name, None) for name in ("epochs", "batch_size", "sampler_steps")}
    settings = preset.settings(kind, **given)
    if kind == "attentive":
        return train_classifier(inputs or classifier_inputs(), settings, session, **options)
    return train_regressor(inputs or regressor_inputs(), settings, session)


def numbers(outcome: Outcome) -> dict[str, np.ndarray]:
    """All predictions of an outcome, and its history as text."""
    found = {"history": np.array(repr(outcome.history))}
    if isinstance(outcome, ClassificationOutcome):
        return found | {name: chosen.logits for name, chosen in outcome.selections.items()}
    for role, split in outcome.splits.items():
        found |= {f"{role} {name}": chosen.values for name, chosen in split.selections.items()}
    return found


def assert_same(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)
