"""Any vision backbone of transformers, images or videos: ``hf:<folder or id>``.

``config.json`` says which class runs it, the processor's
configuration how frames are prepared.
"""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lary.files import read_json, reason_of
from lary.models.image import patch_inputs
from lary.models.networks import Cells, NetworkEncoder, built_from, count_extra, find_cells, transformers_model
from lary.models.preprocess import IMAGENET_MEAN, IMAGENET_STD
from lary.models.spec import MODELS, ModelContext, ModelSpec, Preprocess, ResizeMethod, Weights, builtin_tables
from lary.models.tensors import CONFIG, Layout, read_tensors, weight_layout
from lary.models.weights import fetch_file, find_weights, random_weights, read_config
from lary.runtime import log
from lary.types import RANDOM, JsonDict, LaryError, UsageError, as_path

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "hf:"
PROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json")
RESAMPLING: dict[int, ResizeMethod] = {1: "pil_lanczos", 2: "pil_bilinear", 3: "pil_bicubic"}
"""Methods by Pillow's numbers, as in configurations."""


def any_backbone(name: str) -> ModelSpec | None:
    """The record of ``hf:<folder or hub id>``; None for another form.

    Raises UsageError.
    """
    if not name.startswith(PREFIX):
        return None
    location = name.removeprefix(PREFIX)
    if not location or location == RANDOM:  # reserved for drawn weights
        raise UsageError(f"Model '{name}': name a folder or a hub id, such as {PREFIX}google/vit-base-patch16-224.")
    return ModelSpec(
        name=name,
        paradigm="semantic encoder",
        dim=None,
        preprocess=read_preprocess(location),
        weights=Weights(hub=location, hint="Or correct the name after hf:."),
        licence="that of the checkpoint",
        options={"layer": None, "size": None},
        description=f"Patch tokens by the transformers model in {location}",
        factory=AnyBackbone,
    )


MODELS.add_family(any_backbone)


def read_preprocess(location: str) -> Preprocess:
    """How frames are prepared, from the file of a processor.

    Without it: the image size of ``config.json``, or 224
    pixels, and ImageNet's statistics. Raises UsageError.
    """
    file = find_file(location, PROCESSORS)
    if not file:
        size = configured_size(location) or 224
        log.info("%s has no %s: resized to %d, ImageNet's mean and std", location, PROCESSORS[0], size)
        return Preprocess(size=size, resize="pil_bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD, reader="pil")
    try:
        return _preprocess_of(read_json(file, "preparation of frames"))
    except (LaryError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"The preparation of frames in {file} can't be used: {type(error).__name__}: {error}"
        ) from error


def find_file(location: str, names: tuple[str, ...], revision: str | None = None) -> Path | None:
    """The first of some files in a folder or hub repository, or None.

    Raises UsageError.
    """
    folder: Path | None = as_path(location)
    if folder and not folder.exists():
        folder = fetch_file(location, names, revision)
    files = [folder / name for name in names if folder]
    return next(filter(Path.is_file, files), None)


def configured_size(location: str) -> int | None:
    """The image size in ``config.json`` of a network that is made for one.

    None for networks without patches, the benchmark's own
    that take any size, and images that aren't square.
    """
    import transformers

    file = find_file(location, (CONFIG,))
    if not file:
        return None  # the error for the missing weights follows
    try:
        tower: Any = transformers.AutoConfig.for_model(**read_config(file.parent))
    except Exception:  # loading says what is wrong
        return None
    tower = getattr(tower, "vision_config", None) or tower
    known = builtin_tables()["backbones"].get(tower.model_type)
    patches = any(hasattr(tower, name) for name in ("patch_size", "patch_sizes", "tubelet_size"))
    if (known and not known.get("one_size")) or not patches:
        return None
    size = getattr(tower, "image_size", getattr(tower, "crop_size", None))
    sides = set(size) if isinstance(size, list | tuple) else {size}
    side = sides.pop() if len(sides) == 1 else None
    return side if isinstance(side, int) and side > 0 else None


def _preprocess_of(config: JsonDict) -> Preprocess:
    size, crop = config.get("size", 224), config.get("crop_size") if config.get("do_center_crop") else None
    if "max_num_patches" in config:  # any size: a square has so many
        size = math.isqrt(config["max_num_patches"]) * config["patch_size"]
    height = size if isinstance(size, int) else size.get("height", size.get("shortest_edge"))
    target: Any = height if crop is None else crop if isinstance(crop, int) else crop["height"]
    short = height if crop is not None and (isinstance(size, int) or "shortest_edge" in size) else None

    # Scaled pixels from -1 on, such as ViViT's, instead of from 0.
    shift = float(config.get("offset", False) or config.get("rescale_offset", False))

    def three(name: str, usual: tuple[float, ...], plain: float) -> tuple[float, float, float]:
        values = config.get(name, usual) if config.get("do_normalize", True) else (plain,) * 3
        first, second, third = (float(value) + shift * (plain == 0) for value in values)
        return first, second, third

    return Preprocess(
        size=int(target),
        short_side=None if short is None else int(short),
        resize=RESAMPLING[int(config.get("resample", 2))],  # the library's default
        scale=1 / float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
        mean=three("image_mean", IMAGENET_MEAN, 0.0),
        std=three("image_std", IMAGENET_STD, 1.0),
        reader="pil",
    )


class AnyBackbone(NetworkEncoder):
    """Patch tokens of every frame, P = T, or of a clip, (N, D).

    They are cells of the image in rows, in a clip in time x rows x columns,
    without class, register, detection and pooled tokens.
    """

    def __init__(self, spec: ModelSpec, context: ModelContext) -> None:
        import transformers

        if context.weights == RANDOM:
            location = (spec.weights or Weights()).hub or ""
            file = find_file(location, (CONFIG,), context.revision)
            if not file:
                raise UsageError(f"Model '{spec.name}': {location} has no {CONFIG}, or can't be reached.")
            folder, found = file.parent, random_weights(context.seed, file.read_text("utf-8"))
        else:
            found = find_weights(spec, context)
            folder = found.folder
        with built_from(folder, "model of transformers"):
            config = transformers.AutoConfig.for_model(**read_config(folder))
        config = getattr(config, "vision_config", None) or config
        tower = type(config).__name__.replace("Config", "Model")  # is not in the mapping for X-CLIP
        model_class: Any = transformers.MODEL_MAPPING.get(type(config), getattr(transformers, tower, None))
        if not model_class:
            raise UsageError(f"Model '{spec.name}': transformers has no '{config.model_type}' backbone.")
        self._config, self._layer = config, spec.options["layer"]
        if config.model_type == "vit_mae":
            config.mask_ratio = 0.0  # it is for pretraining
        if hasattr(config, "frames_per_clip"):
            config.crop_size = spec.preprocess.size  # for positions of V-JEPA 2
        unused = weight_layout("any backbone").unused
        unused += tuple(f"{model_class.base_model_prefix}.{key}" for key in unused)
        self._model = transformers_model(
            model_class, config, found, lambda: read_tensors(found.files, Layout(unused=unused)), context.device, unused
        )
        super().__init__(spec, context, found.identity)
        self._takes = inspect.signature(self._model.forward).parameters
        self._further: JsonDict = {}
        if self._layer is not None:
            self._further["output_hidden_states"] = True
        if spec.options["size"] and "interpolate_pos_encoding" in self._takes:
            self._further["interpolate_pos_encoding"] = True
        if "skip_predictor" in self._takes:
            del self._model.predictor  # it has no part in tokens
            self._further["skip_predictor"] = True
        tubelet = getattr(config, "tubelet_size", 1)
        self._tubelet = tubelet if isinstance(tubelet, int) else tubelet[0]
        most = getattr(config, "frames_per_clip", None)
        self._frames = getattr(config, "num_frames", most)
        self._cells = self._find_cells()

    def run(self, clips: Tensor) -> Tensor:
        if self._frames:
            return self.run_windows(clips, self._frames)
        features = self._features(self._outputs(clips.flatten(0, 1)))
        return self._cells.of(features).unflatten(0, clips.shape[:2])

    def run_windows(self, clips: Tensor, most: int) -> Tensor:
        """Clips (B, T, 3, H, W) to tokens (B, P * N, D).

        The last frame is repeated until its tubelet is full, and
        the network has its `most` frames; tokens of repeated ones
        alone are left out. Longer clips are cut into windows, the
        last of which ends at the last frame; the first one counts.
        """
        import torch

        count, step = clips.shape[1], self._tubelet
        length = -(-count // step) * step
        # V-JEPA 2 takes any number of tubelets.
        size = min(most, length) if hasattr(self._config, "frames_per_clip") else most
        missing = max(length, size) - count
        clips = torch.cat([clips, *[clips[:, -1:]] * missing], 1)
        last, seen, parts = count + missing - size, 0, list[Any]()
        for start in (*range(0, last, size), last):
            tokens = self._video_tokens(clips[:, start : start + size])
            parts.append(tokens[:, (seen - start) // step :])
            seen = start + size
        return torch.cat(parts, 1)[:, : length // step].flatten(1, 2)

    def _video_tokens(self, clips: Tensor) -> Tensor:
        """One window (B, T, 3, H, W) to tokens (B, T / tubelet, N, D)."""
        features = self._features(self._outputs(clips))
        steps = clips.shape[1] // self._tubelet
        if len(features) > len(clips):  # (B * T, N, D)
            return self._cells.of(features).unflatten(0, (-1, steps))
        tokens = features[:, self._cells.first :]
        if self._config.model_type == "timesformer":  # time comes last
            return tokens.unflatten(1, (-1, steps)).transpose(1, 2)
        return tokens.unflatten(1, (steps, -1))

    def _outputs(self, inputs: Tensor) -> Any:
        import torch

        further, kind = dict(self._further), self._config.model_type
        if kind == "vit_mae":
            # Without noise, even a mask of nothing shuffles the patches.
            count = (inputs.shape[-1] // self._config.patch_size) ** 2
            further["noise"] = torch.arange(count, device=inputs.device).expand(len(inputs), -1)
        if "spatial_shapes" in self._takes:
            return self._model(**patch_inputs(inputs, self._config.patch_size), **further)
        # X-CLIP takes a batch of frames.
        return self._model(inputs.flatten(0, 1) if kind == "xclip_vision_model" else inputs, **further)

    def _features(self, outputs: Any) -> Any:
        """Tokens or a map of the layer, or the last. Raises UsageError."""
        if self._layer is None:
            return getattr(outputs, "last_hidden_state", None)
        # Hiera orders the tokens of its stages otherwise.
        kind = "reshaped_" * hasattr(self._config, "num_query_pool")
        states = getattr(outputs, f"{kind}hidden_states", None) or ()
        count = len(states)
        if not -count <= self._layer < count:
            there = f"layers 0 to {count - 1}, or -1 to {-count}" if states else "no layers"
            raise UsageError(f"--layer {self._layer}: this network gives {there}.")
        return states[self._layer]

    def _find_cells(self) -> Cells:
        """Where the tokens of image cells are, by encoding random frames.

        Raises UsageError.
        """
        import torch

        side, name, frames = self._spec.preprocess.size, self._spec.name, self._frames
        kind = f"Model '{name}': {type(self._model).__name__} of transformers"
        maps: list[tuple[int, int]] = []  # sides and channels of square maps

        def note(module: object, inputs: object, output: Tensor) -> None:
            if output.ndim == 4 and output.shape[2] == output.shape[3]:
                maps.append((output.shape[2], output.shape[1]))

        layers = self._model.modules()
        hooks = [each.register_forward_hook(note) for each in layers if isinstance(each, torch.nn.Conv2d)]
        if frames and hasattr(self._config, "frames_per_clip"):
            frames = self._tubelet
        shape = (2, 3, side, side) if frames is None else (1, frames, 3, side, side)
        inputs = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(self._device)
        try:
            with torch.inference_mode():
                outputs = self._outputs(inputs)
        except Exception as error:  # each network fails in its own way
            what, needs = ("images", "an image") if frames is None else (f"clips of {frames} frames", "a clip")
            raise UsageError(
                f"{kind} can't encode {what} of {side} x {side} pixels ({reason_of(error)}): "
                f"hf: takes backbones that need {needs} alone, of their own size."
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
        features = self._features(outputs)
        queries = getattr(outputs, "encoder_last_hidden_state", None) is not None
        # Hiera's tokens are in rows if each stage but the last pools.
        pools = getattr(self._config, "num_query_pool", None)
        unordered = self._layer is None and pools is not None and pools < len(self._config.depths) - 1
        if (
            unordered
            or queries
            or not isinstance(features, torch.Tensor)
            or features.ndim not in (3, 4)
            or (frames is None and len(features) != 2)
        ):
            raise UsageError(f"{kind} gives no tokens or feature map: it is no vision backbone.")
        patch, extra = getattr(self._config, "patch_size", None), count_extra(self._model)
        if patch is None and frames:
            patch = self._config.tubelet_size[-1]  # of ViViT
        if not maps and isinstance(patch, int) and patch > 0:
            maps.append((side // patch, getattr(self._config, "hidden_size", 0)))
        cells = None
        if frames is None or len(features) > 1:
            cells = find_cells(features, maps, extra)
        elif isinstance(patch, int):  # each step of a clip has the cells of an image
            before = features.shape[1] - (side // patch) ** 2 * (frames // self._tubelet)
            cells = Cells(side // patch, before) if before in (0, extra[0]) else None
        if not cells:
            raise UsageError(
                f"{kind} gives {' x '.join(map(str, features.shape[1:]))} values, in which "
                "no square of patches can be told from other tokens."
            )
        return cells
