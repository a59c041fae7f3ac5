"""Measures and draws what a latent action model predicts, and what an action does elsewhere.

    python examples/reconstruct_lam.py lam:lam/first calvin --out pictures

The model is a trained one, or one of the LAQ family with released weights, whose decoder has to fit exactly; the data
are KEY (its validation split), KEY:SPLIT, or a folder. ``reconstruction.json`` has the signals of the collapse monitor,
of which ``loss_noise`` is the loss of the paper's tables, and ``transfer``, the share of pairs that show another pair's
action once they get its tokens. ``pictures.png`` has a row per pair: both frames, the frames that the other tokens are
from, the prediction, and the first frame with the other tokens. Features are shown by their first three components,
those of both frames before the two predictions.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lary.data.images import png_bytes
from lary.data.spec import DATASETS
from lary.files import write_bytes, write_json
from lary.lam.codebook import Monitor, verdict
from lary.lam.data import open_mixture
from lary.lam.network import TrainableModel
from lary.lam.trained import trained_backbone
from lary.models.lapa import LatentActions
from lary.models.preprocess import DeviceNormaliser
from lary.models.spec import MODELS, ModelContext, locate_weights
from lary.runtime import pick_devices
from lary.settings import load_settings
from lary.types import LaryError, UsageError

CELL = 98  # pixels of a picture, two of them its frame


def reconstruct(options: Any) -> dict[str, Any]:
    """Measure and draw; returns the content of ``reconstruction.json``."""
    settings = load_settings({"LARY_ROOT": options.lary_root, "DATA_DIR": options.data_dir})
    spec, values = MODELS.get(options.model), settings.values()
    if not (isinstance(spec.factory, type) and issubclass(spec.factory, LatentActions)):
        raise UsageError(f"Model '{spec.name}' has no decoder: name a latent action model.")
    device = pick_devices(None, "auto")[0]
    context = ModelContext(device, "corrected", locate_weights(spec, values, options.weights), settings=values)
    network, identity = spec.factory.open(spec, context, TrainableModel)
    network = network.to(device).requires_grad_(False)
    encode = trained_backbone(spec, context)[1] if "trained" in spec.options else None
    name = options.dataset
    if name in DATASETS.names():
        name += f":{DATASETS.get(name).validation}"
    distances = [options.distance] if options.distance else []
    mixture = open_mixture([name], settings, 0, spec.preprocess.size, distances=distances, exclude=False)
    for part in mixture.parts:  # nothing is trained here
        part.heldout = np.union1d(part.units, part.heldout)
    pairs, normalise = mixture.heldout(options.pairs), DeviceNormaliser(spec.preprocess, device)

    def embed(network: Any, pairs: Tensor) -> tuple[Tensor, Tensor | None]:
        clips = normalise(pairs.to(device))
        embedded = network.embed_pairs(clips) if encode is None else encode(clips).float()
        return embedded, pairs[:, 1].to(device) / 255 if network.patch else None

    signals = Monitor(embed, pairs, 32, 0).measure(network)
    transfer, pictures = transferred(network, embed, pairs, options.pictures)
    content = {
        "model": spec.name, "weights": identity.digest, "training": spec.options.get("trained", {}), "data": name,
        "pairs": len(pairs), "transfer": transfer, "signals": signals, "verdict": verdict(signals)["text"],
    }  # fmt: skip
    write_json(options.out / "reconstruction.json", json.loads(json.dumps(content, default=str)))
    write_bytes(options.out / "pictures.png", png_bytes(pictures, packing=6))
    return content


@torch.no_grad()
def transferred(network: Any, embed: Any, pairs: Tensor, shown: int) -> tuple[float, Any]:
    """Give each pair (2, 3, H, W) uint8 the tokens of the next one.

    Returns the share whose prediction, encoded again, is nearer to the
    other latent than to its own, and rows of pictures: both frames, those
    that the tokens are from, the prediction, and the one with them.
    """
    won, rows = 0, list[Tensor]()
    for part in pairs.split(32):
        embedded, pixels = embed(network, part)
        first, own = embedded[:, 0], network.latent(embedded)
        other, frames = own.roll(1, 0), part.to(own) / 255
        drawn, moved = (network.decode(first, network.vq.tokens(latent)) for latent in (own, other))
        again, shows = moved, [drawn, moved]
        if pixels is None:
            shows = _colours(first, embedded[:, 1], drawn, moved)
        else:
            again = network.embed_pairs(torch.stack([frames[:, 0], moved.clamp(0, 1)], dim=1))[:, 1]
        seen = network.latent(torch.stack([first, again], dim=1))
        won += int(((seen - other).flatten(1).norm(dim=1) < (seen - own).flatten(1).norm(dim=1)).sum())
        parts = [*frames.unbind(1), *frames.roll(1, 0).unbind(1), *shows]
        side = CELL - 2
        large = [F.pad(F.interpolate(each.float().cpu().clamp(0, 1), side), (0, 2, 0, 2), value=1) for each in parts]
        rows.append(torch.stack(large, dim=1))
    sheet = torch.cat(rows)[:shown].permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return won / len(pairs), np.ascontiguousarray((sheet * 255).round().byte().numpy())


def _colours(*features: Tensor) -> list[Tensor]:
    """Features (B, H, W, D) as colours (B, 3, H, W): their first three components."""
    rows = torch.stack(features).flatten(0, -2).double().cpu()
    found = (rows - rows.mean(dim=0)) @ torch.linalg.eigh(rows.T.cov())[1][:, -3:].flip(1)
    low, high = found.quantile(0.02, dim=0), found.quantile(0.98, dim=0)
    found = ((found - low) / (high - low).clamp(min=1e-12)).unflatten(0, (len(features), *features[0].shape[:3]))
    return list(found.movedim(-1, 2))


def main() -> None:
    """Read the options, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights")
    parser.add_argument("--distance")
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--lary-root")
    parser.add_argument("--data-dir")
    try:
        found = reconstruct(parser.parse_args())
    except LaryError as error:
        raise SystemExit(f"reconstruct_lam: {error}") from None
    print(f"{found['model']} on {found['pairs']} pairs of {found['data']}, {found['verdict']}")
    print(f"reconstruction loss {found['signals']['loss_noise']:.5g}, actions transferred {found['transfer']:.1%}")
    print(*(f"  {name:20} {value:.4g}" for name, value in found["signals"].items()), sep="\n")


if __name__ == "__main__":
    main()
