"""Time and memory of every model at its full size on this machine, with random weights: no files are needed.

    python benchmarks/models.py [dinov2-origin lapa ...] [--repeats 5] [--precision fp32] [--batch 2]

Without names, all models of the benchmark. Each has a process of its own, one after the other, so that its peak memory
is its own; a model that fails is named, and the others go on. In it three ways take turns on the same preprocessed
image pairs, and medians are printed:

- ``encode``: the encoder, as extraction calls it;
- ``bare``: the network's own forward pass and nothing else, in a plain loop over the same items. On the CPU that is
  one pair (or frame, where the encoder runs frames) at a time, as `encode` does it so that tokens don't depend on the
  batch; elsewhere it is the whole batch at once. The two must give the same bits;
- ``batched``: the bare network on the whole batch at once.

``ratio`` is the median of encode / bare over the repeats, on the CPU of processor time, so that other programs on a
busy machine don't count. Peak memory is that of the process, libraries and the drawing of weights included; on a CUDA
device it is what torch had of the device's.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lary.models.running import build
from lary.models.spec import MODELS, ModelContext, ModelSpec
from lary.runtime import pick_devices
from lary.types import RANDOM

if TYPE_CHECKING:
    import torch

Network = Callable[["torch.Tensor"], "torch.Tensor"]
COLUMNS = ("model", "params (M)", "encode s/pair", "bare s/pair", "batched s/pair", "ratio", "same bits", "peak GiB")


def main() -> int:
    """Measure every model in a process of its own and print the table. Returns 1 if a model failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    published = [spec.name for spec in MODELS if is_published(spec)]
    parser.add_argument("models", nargs="*", choices=[[], *published], default=[], metavar="MODEL")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=2, help="image pairs")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--inside", metavar="MODEL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(measure(MODELS.get(options.inside), options)))
        return 0
    print("".join(name.rjust(16) for name in COLUMNS), flush=True)
    failed = []
    for name in options.models or published:
        command = [sys.executable, __file__, *sys.argv[1:], "--inside", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            failed.append(name)
            print(f"{name.rjust(16)}{'failed':>16} (exit code {done.returncode}, see above)", flush=True)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        cells = [name, f"{MODELS.get(name).parameters_m:.2f}"]
        cells += [f"{found[way]:.3f}" for way in ("encode", "bare", "batched", "ratio")]
        cells += ["yes" if found["same"] else "NO", f"{found['peak']:.2f}"]
        print("".join(cell.rjust(16) for cell in cells), flush=True)
    return 1 if failed else 0


def is_published(spec: ModelSpec) -> bool:
    """The models of the benchmark's table; its ablations have the architecture of one of these."""
    return spec.weights is not None and not spec.ablation


def measure(spec: ModelSpec, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds per pair of each way, the ratio, whether tokens agree, and peak memory in GiB."""
    import torch

    device = pick_devices(None, options.device)[0]
    encoder = build(spec, ModelContext(device, "corrected", RANDOM), precision=options.precision)
    size = spec.preprocess.size
    pairs = torch.randn(options.batch, 2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    items, network = bare_network(encoder.author, pairs)
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[options.precision]

    def bare(parts: list[torch.Tensor]) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast(torch.device(device).type, dtype, enabled=dtype is not None):
            return torch.cat([network(part) for part in parts])

    alone = [items[place : place + 1] for place in range(len(items))] if device == "cpu" else [items]
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "encode": torch.inference_mode()(lambda: encoder.encode(pairs).tokens),
        "bare": lambda: bare(alone),
        "batched": lambda: bare([items]),
    }
    same = torch.equal(ways["encode"]().flatten(), ways["bare"]().flatten())  # also the warm-up
    times: dict[str, list[float]] = {name: [] for name in ways}
    work: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(options.repeats):
        for name in list(ways)[:: 1 if repeat % 2 else -1]:
            wall, processor = seconds(ways[name], device)
            times[name].append(wall / options.batch)
            work[name].append(processor if device == "cpu" else wall)
    ratios = [encode / plain for encode, plain in zip(work["encode"], work["bare"], strict=True)]
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {**medians, "ratio": statistics.median(ratios), "same": same, "peak": peak_memory(device)}


def peak_memory(device: str) -> float:
    """The most memory that was in use until now, in GiB: the device's if it is a CUDA one, else the process's."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def seconds(way: Callable[[], torch.Tensor], device: str) -> tuple[float, float]:
    """How long a way takes once, on the clock and of processor time."""
    import torch

    started, processor = time.perf_counter(), time.process_time()
    way()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started, time.process_time() - processor


def bare_network(encoder: Any, pairs: torch.Tensor) -> tuple[torch.Tensor, Network]:
    """What a model's network takes for these pairs (B, 2, 3, H, W), item by item, and its forward pass to tokens."""
    from lary.models import embodied, image, lapa, released

    makers: dict[type, Callable[[Any, torch.Tensor], tuple[torch.Tensor, Network]]] = {
        image.ImageEncoder: bare_image,
        lapa.LatentActions: bare_laq,
        embodied.UniVLA: bare_univla,
        embodied.VillaX: lambda encoder, pairs: (pairs, lambda clips: encoder.network(clips)[0]),
        released.WanEncoder: bare_wan,
        released.FluxEncoder: bare_flux,
        released.EfficientNetEncoder: lambda encoder, pairs: (pairs.flatten(0, 1), encoder.run),
        released.VJepaEncoder: lambda encoder, pairs: (
            pairs, lambda clips: encoder._network.encoder(pixel_values_videos=clips).last_hidden_state
        ),
    }  # fmt: skip
    return makers[type(encoder)](encoder, pairs)


def bare_image(encoder: Any, pairs: torch.Tensor) -> tuple[torch.Tensor, Network]:
    """A backbone of transformers on the frames of a pair."""
    model, leading = encoder._model, encoder._leading
    return pairs, lambda clips: model(pixel_values=clips.flatten(0, 1)).last_hidden_state[:, leading:]


def bare_laq(encoder: Any, pairs: torch.Tensor) -> tuple[torch.Tensor, Network]:
    """A latent action model: frames to features, features to the latent, the latent to tokens."""
    network = encoder._network

    def forward(clips: torch.Tensor) -> torch.Tensor:
        embedded = network.embed(clips.flatten(0, 1))
        tokens: torch.Tensor = network.vq.tokens(network.latent(embedded.reshape(len(clips), 2, *embedded.shape[1:])))
        return tokens

    return pairs, forward


def bare_univla(encoder: Any, pairs: torch.Tensor) -> tuple[torch.Tensor, Network]:
    """DINOv2's patch features, then the latent action network."""
    backbone, network, leading = encoder.backbone, encoder.network, encoder._leading

    def forward(clips: torch.Tensor) -> torch.Tensor:
        features = backbone(pixel_values=clips.flatten(0, 1)).last_hidden_state[:, leading:]
        tokens: torch.Tensor = network(features.unflatten(0, clips.shape[:2]))[0]
        return tokens

    return pairs, forward


def bare_wan(encoder: Any, pairs: torch.Tensor) -> tuple[torch.Tensor, Network]:
    """The autoencoder on single frames, and its constants."""
    network, mean, scale = encoder._network, encoder._mean, encoder._scale

    def forward(videos: torch.Tensor) -> torch.Tensor:
        latents: torch.Tensor = (network.encode(videos).latent_dist.mode() - mean) * scale
        return latents.flatten(2).transpose(1, 2)

    return pairs.flatten(0, 1)[:, :, None], forward


def bare_flux(encoder: Any, pairs: torch.Tensor) -> tuple[torch.Tensor, Network]:
    """The autoencoder on frames, its folding of 2 x 2 cells and its constants."""
    network, mean, std = encoder._network, encoder._mean, encoder._std

    def forward(images: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import pixel_unshuffle

        latents: torch.Tensor = (pixel_unshuffle(network.encode(images).latent_dist.mode(), 2) - mean) / std
        return latents.flatten(2).transpose(1, 2)

    return pairs.flatten(0, 1), forward


if __name__ == "__main__":
    sys.exit(main())
