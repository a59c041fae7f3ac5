"""``lary reconstruct``: what a latent action model predicts, and what an action does elsewhere."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lary.data.images import png_bytes
from lary.data.spec import DATASETS
from lary.files import write_bytes, write_json
from lary.lam.codebook import Monitor, verdict
from lary.lam.configs import ReconstructConfig
from lary.lam.data import open_mixture
from lary.lam.network import TrainableModel
from lary.lam.trained import trained_backbone
from lary.models.choices import chosen_model
from lary.models.lapa import LatentActions
from lary.models.preprocess import DeviceNormaliser
from lary.models.spec import ModelContext, locate_weights
from lary.runtime import pick_devices
from lary.settings import Settings
from lary.types import JsonDict, UsageError

GAP, CELL = 2, 96  # pixels between pictures, and of one at least


def reconstruct(config: ReconstructConfig, settings: Settings) -> JsonDict:
    """Measure the reconstruction of pairs; writes ``reconstruction.json`` and ``pictures.png``.

    The content: signals of `Monitor` (``loss_noise`` is the loss of the
    paper's tables) and ``transfer``, the share of pairs that show another
    pair's action once they get its tokens. Raises UsageError for a model
    without a decoder, LaryError for weights that don't fit.
    """
    config.check_counts("pairs", "pictures", "batch_size", "workers")
    spec, values = chosen_model(config), settings.values()
    if not (isinstance(spec.factory, type) and issubclass(spec.factory, LatentActions)):
        raise UsageError(f"Model '{spec.name}' has no decoder: 'lary reconstruct' is for latent action models.")
    device, weights = pick_devices(config.gpus, config.device)[0], locate_weights(spec, values, config.weights)
    context = ModelContext(device, "corrected", weights, config.revision, config.seed, values)
    network, identity = spec.factory.open(spec, context, TrainableModel)
    network = network.to(device).requires_grad_(False)
    encode = trained_backbone(spec, context)[1] if "trained" in spec.options else None
    name = config.dataset
    if name in DATASETS.names():
        name += f":{config.split or DATASETS.get(name).validation}"
    distances = [config.distance] if config.distance else []
    size, workers = spec.preprocess.size, config.workers
    mixture = open_mixture([name], settings, config.seed, size, distances=distances, exclude=False, workers=workers)
    for part in mixture.parts:  # nothing is trained here
        part.heldout = np.union1d(part.units, part.heldout)
    pairs, normalise = mixture.heldout(config.pairs), DeviceNormaliser(spec.preprocess, device)

    def embed(network: Any, pairs: Tensor) -> tuple[Tensor, Tensor | None]:
        clips = normalise(pairs.to(device))
        embedded = network.embed_pairs(clips) if encode is None else encode(clips).float()
        return embedded, pairs[:, 1].to(device) / 255 if network.patch else None

    signals = Monitor(embed, pairs, config.batch_size, config.seed).measure(network)
    transfer, pictures = transferred(network, embed, pairs, config.batch_size, config.pictures)
    content: JsonDict = {
        "model": spec.name,
        "weights": identity.digest,
        "training": spec.options.get("trained", {}),
        "data": [part.name for part in mixture.parts],
        "pairs": len(pairs),
        "reconstruction_loss": signals["loss_noise"],
        "transfer": transfer,
        "signals": signals,
        "verdict": verdict(signals),
    }
    write_json(config.out / "reconstruction.json", json.loads(json.dumps(content, default=str)))
    write_bytes(config.out / "pictures.png", png_bytes(pictures, packing=6))
    return content


@torch.no_grad()
def transferred(network: Any, embed: Any, pairs: Tensor, batch: int, shown: int) -> tuple[float, Any]:
    """Give each pair (2, 3, H, W) uint8 the tokens of the next one.

    Returns the share whose prediction, encoded again, is nearer to the
    other pair's latent than to its own, and rows of pictures: both frames,
    those that the tokens are from, the prediction, and the one with them.
    """
    won, rows = 0, list[Tensor]()
    for part in pairs.split(batch):
        embedded, pixels = embed(network, part)
        first, own = embedded[:, 0], network.latent(embedded)
        other = own.roll(1, 0)
        drawn, moved = (network.decode(first, network.vq.tokens(latent)) for latent in (own, other))
        frames, again = part.to(moved) / 255, moved
        if pixels is not None:
            again = network.embed_pairs(torch.stack([frames[:, 0], moved.clamp(0, 1)], dim=1))[:, 1]
        seen = network.latent(torch.stack([first, again], dim=1))
        won += int(((seen - other).flatten(1).norm(dim=1) < (seen - own).flatten(1).norm(dim=1)).sum())
        shows = [drawn, moved] if pixels is not None else _colours(first, embedded[:, 1], drawn, moved)
        parts = [*frames.unbind(1), *frames.roll(1, 0).unbind(1), *shows]
        if sum(map(len, rows)) < shown:
            rows.append(torch.stack([_picture(each) for each in parts], dim=1))
    found = torch.nn.functional.pad(torch.cat(rows)[:shown], (0, GAP, 0, GAP), value=255)
    return won / len(pairs), np.ascontiguousarray(found.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).numpy())


def _colours(*features: Tensor) -> list[Tensor]:
    """Features (B, H, W, D) as colours (B, 3, H, W): their first three components."""
    rows = torch.stack(features).flatten(0, -2).double().cpu()
    rows = rows - rows.mean(dim=0)
    found = rows @ torch.linalg.eigh(rows.T @ rows)[1][:, -3:].flip(1)
    low, high = found.quantile(0.02, dim=0), found.quantile(0.98, dim=0)
    found = (found - low) / (high - low).clamp(min=1e-12)
    shape = (*features[0].shape[:3], 3)
    return [part.reshape(shape).movedim(-1, 1) for part in found.chunk(len(features))]


def _picture(planes: Tensor) -> Tensor:
    """Planes (B, 3, H, W) in [0, 1], enlarged, uint8."""
    side = max(CELL, planes.shape[-1])
    large = torch.nn.functional.interpolate(planes.float().cpu(), (side, side), mode="nearest")
    return (large.clamp(0, 1) * 255).round().byte()
