"""How encoders run networks, and the networks' weights.

Random weights (``--weights random``) show what an architecture holds
alone (a control, Hewitt and Liang 2019). Tensors are drawn on the CPU
from the seed and their own name, whatever the device and order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lary.files import digest, reason_of
from lary.models.spec import ModelContext, ModelSpec
from lary.models.tensors import Tensors, first_names
from lary.models.weights import Checkpoint
from lary.runtime import log
from lary.types import LaryError, Latents, WeightsIdentity

if TYPE_CHECKING:
    from torch import Tensor, nn

Reader = Callable[[], Tensors]
"""Returns a checkpoint's tensors by the network's names; not called for random ones."""

TABLE_STD = 0.02
"""Standard deviation of position embeddings and learned tokens, as in ViTs."""
CODEBOOK = "vq"
"""Prefix of codebooks' names; their rows have the scale of latents."""
TOKENS = re.compile(r"(cls|class|distillation|cls_register)_token|class_embedding|register_tokens")
"""Names of learned tokens before those of the image."""
STARTS_AT_ZERO = ("bias", "beta", "running_mean")


class NetworkEncoder:
    """Base of encoders that run one network.

    `dim` is D, or None where only the weights know it.
    """

    def __init__(
        self, spec: ModelSpec, context: ModelContext, identity: WeightsIdentity, dim: int | None = None
    ) -> None:
        self._spec, self._device = spec, context.device
        self.identity, self.dim = identity, dim or spec.dim
        if spec.dim and self.dim != spec.dim:
            log.info("%s: the weights have D = %d, not %d as in the record", spec.name, self.dim, spec.dim)

    def encode(self, clips: Tensor) -> Latents:
        """Clips (B, T, 3, H, W) of the record's size to tokens of `run`.

        Raises LaryError.
        """
        check_frames(self._spec, clips, side=self._spec.preprocess.size)
        return Latents(self.run_alone(clips))

    def encode_steps(self, clips: Tensor) -> Latents:
        """Tokens and codes of `run`, in which a pair has no axis of latent steps."""
        found = self.run_alone(clips)
        return Latents(*(part[:, 0] for part in found)) if clips.shape[1] == 2 else Latents(*found)

    def run(self, inputs: Tensor) -> Any:
        """The network's tensor, or tensors, for a batch (B, ...)."""
        raise NotImplementedError

    def run_alone(self, inputs: Tensor) -> Any:
        """`run` in float32 on the device, on the CPU one item at a time.

        A CPU rounds differently for batches of other sizes. One
        by one, at no cost, an item's result depends on it alone.
        """
        import torch

        inputs = inputs.to(self._device, torch.float32)
        if inputs.device.type != "cpu":
            return self.run(inputs)
        parts = [self.run(item) for item in inputs.split(1)]
        if isinstance(parts[0], torch.Tensor):
            return torch.cat(parts)
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def check_frames(spec: ModelSpec, clips: Tensor, *, side: int | None = None, multiple: int = 1, least: int = 1) -> None:
    """Raise LaryError for clips that aren't (B, T, 3, H, W), or don't fit a network.

    It needs at `least` so many frames, with sides of `side` pixels, or of a
    `multiple`.
    """
    if clips.ndim != 5 or clips.shape[2] != 3 or not clips.numel():
        raise LaryError(f"{spec.name} encodes clips (B, T, 3, H, W), not {list(clips.shape)}.")
    height, width = clips.shape[-2:]
    if side and (height, width) != (side, side):
        raise LaryError(f"{spec.name} needs frames of {side} x {side} pixels, not {width} x {height}.")
    if height % multiple or width % multiple:
        raise LaryError(f"{spec.name} needs frames whose sides are multiples of {multiple}, not {width} x {height}.")
    if clips.shape[1] < least:
        raise LaryError(f"{spec.name} needs clips of at least {least} frames, not {clips.shape[1]}.")


@contextmanager
def built_from(origin: object, name: str, device: str | None = "meta") -> Iterator[None]:
    """Build a network by a configuration, in this block; on ``meta`` without memory.

    Raises LaryError, with `origin` and `name`, where it describes none.
    """
    import torch

    try:
        with torch.device(device) if device else nullcontext():
            yield
    except LaryError:
        raise
    except Exception as error:  # each library has its own
        raise LaryError(f"The configuration of {origin} describes no {name}: {reason_of(error)}.") from error


def with_weights(network: Any, found: Checkpoint, read: Reader, device: str) -> Any:
    """A network, so far without memory, with exactly these weights.

    Raises LaryError.
    """
    if found.seed is not None:
        return draw_weights(network, found.seed).to(device)
    tensors = read()
    want = {key: list(value.shape) for key, value in network.state_dict().items()}
    have = {key: list(value.shape) for key, value in tensors.items()}
    problems = {
        "missing": [key for key in want if key not in have],
        "unexpected": [key for key in have if key not in want],
        "misshaped": [f"{key} {have[key]} for {shape}" for key, shape in want.items() if have.get(key, shape) != shape],
    }
    _refuse_misfits(found, network, problems)
    network.load_state_dict(dict(tensors), assign=True)
    return network.eval().to(device)


def _refuse_misfits(found: Checkpoint, network: object, problems: Mapping[str, list[str]]) -> None:
    named = [f"{len(keys)} {what}: {first_names(keys)}" for what, keys in problems.items() if keys]
    if named:
        raise LaryError(
            f"The weights {found.file} don't fit {type(network).__name__} as configured: {'; '.join(named)}. Weights "
            "and configuration have to be of one checkpoint."
        )


def transformers_model(
    model_class: Any, config: Any, found: Checkpoint, read: Reader, device: str, unused: tuple[str, ...] = ()
) -> Any:
    """A model of transformers in float32 and eval mode, with its weights.

    They are random, or exactly a checkpoint's tensors by its keys on disk,
    of which those with a prefix in `unused` may be missing. Raises LaryError.
    """
    import torch

    described = built_from(found.folder, model_class.__name__, device=None)
    if found.seed is not None:
        from accelerate import init_empty_weights

        # Buffers are computed; the caller's random state stays.
        with described, init_empty_weights(), torch.random.fork_rng(devices=[]):
            network = model_class(config)
        return draw_weights(network, found.seed).to(device)
    tensors = dict(read())
    with described, _quiet_transformers():
        # Maps keys on disk to those of the library's version.
        lenient = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # reported below
        model, report = model_class.from_pretrained(
            None, config=config, state_dict=tensors, dtype=torch.float32, **lenient
        )
    problems = {
        "missing": sorted(key for key in report["missing_keys"] if not key.startswith(unused)),
        "unexpected": sorted(report["unexpected_keys"]),
        "misshaped": sorted(map(str, report["mismatched_keys"])),
        "failed": sorted(map(str, report.get("error_msgs", ()))),
    }
    _refuse_misfits(found, model, problems)
    return model.eval().to(device)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    from transformers.utils import logging as untyped

    logging: Any = untyped
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def draw_weights(network: nn.Module, seed: int) -> nn.Module:
    """Give a network, which may have no memory yet, random weights.

    Matrices and convolutions have a deviation of 1 /
    sqrt(inputs), tables of rows `TABLE_STD`, codebooks 1; scales
    of norms are 1, shifts 0. Buffers with memory are constants.
    Returns the network in eval mode.
    """
    from torch import nn

    for prefix, module in network.named_modules():
        for key, like in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            own = isinstance(like, nn.Parameter)
            if own or like.is_meta:
                value = _drawn(module, f"{prefix}.{key}".strip("."), like, seed)
                setattr(module, key, nn.Parameter(value, like.requires_grad) if own else value)
    return network.eval()


def _drawn(module: nn.Module, name: str, like: Tensor, seed: int) -> Tensor:
    import torch
    from torch import nn

    shape, key = like.shape, name.rpartition(".")[2]
    if key in STARTS_AT_ZERO or not like.is_floating_point():
        return torch.zeros(shape, dtype=like.dtype)
    if key == "gamma" or like.ndim < 2:
        return torch.ones(shape)
    generator = torch.Generator().manual_seed(int(digest(str(seed), name), 16) % 2**63)
    drawn = torch.randn(shape, generator=generator)
    if key == "weight" and not isinstance(module, nn.Embedding):
        return drawn.mul_(1 / math.sqrt(math.prod(shape[1:])))
    return drawn if name.startswith(CODEBOOK) else drawn.mul_(TABLE_STD)


@dataclass(frozen=True)
class Cells:
    """Where the cells of an image are in a network's output.

    Attributes:
        side: rows and columns of the square.
        first: the position of the first cell in a sequence.
        channels_last: a feature map is (B, H, W, C) and not (B, C, H, W).
    """

    side: int
    first: int = 0
    channels_last: bool = False

    def of(self, features: Tensor) -> Tensor:
        """Tokens (B, N, D), row by row, of a sequence or a feature map."""
        if features.ndim == 3:
            return features[:, self.first : self.first + self.side**2]
        return features.flatten(1, 2) if self.channels_last else features.flatten(2).transpose(1, 2)


def find_cells(features: Tensor, maps: Sequence[tuple[int, int]], extra: tuple[int, int]) -> Cells | None:
    """The cells in features (B, L, D), (B, C, H, W) or (B, H, W, C); None for no square.

    Args:
        maps: sides and channels of maps by convolutions.
        extra: learned tokens before and behind the cells.
    """
    shape, sides = features.shape, set[int]()
    for side, channels in maps:
        sides.add(side)
        down, up = side, side
        # Stages that merge cells without convolution widen tokens.
        while up > 1 and channels not in (shape[1], shape[-1]):
            down, up = max(1, down // 2), (up + 1) // 2
            sides |= {down, up}
    sides.discard(1)  # a pooled map
    if features.ndim == 4:
        first, last = shape[2] == shape[3] in sides, shape[1] == shape[2] in sides
        return Cells(shape[2], channels_last=last) if first != last else None
    before, behind = extra
    for side in sorted(sides, reverse=True):
        left = shape[1] - side**2
        if left in (0, before + behind):
            return Cells(side, before if left else 0)
        if left == 1:  # a pooled vector
            return Cells(side, first=1)
    return None


def count_extra(network: nn.Module) -> tuple[int, int]:
    """How many learned tokens are before and behind the image cells."""
    before = behind = 0
    for path, value in network.named_parameters():
        name = path.rpartition(".")[2]
        before += value.numel() // value.shape[-1] if TOKENS.fullmatch(name) else 0
        behind += value.numel() // value.shape[-1] if "detection_token" in name else 0
    return before, behind
