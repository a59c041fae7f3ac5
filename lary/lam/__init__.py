"""Training of latent action models: the command, networks, codebooks, loop and data."""

from __future__ import annotations

import json
import math
import re
import shutil
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lary.types import JsonDict, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lary.lam.configs import TrainLamConfig
    from lary.probes.team import Team
    from lary.settings import Settings


IN_NAME = {"backbone", "codebook_size", "code_length", "quant_dim", "lr", "out"}


def train_lam(config: TrainLamConfig, settings: Settings) -> JsonDict:
    """Train a latent action model, or resume; returns the content of ``training.json``.

    Raises UsageError, LaryError for one that diverged or collapsed.
    """
    from lary.files import read_json, remove_torn
    from lary.lam import training
    from lary.lam.trained import RECORD
    from lary.locks import locked
    from lary.probes.team import Team, launch
    from lary.registry import loaded_plugins
    from lary.runtime import pick_devices

    config.check_counts(
        "codebook_size",
        "quant_dim",
        "depth",
        "heads",
        "patch_size",
        "steps",
        "batch_size",
        "accumulate",
        "monitor_pairs",
        "validate_every",
        "workers",
    )
    if config.lr is not None and not 0 < config.lr < math.inf:
        raise UsageError(f"--lr {config.lr}: must be above 0.")
    devices = pick_devices(config.gpus, config.device, every=True)
    with locked(config.out):
        remove_torn(config.out, below=True)
        if config.overwrite:
            shutil.rmtree(config.out / training.WORK, ignore_errors=True)
        if len(devices) > 1:
            launch(train_member, (config, settings, loaded_plugins()), devices)
        else:
            train_member(config, settings, (), Team(), devices[0])
    return dict(read_json(config.out / RECORD, "record of the training"))


def training_name(config: TrainLamConfig, varied: Iterable[str]) -> str:
    """A name such as ``dinov3-cs64_sl49_dim256_lr1e-4``, and other varied options. Raises UsageError."""
    from lary.models.spec import MODELS, builtin

    spec = MODELS.get(config.backbone)
    own = spec.options.get("network")
    base = builtin("dinov3").options["network"]
    sizes = own or base | {"code_seq_len": None}
    rate = re.sub(r"\.?0*e(-?)\+?0*(?=\d)", r"e\1", f"{config.rate(spec.ablation):e}")
    parts = {
        "cs": config.codebook_size or sizes["codebook_size"],
        "sl": config.code_length or sizes["code_seq_len"],
        "dim": config.quant_dim or sizes["quant_dim"],
        "lr": rate,
    }
    parts |= {name: getattr(config, name) for name in sorted({*varied} - IN_NAME)}
    name = re.split("-cs|/", spec.name.rstrip("/"))[0 if own else -1]
    text = "_".join(f"{key}{value}" for key, value in parts.items() if value is not None)
    return re.sub(r"[^\w.+-]+", "-", f"{name}-{text}")


def is_trained(config: TrainLamConfig) -> bool:
    """Whether the folder has this training, finished. Raises LaryError."""
    from lary.files import read_json
    from lary.lam.trained import RECORD
    from lary.lam.training import NOT_DECIDING

    if not (config.out / RECORD).is_file():
        return False
    record = read_json(config.out / RECORD, "record of the training")
    given = json.loads(json.dumps(asdict(config), default=str))
    wanted = {name for name in given.keys() - NOT_DECIDING if given[name] is not None}
    try:
        done = record["finished"] and record["steps"] == config.steps
        return bool(done and all(record["options"][name] == given[name] for name in wanted))
    except (LookupError, TypeError, AttributeError):
        return False


def train_member(
    config: TrainLamConfig, settings: Settings, plugins: tuple[Path, ...], team: Team, device: str
) -> None:
    """Work of each process of a training."""
    from lary.lam.data import open_mixture
    from lary.lam.network import open_backbone
    from lary.lam.training import LamTraining
    from lary.probes.training import Session, tracking
    from lary.registry import load_plugin
    from lary.runtime import progress

    for plugin in plugins:
        load_plugin(plugin)
    backbone = open_backbone(config, settings, device)
    pairs: Any = open_mixture(
        config.dataset,
        settings,
        config.seed,
        backbone.preprocess.size,
        weights=config.weight,
        distances=config.distance,
        workers=config.workers,
    )
    if config.cache_features:
        from lary.lam.features import FeaturePairs

        pairs = FeaturePairs(pairs, backbone, settings.path("LARY_LA_DIR") / "features", device)
    title = f"training on {backbone.spec.name}"
    tracker = config.tracker if team.leads else "none"
    with (
        closing(pairs),  # frees its readers
        progress(config.steps, title, "step") if team.leads else nullcontext() as bar,
        tracking(tracker, config.out, config.out.name, asdict(config)) as tracked,
    ):
        session = Session(
            protocol=config.recipe,
            seed=config.seed,
            device=device,
            folder=config.out,
            progress=bar,
            tracker=tracked,
            team=team,
        )
        LamTraining(config, backbone, pairs, session).run()
