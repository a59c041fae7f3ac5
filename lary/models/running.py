"""Loaded models: a record with its weights on a device, run and checked."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

from lary.configs import Precision
from lary.files import file_digest, reason_of
from lary.models.choices import with_choices
from lary.models.networks import NetworkEncoder
from lary.models.preprocess import prepare
from lary.models.spec import MODELS, ModelContext, ModelSpec, locate_weights
from lary.registry import line_in
from lary.runtime import pick_devices, set_arithmetic
from lary.settings import load_settings
from lary.types import (
    RANDOM,
    BenchmarkProtocol,
    Encoder,
    LaryError,
    Latents,
    Media,
    UsageError,
    WeightsIdentity,
    as_path,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

MEDIA: dict[int, Media] = {2: "pair", 9: "clip"}
"""Kinds of samples, for which records name shapes, by number of frames."""
DIFFERENT = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 5e-2, "fp16": 1e-2}
"""Share of the largest token by which results of a sample may differ, by precision."""
DEEPEST = 5
"""Levels of attributes and containers that are searched for weights."""


class LoadedEncoder:
    """A model with its weights on a device, its answers checked.

    Attributes:
        author: the object of the model's class.
        dim: D of the tokens; None where nothing names it.
        parameters_m: parameters in millions; None without any.
        module: all networks of the model; called with clips, as
            `encode`, it returns the tokens. To move or convert it,
            load anew: constants may be outside the networks.
        checked: whether an extraction found that tokens repeat.
    """

    checked = False

    def __init__(
        self, author: Encoder, spec: ModelSpec, context: ModelContext, *, precision: Precision, compiled: bool
    ) -> None:
        import torch

        self.author, self.spec, self.device = author, spec, context.device
        self.identity = identity_of(author, context)
        self.dim: int | None = getattr(author, "dim", None) or spec.dim
        self.module = module_of(author, lambda clips: self.encode(clips).tokens)
        count = sum(value.numel() for value in self.module.parameters())
        self.parameters_m = spec.parameters_m or (round(count / 1e6, 4) if count else None)
        self._protocol, self._precision, self._compiled = context.protocol, precision, compiled
        self.different = DIFFERENT[precision]
        set_arithmetic(context.device, precision)
        self._dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        if compiled and isinstance(author, NetworkEncoder):
            # The network alone: `encode` checks and loops around it.
            author.run = torch.compile(author.run)  # type: ignore[method-assign]
        elif compiled:
            for network in self.module.children():
                network.compile()

    def encode(self, clips: Tensor) -> Latents:
        """Encode clips into latents on the model's device.

        Clips (B, T, H, W, 3) uint8 are prepared and spread over the record's
        frames, unlike (B, T, 3, H, W). Raises LaryError for an answer that the
        record rules out.
        """
        import torch

        count = clips.shape[1]
        preprocess = self.spec.preprocessing(self._protocol, "pair" if count == 2 else "clip")
        prepared = preprocess.dtype == "uint8" and clips.shape[-1] != 3
        if clips.dtype == torch.uint8 and not prepared:
            if preprocess.frames:
                # As `lary.latents.choice.spread`.
                places = torch.linspace(0, count - 1, preprocess.frames, dtype=torch.float64)
                clips = clips[:, (places + 0.5).floor().long()]
            clips = torch.stack([torch.from_numpy(prepare(clip, preprocess)) for clip in clips.cpu().numpy()])
        if self.device != "cpu":  # another part of the process may have changed it
            set_arithmetic(self.device, self._precision)
        try:
            kind = torch.device(self.device).type
            with author_named(self.spec), torch.autocast(kind, self._dtype, enabled=self._dtype is not None):
                latents = as_latents(self.author.encode(clips.to(self.device)))
        except RuntimeError as error:
            if not self._compiled or not isinstance(error, torch._dynamo.exc.TorchDynamoException):
                raise
            reason = reason_of(getattr(error, "inner_exception", error))
            raise LaryError(
                f"--compile: torch can't compile the network for {self.device} ({reason}). Leave the option out, or "
                "install a missing compiler, such as g++."
            ) from error
        if wrong := self._broken_promise(latents, clips):
            raise LaryError(
                f"Model '{self.spec.name}' returned {wrong}. Correct its encode or its record; `lary check-model` "
                "shows both."
            )
        return latents

    def _broken_promise(self, latents: object, clips: Tensor) -> str | None:
        """What a wrong answer is, to follow "returned"; None for a right one."""
        if not isinstance(latents, Latents) or not hasattr(latents.tokens, "is_floating_point"):
            return f"{type(latents).__name__}, expected Latents, a tensor of tokens, or (tokens, indices)"
        tokens, codes, count = latents.tokens, latents.codes, len(clips)
        shape = tuple(tokens.shape)
        if len(shape) < 2 or shape[0] != count:
            return f"tokens of shape {shape} for {count} samples, expected (B, P, N, D), (B, N, D) or (B, D)"
        if not tokens.is_floating_point():
            return f"tokens of {str(tokens.dtype).removeprefix('torch.')}, expected floating-point numbers"
        if self.dim and shape[-1] != self.dim:
            return f"tokens of latent dimension {shape[-1]}, its record says {self.dim}"
        media = MEDIA.get(clips.shape[1])
        if media and self.dim == self.spec.dim and self.spec.preprocess.frames is None:
            side = self.spec.preprocessing(self._protocol, media).size
            wanted = self.spec.shape(self._protocol, media) if clips.shape[-2:] == (side, side) else ()
            if wanted and shape[1:] != wanted:
                return f"tokens of shape {shape[1:]} for a {media}, its record says {wanted}"
        if codes is not None and (codes.is_floating_point() or len(codes) != count):
            return f"codes of shape {tuple(codes.shape)} and {codes.dtype}, expected whole numbers (B, ...)"
        return None


def build(
    spec: ModelSpec,
    context: ModelContext,
    *,
    precision: Precision = "fp32",
    compiled: bool = False,
    trainable: bool = False,
) -> LoadedEncoder:
    """A record's encoder with its weights; a `trainable` one has gradients.

    Raises UsageError without a class, or for one that draws no random weights.
    """
    if spec.factory is None:
        raise UsageError(f"Model '{spec.name}' has no class: register it with @register_model.")
    with author_named(spec):
        author = spec.factory(spec, context)
    encoder = LoadedEncoder(author, spec, context, precision=precision, compiled=compiled)
    if context.weights == RANDOM and not encoder.identity.random:
        raise UsageError(
            f"--weights {RANDOM}: the class of '{spec.name}' doesn't draw its weights from the seed. Where it does, "
            f"its identity says so: WeightsIdentity('{RANDOM} ...', random=True)."
        )
    if not trainable:
        encoder.module.requires_grad_(False)
        # Once, not in every pass; DINOv3 takes the type of positions from a convolution.
        rounded = encoder._dtype if isinstance(author, NetworkEncoder) else None
        for part in encoder.module.modules():
            if rounded and hasattr(part, "in_features"):  # a linear layer
                part.to(rounded)
    return encoder


@contextmanager
def author_named(spec: ModelSpec) -> Iterator[None]:
    """Raise errors of a plug-in's code as a LaryError with file and line."""
    import torch

    try:
        yield
    except (LaryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        name = getattr(spec.factory, "__module__", None) or ""
        file = getattr(sys.modules.get(name), "__file__", None)
        compiling = type(error).__module__.startswith("torch._dynamo")
        if not file or name.startswith("lary.") or compiling or not (place := line_in(Path(file), error)):
            raise
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise LaryError(f"Model '{spec.name}' failed{place}: {reason}.") from error


def load_model(
    key_or_path: str | Path,
    *,
    weights: str | None = None,
    revision: str | None = None,
    protocol: BenchmarkProtocol = "corrected",
    latent: str | None = None,
    layer: int | None = None,
    size: int | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    seed: int = 0,
) -> LoadedEncoder:
    """A model of the benchmark, or a vision backbone of transformers.

    Its `encode` takes frames. Gradients flow
    unless turned off (``torch.no_grad``).

    Args:
        key_or_path: a key of ``lary models``, or a folder of transformers.
        weights: a file, a folder, a hub id, or ``random``.
        revision: commit, branch or tag of a hub repository.
        protocol: ``corrected``, or ``paper`` as the published code.
        latent, layer, size: of the models that have a choice of it.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        precision: ``fp32``, or the type of autocast.
        seed: of random weights.

    Raises UsageError, LaryError for an unknown
    model, and weights that are missing or misfit.
    """
    name = str(key_or_path)
    if isinstance(key_or_path, Path) or (name not in MODELS.names() and as_path(name).is_dir()):
        name = f"hf:{key_or_path}"
    spec = with_choices(MODELS.get(name), latent=latent, layer=layer, size=size)
    values = load_settings().values()
    chosen = device if ":" in device else pick_devices(None, device)[0]
    located = locate_weights(spec, values, weights)
    context = ModelContext(chosen, protocol, located, revision, seed, values)
    return build(spec, context, precision=precision, trainable=True)


def as_latents(answer: Any) -> Any:
    """Latents, from tokens or (tokens, codes) if a class returns these; else the answer."""
    import torch

    if isinstance(answer, torch.Tensor):
        return Latents(answer)
    if isinstance(answer, tuple | list) and len(answer) == 2 and isinstance(answer[0], torch.Tensor):
        return Latents(*answer)
    return answer


def identity_of(author: object, context: ModelContext) -> WeightsIdentity:
    """The identity that a model's class names, or a digest of its weights.

    A class of version 0.1 has `weights_digest` and
    `weights_revision`; a digest of None: no weights
    besides what the record and the seed decide.
    """
    own = getattr(author, "identity", None)
    if isinstance(own, WeightsIdentity):
        return own
    if hasattr(author, "weights_digest"):
        named = str(author.weights_digest or "")
        return WeightsIdentity(named, getattr(author, "weights_revision", None), RANDOM in named)
    return WeightsIdentity(hash_weights(author, context))


def hash_weights(author: object, context: ModelContext) -> str:
    """A digest of the tensors, arrays and files that an object holds; empty for nothing.

    Without any tensors, the files of the context's weights are hashed.
    """
    import numpy as np
    import torch

    state, count = hashlib.sha256(), 0
    files = []
    for name, value in holdings(author):
        if isinstance(value, Path) and value.is_file():
            files.append(value)
        entries = value.state_dict() if isinstance(value, torch.nn.Module) else {"": value}
        for key, entry in entries.items():
            if isinstance(entry, torch.Tensor) and entry.layout is torch.strided and not entry.is_meta:
                # Bytes as they are: NumPy has no bfloat16.
                data = entry.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            elif isinstance(entry, np.ndarray) and not entry.dtype.hasobject:
                data = np.ascontiguousarray(entry).reshape(-1).view(np.uint8)
            else:
                continue
            count += 1
            state.update(f"{'.'.join((*name, key))} {tuple(entry.shape)} {entry.dtype}\n".encode())
            state.update(data.tobytes())
    if not count and context.weights not in (None, RANDOM):
        given = as_path(context.weights)
        files += [given] if given.is_file() else sorted(filter(Path.is_file, given.rglob("*")))
    for file in files:
        state.update(f"{file.name}\n".encode())
        state.update(file_digest(file, 64).encode())
    return state.hexdigest()[:16] if count or files else ""


def holdings(
    value: Any, path: tuple[str, ...] = (), seen: set[int] | None = None
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Networks, tensors, arrays and paths that an object holds, by name, down to `DEEPEST`."""
    import numpy as np
    import torch

    seen = set() if seen is None else seen
    if id(value) in seen or len(path) > DEEPEST:
        return
    seen.add(id(value))
    if isinstance(value, torch.nn.Module | torch.Tensor | np.ndarray | Path):
        yield path, value
        return
    inner: Mapping[Any, Any] = {}
    if isinstance(value, Mapping):
        inner = value
    elif isinstance(value, list | tuple):
        inner = dict(enumerate(value))
    elif not isinstance(value, type | ModuleType | FunctionType | MethodType | ModelSpec | ModelContext):
        inner = getattr(value, "__dict__", {})
    for key, held in inner.items():
        yield from holdings(held, (*path, str(key)), seen)


def module_of(author: object, forward: Callable[[Tensor], Tensor]) -> nn.Module:
    """One module over all networks of an encoder, by attribute."""
    import torch

    class Networks(torch.nn.Module):
        def forward(self, clips: Tensor) -> Tensor:
            return forward(clips)

    module = Networks()
    for path, value in holdings(author):
        if isinstance(value, torch.nn.Module):
            module.add_module("_".join(each.strip("_").replace(".", "_") for each in path) or "network", value)
    return module
