"""Parity cases: what the published code of the benchmark computes, with weights made from names.

The cases are in the folder named by ``LARY_PARITY_DIR``, or else in ``cases`` beside this file. A case is
``<name>.json`` and, where it has arrays, ``<name>.npz``.
"""

import functools
import json
import os
import re
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lary.models.running import LoadedEncoder, build
from lary.models.spec import MODELS, ModelContext, ModelSpec, Preprocess
from tests.parity import fill

OWN = Path(__file__).parent / "cases"
FOLDER = Path(os.environ.get("LARY_PARITY_DIR") or OWN)
CLAIMED: set[str] = set()
"""Names of the cases that some test has asked for."""
SUMMARY = re.compile(r"[./](first4096|stats)$")
"""Ends of the names of arrays that stand for an output which is too large to be kept."""
PLAIN = "0 + fill_tensor(name, shape)"


@dataclass(frozen=True)
class Case:
    """One parity case: its description and its arrays."""

    name: str
    about: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def config(self) -> dict[str, Any]:
        return self.about["config"]

    def weights(self, *, without: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
        """The state dict of the case, drawn from its key names, but for keys that begin with one of `without`."""
        kept = {key: shape for key, shape in self.about["keys"].items() if not key.startswith(without)}
        return {key: torch.from_numpy(self._weight(key, tuple(shape))) for key, shape in kept.items()}

    def _weight(self, key: str, shape: tuple[int, ...]) -> np.ndarray:
        """One weight by the rule of `fill`, or by the case's exception from it."""
        name, backbone = key, self.about.get("backbone") or {}
        if backbone.get("prefix"):  # the case says whether it is part of the name
            bare, whole = (words in backbone["fill"] for words in ("WITHOUT the prefix", "FULL key, with the prefix"))
            assert bare != whole, f"{self.name}: no reading for the fill of its backbone: {backbone['fill']}"
            name = key.removeprefix(backbone["prefix"]) if bare else key
        rule = self.about.get("fill_overrides", {}).get(key, PLAIN)
        if isinstance(rule, int | float):
            return np.full(shape, rule, dtype=np.float32)
        shift = re.fullmatch(r"([\d.]+) \+ fill_tensor\(name, shape\)", rule)
        assert shift, f"{self.name}: no reading for the fill of {key}: {rule}"
        return np.asarray(fill.fill_tensor(name, shape) + float(shift[1]), dtype=np.float32)

    def draw(self, name: str, then: str = "") -> np.ndarray:
        """The named input before its transform, float32 in [0, 1), whose description has to begin with `then`."""
        entry = self.about["input"][name]
        described = entry.get("then", "")
        assert described.startswith(then), f"{self.name} {name}: no reading for the input '{described}'"
        return fill.uniform(entry["draw"], tuple(entry["shape"]))

    def check(self, name: str, value: Any, within: float | None = None) -> None:
        """Compare `value` with the output called `name`, whole or as its first values and statistics, in tolerance."""
        actual, where = np.asarray(value), f"{self.name} {name}"
        if name not in self.arrays:
            return self._check_summary(name, actual)
        expected = self.arrays[name]
        assert actual.shape == expected.shape, f"{where}: shape {actual.shape}, expected {expected.shape}"
        exact = expected.dtype.kind in "iub"
        limit = 0 if exact else self._tolerance(expected) if within is None else within
        np.testing.assert_allclose(actual, expected, rtol=0, atol=limit, err_msg=where)

    def check_all(self, **values: Any) -> None:
        """Compare `values` with the outputs of the case, every one of them."""
        described = {SUMMARY.sub("", name) for name in self.about["outputs"]}
        assert values.keys() == described == {SUMMARY.sub("", name) for name in self.arrays}
        for name, value in values.items():
            self.check(name, value)

    def _check_summary(self, name: str, actual: np.ndarray) -> None:
        sign = next((sign for sign in "./" if f"{name}{sign}first4096" in self.arrays), None)
        assert sign, f"{self.name} has no output {name}"
        first, statistics = self.arrays[f"{name}{sign}first4096"], self.arrays[f"{name}{sign}stats"]
        outputs, where = self.about["outputs"], f"{self.name} {name}"
        shape = re.search(r"shape (\[[\d, ]*\])", outputs.get(name) or outputs[f"{name}{sign}first4096"])
        assert shape, f"{where}: the case names no shape"
        assert list(actual.shape) == json.loads(shape[1]), f"{where}: shape {actual.shape}, not {shape[1]}"
        flat = actual.astype(np.float64).ravel()
        tolerance = self._tolerance(flat)
        np.testing.assert_allclose(flat[: first.size], first, rtol=0, atol=tolerance, err_msg=where)
        assert_statistics(flat, statistics, tolerance, where)

    def _tolerance(self, values: np.ndarray) -> float:
        largest = float(np.abs(values).max()) if values.size else 0.0
        return max(self.about["atol"], self.about["rtol_of_max"] * largest)


def assert_statistics(values: np.ndarray, expected: np.ndarray, tolerance: float, where: str) -> None:
    """Compare mean, standard deviation and norm of values that differ by at most `tolerance`, float64.

    Means and deviations of such values are within it, too, and norms within its product with sqrt(count).
    """
    limits = tolerance * np.array([1.0, 1.0, values.size**0.5])
    difference = np.abs(np.array([values.mean(), values.std(), np.linalg.norm(values)]) - expected)
    assert (difference <= limits).all(), f"{where}: mean, std, norm differ by {difference}, not {limits}"


@functools.cache
def models_of_cases() -> dict[str, str]:
    """What model each case of the folder says it is of, by the name of its file."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
    return {name: about["model"] for name, about in found.items() if "case" in about}


def case_names(*models: str, names: str = "*", but: tuple[str, ...] = ()) -> list[Any]:
    """Names of the cases as parameters, of which full sizes are slow.

    `models` are patterns of their models, none of them: any; `names` is a pattern of the file's name, which may begin
    like none of `but`.
    """
    cases = models_of_cases().items()
    found = [name for name, model in cases if any(fnmatchcase(model, pattern) for pattern in models or "*")]
    found = [name for name in found if fnmatchcase(name, names) and not name.startswith(but)]
    CLAIMED.update(found)
    return [pytest.param(name, marks=pytest.mark.slow) if "_full" in name else name for name in found]


def load_case(name: str, folder: Path = FOLDER) -> Case:
    """Read a case by name."""
    about, arrays = json.loads((folder / f"{name}.json").read_text()), {}
    if (folder / f"{name}.npz").exists():
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            arrays = dict(file)
    return Case(name, about, arrays)


# Inputs and encoders that tests of several modules need


def normalised(values: np.ndarray, preprocess: Preprocess) -> torch.Tensor:
    """Frames (..., 3, H, W) in [0, 1) with the mean and deviation of a record."""
    mean, std = (np.float32(value)[:, None, None] for value in (preprocess.mean, preprocess.std))
    return torch.from_numpy(np.ascontiguousarray((values - mean) / std))


def open_model(spec: ModelSpec, weights: Path, protocol: Any = "corrected") -> LoadedEncoder:
    """The encoder of a record whose sizes, and therefore shapes of tokens, are a case's."""
    shapes = dict.fromkeys(("pair_shape", "clip_shape", "pair_shape_paper", "clip_shape_paper"), ())
    return build(replace(spec, **shapes), ModelContext("cpu", protocol, weights=str(weights)))


def kept_weights(case: Case) -> dict[str, torch.Tensor]:
    """The weights of a case; small cases come with those that nobody reads, such as training decoders."""
    return case.weights(without=tuple(case.about["ignored_keys"]) if case.about["size"] != "small" else ())


def load_univla(case: Case, folder: Path, **changes: torch.Tensor) -> LoadedEncoder:
    """UniVLA from a Lightning file with the case's weights."""
    content = {"epoch": 3, "state_dict": {f"lam.{key}": value for key, value in (kept_weights(case) | changes).items()}}
    torch.save({**content, "hyper_parameters": {"stage": "stage-2"}}, folder / "lam-stage-2.ckpt")
    backbone = {key: value for key, value in case.about["backbone"]["config"].items() if key not in ("hub", "name")}
    spec = MODELS.get("univla")
    assert backbone.keys() == spec.options["backbone"].keys()
    return open_model(replace(spec, options={"network": case.config, "backbone": backbone}), folder)


def save_villa(case: Case, folder: Path, changes: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    """villa-X's folder with the case's weights and configuration, some of them changed."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"architecture": case.about["upstream_class"], "config": {**case.config, **config}}
    (folder / "model_config.json").write_text(json.dumps({**content, "description": "", "version": 0}))
    save_file(kept_weights(case) | (changes or {}), folder / "model.safetensors")
    return folder


def open_villa(place: Path) -> LoadedEncoder:
    """villa-X from a folder or file."""
    return open_model(MODELS.get("villa-x"), place)


def network_record(case: Case) -> ModelSpec:
    """The record that the case names, with the case's sizes."""
    spec = MODELS.get(case.about.get("trained_model") or case.about["model"])
    options, config = dict(spec.options), dict(case.config)
    if options["features"]:
        backbone = case.about["backbone"]
        assert options["features"]["prefix"] == backbone["prefix"]
        changes: dict[str, Any] = {"config": dict(backbone["config"])}
        if "library" in options["features"]:
            changes["library"] = backbone["class"].split()[0].removeprefix("transformers.")
        else:  # a field that nobody knows fails
            sizes = {k: v for k, v in backbone["config"]["ddconfig"].items() if k not in ("resolution", "double_z")}
            kind = config.pop("model_type")
            changes = {"config": {**sizes, "use_ema": backbone["config"]["use_ema"], "model_type": kind}}
        options["features"] = {**options["features"], **changes}
    flags = {key: value for key, value in options["network"].items() if key in ("patch_input", "pixel_output")}
    options["network"] = {**config, **flags}
    return replace(spec, options=options, preprocess=replace(spec.preprocess, size=config["image_size"]))
