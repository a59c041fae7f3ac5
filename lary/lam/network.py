"""Networks in training: a latent action model with its decoder, its backbone, UniVLA's quantizer."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lary.lam.configs import TrainLamConfig
from lary.models.lapa import load_features
from lary.models.running import build
from lary.models.spec import MODELS, ModelContext, ModelSpec, Preprocess, builtin, locate_weights
from lary.models.tensors import Layout, read_tensors
from lary.models.weights import Checkpoint, random_weights
from lary.nets import CODE_STACKS, code_rows
from lary.nets.lam import LaqTransformer, LatentActionModel
from lary.nets.spacetime import nearest_rows
from lary.runtime import free_memory
from lary.settings import Settings
from lary.types import RANDOM, JsonDict, LaryError, UsageError, WeightsIdentity

BETAS = (0.9, 0.99)
LEARNED = 2
"""Learned keys of each cross attention, and as many values."""
SMALLER = "pass a smaller --batch-size, with --accumulate, or a smaller network"
SILENT = "spatial_rel_pos_bias.net.2.bias"
"""A constant under a softmax: its gradient is rounding, which Adam turns into full steps."""


class Forward(NamedTuple):
    """Latent (B, N, Q), codes (B, N), tokens (B, N, D), frames (B, 3, H', W') or features (B, H, W, D)."""

    latent: Tensor
    codes: Tensor
    tokens: Tensor
    reconstruction: Tensor
    target: Tensor

    @property
    def loss(self) -> Tensor:
        """The mean squared error, as published."""
        return F.mse_loss(self.reconstruction.float(), self.target.float())


class TrainableModel(LatentActionModel):
    """`LatentActionModel` with its decoder, of pixels with ``pixel_output``, else of features."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        dim, patch = sizes["dim"], sizes["patch_size"]
        shape = sizes["spatial_depth"], sizes["heads"], sizes["dim_head"]
        self.dec_spatial_transformer = LaqTransformer(dim, *shape, LEARNED)
        self.patch = patch if sizes.get("pixel_output") else 0
        if self.patch:
            self.to_pixels_first_frame = nn.Sequential(nn.Linear(dim, 3 * patch**2))

    def decode(self, first: Tensor, tokens: Tensor) -> Tensor:
        """Predict second frames from embedded first ones (B, H, W, D), which get no gradient, and tokens."""
        batch, rows, columns, _ = first.shape
        bias = self.spatial_rel_pos_bias(rows)
        grid = (batch, 1, rows, columns)
        x = self.dec_spatial_transformer(first.detach().flatten(1, 2), grid, bias, tokens)
        if not self.patch:
            return torch.unflatten(x, 1, (rows, columns))
        planes: Tensor = self.to_pixels_first_frame(x)
        planes = planes.unflatten(1, (rows, columns)).movedim(-1, 1)
        return F.pixel_shuffle(planes, self.patch)

    def embed_pairs(self, pairs: Tensor) -> Tensor:
        """Pairs (B, 2, 3, H', W') to tokens (B, 2, H, W, D)."""
        return torch.unflatten(self.embed(pairs.flatten(0, 1)), 0, pairs.shape[:2])

    def forward(self, embedded: Tensor, pixels: Tensor | None, noise: Tensor, latent: Tensor | None = None) -> Forward:
        """Encode, quantize and decode embedded pairs (B, 2, H, W, D); `noise` (B, N, Q) is standard-normal."""
        if latent is None:
            latent = self.latent(embedded).float()
        # The nearest code is no matter of bfloat16.
        with torch.autocast("cuda" if latent.is_cuda else "cpu", enabled=False):
            codes = self.vq.codes(latent.detach())
            rows = self.vq.with_noise(latent, codes, noise)
        tokens = self.vq.tokens(rows)
        target = embedded[:, 1].detach() if pixels is None else pixels
        return Forward(latent, codes, tokens, self.decode(embedded[:, 0], tokens), target)


def embed_raw(network: TrainableModel, pairs: Tensor, normalise: Any, encode: Any) -> tuple[Tensor, Tensor | None]:
    """Embedded pairs (B, 2, H, W, D) of raw ones (B, 2, 3, H', W'), and the frames to predict."""
    pixels = pairs[:, 1] / 255 if network.patch else None
    if encode is None:
        return network.embed_pairs(normalise(pairs)), pixels
    with torch.no_grad():
        return encode(normalise(pairs)).float(), pixels


@dataclass(frozen=True)
class FrozenBackbone:
    """The frozen encoder of frames, and the network's sizes.

    `encode` takes prepared pairs (B, 2, 3, H', W') to features (B, 2, H, W, D), None where the network embeds pixels.
    """

    spec: ModelSpec
    sizes: JsonDict
    preprocess: Preprocess
    identity: WeightsIdentity
    encode: Callable[[Tensor], Tensor] | None = None
    module: Any = None
    normed: bool = False


def open_backbone(config: TrainLamConfig, settings: Settings, device: str) -> FrozenBackbone:
    """The backbone that options name. Raises LaryError, UsageError."""
    spec = MODELS.get(config.backbone)
    asked = config.weights
    values = settings.values()
    family = "features" in spec.options
    side = config.image_size or spec.preprocess.size
    preprocess = replace(spec.preprocess, size=side, short_side=None, resize="pil_bilinear", reader="pil")
    base = (spec if family else builtin("dinov3")).options["network"]
    same = ("codebook_size", "quant_dim", "heads", "dim_head", "dim", "patch_size")
    given = {name: getattr(config, name) for name in same}
    given |= {"spatial_depth": config.depth, "temporal_depth": config.depth}
    given |= {"code_seq_len": config.code_length, "image_size": side}
    sizes = base | {name: value for name, value in given.items() if value is not None}
    pixels = sizes.get("patch_input")
    for name in ["weights"] if pixels else ["dim", "patch_size"]:
        if (value := getattr(config, name)) is not None:
            raise UsageError(f"--{name.replace('_', '-')} {value}: '{spec.name}' takes none; leave it out.")
    if pixels:
        check_length(sizes, spec.name)
        return FrozenBackbone(spec, sizes, preprocess, WeightsIdentity())
    if family:
        found = Checkpoint((Path(spec.name),), None, WeightsIdentity())
        if asked == RANDOM:
            found = random_weights(0)
        elif asked is not None and spec.backbone and spec.backbone.variable:
            values = values | {spec.backbone.variable: asked}
        grid = int(side / sizes["patch_size"])
        module, own = load_features(spec, spec.options["features"], found, {}, values, grid)
        module.to(device).eval().requires_grad_(False)
        identity = WeightsIdentity(own) if found.seed is None else found.identity

        def encode(pairs: Tensor) -> Tensor:
            return torch.unflatten(module(pairs.flatten(0, 1)), 0, pairs.shape[:2])
    else:
        place = locate_weights(spec, values, asked)
        encoder = build(spec, ModelContext(device, "corrected", place, settings=values))
        module = encoder.module.requires_grad_(False)
        identity = encoder.identity

        def encode(pairs: Tensor) -> Tensor:
            tokens = encoder.encode(pairs).tokens  # (B, 2, N, D)
            # The decoder ends in a norm, as features of the family do: others it reaches slowly.
            tokens = F.layer_norm(tokens.float(), tokens.shape[-1:])
            return torch.unflatten(tokens, 2, (round(tokens.shape[2] ** 0.5), -1))

    try:
        if preprocess.frames is not None or preprocess.dtype == "uint8":
            raise LaryError("it takes whole clips")
        with torch.no_grad():
            shape = encode(torch.zeros(1, 2, 3, side, side, device=device)).shape
        if len(shape) != 5 or shape[1] != 2 or shape[2] != shape[3] or shape[2] < 2:
            raise LaryError(f"its features of a pair have shape {tuple(shape)}, not a square per frame")
    except (LaryError, RuntimeError, ValueError, IndexError) as error:
        why = f"nothing can be trained on it at {side} x {side} pixels, since {str(error).rstrip('.')}"
        raise UsageError(f"--backbone {spec.name}: {why}.") from error
    if not family:  # cells may not be a whole number of pixels: only the grid counts
        sizes |= {"dim": shape[-1], "image_size": shape[2], "patch_size": 1}
        if config.code_length is None and (lengths := lengths_of(shape[2])):
            sizes["code_seq_len"] = min(lengths, key=lambda each: abs(each - 16))
    check_length(sizes, spec.name)
    return FrozenBackbone(spec, sizes, preprocess, identity, encode, module, not family)


def backbone_tensors(backbone: FrozenBackbone) -> dict[str, Tensor]:
    """The backbone's tensors by the names of the published flat checkpoints."""
    features = backbone.spec.options["features"]
    module = backbone.module
    if module is None:
        return {}
    own = module.state_dict()
    prefix = features.get("prefix_on_disk", "")
    if "library" in features:  # names on disk differ from those in memory
        with tempfile.TemporaryDirectory() as folder:
            module.backbone.save_pretrained(folder)
            own = read_tensors(tuple(Path(folder).glob("*.safetensors")), Layout())
            own = {key: value.clone() for key, value in own.items()}
    return {features["prefix"] + key.removeprefix(prefix): own[key].cpu() for key in own}


def lengths_of(grid: int) -> list[int]:
    """Code lengths of which as many rows come out of a grid."""
    return [length for length in CODE_STACKS if code_rows(length, grid) == length]


def check_length(sizes: Mapping[str, Any], name: str) -> None:
    """Raise UsageError for a code length that can't be decoded."""
    length = sizes["code_seq_len"]
    grid = int(sizes["image_size"] / sizes["patch_size"])
    if length in (good := lengths_of(grid)):
        return
    remedy = f"--code-length {', '.join(map(str, good))}" if good else "another --image-size"
    where = f"on a grid of {grid} x {grid}, where {code_rows(length, grid)} rows come out"
    raise UsageError(f"Model '{name}': a code of length {length} can't be decoded {where}: choose {remedy}.")


def build_network(sizes: Mapping[str, Any], seed: int, name: str) -> TrainableModel:
    """A network drawn from the seed. Raises UsageError."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return TrainableModel(**sizes)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"Model '{name}' can't be built: {error}.") from error


def check_training_memory(backbone: FrozenBackbone, config: TrainLamConfig, pairs: int, device: str) -> None:
    """Refuse a training, of so many pairs per process, that can't fit. Raises LaryError."""
    kept = dict[int, Tensor]()  # by their storages, which views share
    sizes = backbone.sizes
    few = min(pairs, 64)  # slices of many take minutes

    def keep(value: Tensor) -> Tensor:
        kept[value.untyped_storage()._cdata] = value
        return value

    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, keep):
        network = build_network(sizes, 0, backbone.spec.name)
        side = sizes["image_size"]
        weights = sum(value.nbytes for value in map(keep, network.parameters()))
        frames = torch.empty(few, 2, 3, side, side)
        shape = few, 2, network.grid, network.grid, network.dim
        embedded = network.embed_pairs(frames) if sizes.get("patch_input") else torch.empty(shape)
        noise = torch.empty(few, sizes["code_seq_len"], sizes["quant_dim"])
        loss = network(embedded, frames[:, 1] if network.patch else None, noise).loss
    batch = sum(value.untyped_storage().nbytes() for value in kept.values()) - weights + loss.nbytes
    batch = batch * pairs // few
    # CUDA's kernels of attention, and bfloat16, keep less than is counted.
    batch //= (1 if device == "cpu" else 2) * (1 if config.precision == "fp32" else 2)
    states = (4 + config.averaging) * weights  # gradients and two moments are as large
    for place, need in {"cpu": states, device: states + batch}.items():
        if need > (free := free_memory(place)):
            text = f"{need / 1e9:.3g} GB, {batch / 1e9:.3g} of them for a batch of {pairs}"
            raise LaryError(f"The training needs {text}; {place} has {free / 1e9:.3g} GB free: {SMALLER}.")


def make_optimizer(network: nn.Module, rate: float, decay: float) -> torch.optim.Adam:
    """Adam, or AdamW, by which tensors of at least two dimensions decay, as published."""
    weights = [value for value in network.parameters() if value.requires_grad]
    if not decay:
        return torch.optim.Adam(weights, lr=rate, betas=BETAS, fused=True)
    wide = [value for value in weights if value.ndim >= 2]
    rest = [value for value in weights if value.ndim < 2]
    groups = [{"params": wide, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=BETAS, fused=True)


def average_weights(averages: Any, weights: Any, updates: Any) -> None:
    """Move averages to the weights, as published."""
    decay = min(1 - (1 + float(updates)) ** (-2 / 3), 0.9999)
    torch._foreach_lerp_(averages, weights, 1 - decay)


class StraightQuantizer(nn.Module):
    """UniVLA's quantizer (Bu et al. 2025, arXiv 2505.06111): `usage` counts samples per code since a `restart`."""

    usage: Tensor

    def __init__(self, codebook_size: int, dim: int, beta: float = 0.25) -> None:
        super().__init__()
        self.codebook = nn.Embedding(codebook_size, dim)
        self.beta = beta
        nn.init.uniform_(self.codebook.weight, -1 / codebook_size, 1 / codebook_size)
        self.register_buffer("usage", torch.zeros(codebook_size), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows of latents (B, N, Q), codes (B, N), losses of codebook and, to weigh by `beta`, commitment."""
        rows, codes = nearest_rows(x, self.codebook.weight.detach())
        chosen = self.codebook(codes)
        self.usage += F.one_hot(codes, len(self.usage)).amax(dim=1).sum(dim=0)
        return rows, codes, F.mse_loss(chosen, x.detach()), F.mse_loss(x, chosen.detach())

    @torch.no_grad()
    def restart(self, permutation: Tensor) -> Tensor:
        """Copy row ``permutation[k]``, maybe unused itself, onto the k-th unused code; returns these."""
        dead = (self.usage < 1).nonzero().flatten()
        weight = self.codebook.weight
        weight[dead] = weight[permutation[: len(dead)]]
        self.usage.zero_()
        return dead
