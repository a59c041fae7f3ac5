"""``lary reconstruct``: what a latent action model predicts."""

import json
from collections import Counter
from contextlib import closing
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lary.data.spec import DATASETS
from lary.files import write_bytes, write_json
from lary.lam.codebook import codebook_use, compare_tokens, seeded
from lary.lam.configs import ReconstructConfig
from lary.lam.data import PairMixture, open_source
from lary.lam.network import TrainableModel, embed_raw
from lary.lam.trained import trained_backbone
from lary.locks import locked
from lary.models.lapa import LatentActions
from lary.models.preprocess import DeviceNormaliser
from lary.models.spec import MODELS, ModelContext, locate_weights
from lary.results.figures import new_figure, render
from lary.runtime import pick_devices, progress, set_arithmetic, within_memory
from lary.settings import Settings
from lary.types import JsonDict, UsageError

RECORD, PICTURES = "reconstruct.json", "reconstruct.png"
CELL = 98  # pixels of a picture and its frame
COLUMNS = ("first", "second", "other's first", "other's second", "features", "reconstruction", "with other's action")


def reconstruct(config: ReconstructConfig, settings: Settings) -> JsonDict:
    """Measure and draw reconstructions; returns the content of ``reconstruct.json``.

    Raises UsageError, LaryError.
    """
    config.check_counts("pairs", "pictures", "batch_size", "workers")
    device = pick_devices(config.gpus, config.device)[0]
    set_arithmetic(device)
    spec, network, embed, weights = open_decoder(config, settings, device)
    name = config.dataset
    if name in DATASETS.names():
        name += f":{DATASETS.get(name).validation}"
    source = open_source(name, settings, config.distance, exclude=False)
    source.units = np.random.default_rng(config.seed % 2**63).permutation(source.count)
    mixture = PairMixture([source], config.seed, spec.preprocess.size, workers=config.workers)
    mixture.ordered = True
    count = min(config.pairs, source.count if source.distance is None else config.pairs)
    if count < 2:
        raise UsageError(f"--pairs {count}: pairs exchange their tokens, so at least 2 are needed.")
    sums, shown = Counter[str](), list[Tensor]()
    used = torch.zeros(len(network.vq.codebooks))
    draw = seeded(config.seed, "reconstruct")
    # No part has a single pair.
    parts = np.array_split(np.arange(count), max(1, min(-(-count // config.batch_size), count // 2)))
    with closing(mixture), progress(count, f"reconstruction by {config.model}", "pair") as bar:
        for rows in parts:
            pairs = mixture.batch(0, rows.tolist())
            with within_memory(device, "pass a smaller --batch-size"):
                found, own, pictures = compare_tokens(network, embed, pairs, draw)
            sums.update(own)
            used += torch.bincount(found.codes.flatten().cpu(), minlength=len(used))
            if sum(map(len, shown)) < config.pictures * CELL:
                shown.append(sheet_of(pairs, None if network.patch else found.target, pictures))
            bar.advance(len(rows))
    if sums["copy"] < 1e-11:
        raise UsageError(f"All pairs of {name} are static: raise --distance or check the media.")
    mean = {name: max(value / count, 1e-30) for name, value in sums.items()}
    numbers = {"reconstruction_loss": mean["noise"], "copy_loss": mean["copy"]}
    numbers["margin"] = 1 - mean["noise"] / mean["copy"]
    for kind in ("hard", "continuous"):
        numbers |= {f"loss_{kind}": mean[kind], f"gap_{kind}": mean[f"other_{kind}"] / mean[kind] - 1}
    numbers |= {"pairs": count} | codebook_use(used)
    content = {
        "schema": 1,
        "options": asdict(config),
        "data": name,
        "target": "pixels" if network.patch else "features",
        "weights": asdict(weights),
        "training": spec.options.get("trained", {}),
        "numbers": numbers,
        "samples": mixture.ids(range(count)),
    }
    title = f"{config.model} on {name}: loss {mean['noise']:.4g}, of copying {mean['copy']:.4g}"
    with locked(config.out):
        write_bytes(config.out / PICTURES, picture_of(torch.cat(shown)[: config.pictures * CELL], title))
        write_json(config.out / RECORD, json.loads(json.dumps(content, default=str)))
    return content


def open_decoder(config: ReconstructConfig, settings: Settings, device: str) -> tuple[Any, ...]:
    """A model, its network, what embeds raw pairs for it, its weights."""
    spec = MODELS.get(config.model)
    values = settings.values()
    if not (isinstance(spec.factory, type) and issubclass(spec.factory, LatentActions)):
        known = "lam:FOLDER, lapa, dinov2, dinov3, siglip2, magvit2, or an ablation"
        raise UsageError(f"It isn't known how tokens of '{spec.name}' enter a decoder: name {known}.")
    context = ModelContext(device, "corrected", locate_weights(spec, values, config.weights), settings=values)
    network, identity = spec.factory.open(spec, context, TrainableModel)
    encode = trained_backbone(spec, context)[1] if "trained" in spec.options else None
    normalise = DeviceNormaliser(spec.preprocess, device)

    def embed(network: Any, pairs: Tensor) -> Any:
        return embed_raw(network, pairs.to(device), normalise, encode)

    return spec, network.to(device).requires_grad_(False), embed, identity


def sheet_of(pairs: Tensor, features: Tensor | None, pictures: dict[str, Tensor]) -> Tensor:
    """Pictures (B * CELL, C * CELL, 3) of pairs (B, 2, 3, H, W); `features` (B, H, W, D) by three components."""
    drawn = [pictures["continuous"], pictures["other_continuous"]]
    frames = pairs / 255
    if features is not None:
        rows = torch.stack([features, *drawn]).double().cpu()
        flat = rows.flatten(0, -2)
        found = (flat - flat.mean(dim=0)) @ torch.linalg.eigh(flat.T.cov())[1][:, -3:].flip(1)
        low = found.quantile(0.02, dim=0)
        high = found.quantile(0.98, dim=0)
        found = ((found - low) / (high - low).clamp(min=1e-12)).unflatten(0, rows.shape[:-1])
        drawn = list(found.movedim(-1, 2))
    parts = (*frames.unbind(1), *frames.roll(1, 0).unbind(1), *drawn)
    cells = torch.cat([F.interpolate(each.float().cpu().clamp(0, 1), CELL - 2) for each in parts])
    cells = torch.unflatten(F.pad(cells, (1, 1, 1, 1), value=1), 0, (len(parts), -1))
    return cells.permute(1, 3, 0, 4, 2).flatten(2, 3).flatten(0, 1)


def picture_of(sheet: Tensor, title: str) -> bytes:
    """A PNG of `sheet_of`."""
    height = sheet.shape[0] / CELL
    width = sheet.shape[1] // CELL
    with new_figure(1.3 * width, 1.3 * height + 0.7) as figure:
        axes = figure.subplots()
        axes.imshow(sheet.numpy(), interpolation="nearest")
        axes.set_xticks([CELL * (at + 0.5) for at in range(width)], COLUMNS[:4] + COLUMNS[4 - width :], fontsize=7)
        axes.tick_params(labeltop=True, labelbottom=False, length=0)
        axes.set_yticks([])
        axes.set_title(title, fontsize=9)
        return render(figure, "png")
