"""Image backbones of transformers, each frame by itself.

They are DINOv2, DINOv3, SigLIP 2, and any ``hf:<folder
or id>``: ``preprocessor_config.json`` says how frames
are prepared, ``config.json`` which class runs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lary.files import read_json, reason_of
from lary.models.networks import (
    Cells,
    NetworkEncoder,
    built_from,
    check_frames,
    count_extra,
    find_cells,
    transformers_model,
)
from lary.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, mix_planes
from lary.models.spec import (
    MODELS,
    ModelContext,
    ModelSpec,
    Preprocess,
    ResizeMethod,
    Weights,
    builtin,
    builtin_tables,
    register_model,
    with_tuples,
)
from lary.models.tensors import CONFIG, Layout, Tensors, read_tensors, weight_layout
from lary.models.weights import fetch_file, find_weights, random_weights, read_config
from lary.runtime import log
from lary.types import RANDOM, JsonDict, LaryError, Latents, UsageError, as_path

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Backbone:
    """How transformers runs checkpoints of one ``model_type``.

    Attributes:
        model: class of transformers.
        leading: tokens before the patches, without the
            register tokens that the configuration counts.
        patches: the model wants flattened patches instead of an image.
        one_size: position embeddings fit the
            configuration's image size alone.
        prefix: of the image tower's keys
            in a file with a text tower.
        unused: prefixes of keys that patch tokens don't
            depend on; they may be missing and aren't read.
    """

    model: str
    leading: int
    unused: tuple[str, ...]
    patches: bool = False
    one_size: bool = False
    prefix: str = ""


def backbone_of(kind: str) -> Backbone:
    """The entry of ``records.json`` for a ``model_type`` of a model or tower."""
    return Backbone(**with_tuples(builtin_tables()["backbones"][kind.removesuffix("_vision_model")]))


@register_model(builtin("dinov2-origin"), builtin("dinov3-origin"), builtin("siglip2-origin"))
class ImageEncoder(NetworkEncoder):
    """Patch tokens of every frame, after the backbone's final norm: P = T.

    N are the patches in rows, D is the checkpoint's, whose
    ``config.json`` decides. Another size than the record's runs,
    with a line in the log: the latents carry D and digest.
    """

    def __init__(self, spec: ModelSpec, context: ModelContext) -> None:
        import transformers

        options = spec.options_under(context.protocol)
        found = find_weights(spec, context)
        config = options["config"] if found.seed is not None else read_config(found.folder)
        kind = config["model_type"]
        if kind not in options["accepts"]:
            expected = " or ".join(options["accepts"])
            raise UsageError(f"Weights of '{spec.name}': {found.folder} holds a {kind} model, expected {expected}.")
        backbone = backbone_of(kind)
        model_class = getattr(transformers, backbone.model)
        with built_from(found.folder, backbone.model):
            settings = model_class.config_class.from_dict(image_tower(config))
        self._side: int = spec.preprocessing(context.protocol).size
        if backbone.one_size and settings.image_size != self._side:
            raise UsageError(
                f"Weights of '{spec.name}': {found.folder} is for images of {settings.image_size} pixels, "
                f"the record prepares {self._side}."
            )

        def read() -> Tensors:
            tensors = read_tensors(found.files, Layout(unused=backbone.unused))
            prefix = backbone.prefix  # files of the image tower alone lack it
            return {prefix + key.removeprefix(prefix): value for key, value in tensors.items()}

        self._model = transformers_model(model_class, settings, found, read, context.device, backbone.unused)
        super().__init__(spec, context, found.identity, settings.hidden_size)
        self._mix_planes: bool = options["mix_planes"]
        self._leading = backbone.leading + int(getattr(settings, "num_register_tokens", 0) or 0)
        self._class_token = backbone.leading > 0
        self._patch: int | None = settings.patch_size if backbone.patches else None

    def encode(self, clips: Tensor) -> Latents:
        """Clips to tokens (B, T, N, D), class tokens (B, T, D). Raises LaryError."""
        check_frames(self._spec, clips, side=self._side)
        tokens = self.run_alone(mix_planes(clips) if self._mix_planes else clips)
        cls = tokens[:, :, 0] if self._class_token else None
        return Latents(tokens[:, :, self._leading :], cls=cls)

    def run(self, clips: Tensor) -> Tensor:
        """Clips (B, T, 3, H, W) to all tokens (B, T, leading + N, D)."""
        images = clips.flatten(0, 1)
        inputs = {"pixel_values": images} if self._patch is None else patch_inputs(images, self._patch)
        tokens: Tensor = self._model(**inputs).last_hidden_state
        return tokens.unflatten(0, clips.shape[:2])


def image_tower(config: JsonDict) -> JsonDict:
    """The image tower's part of a configuration, without the pooling head."""
    tower = dict(config.get("vision_config", config))
    return {**tower, "vision_use_head": False} if "siglip" in config["model_type"] else tower


def patch_inputs(images: Tensor, patch: int) -> Tensors:
    """Inputs of a model of variable resolution: images (B, 3, H, W) in patches."""
    import torch

    batch, channels, height, width = images.shape
    rows, columns = height // patch, width // patch
    cut = images[:, :, : rows * patch, : columns * patch].reshape(batch, channels, rows, patch, columns, patch)
    return {
        "pixel_values": cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2),  # (B, N, patch * patch * 3)
        "pixel_attention_mask": torch.ones(batch, rows * columns, dtype=torch.int32, device=images.device),
        "spatial_shapes": torch.tensor([[rows, columns]], device=images.device).expand(batch, 2),
    }


PREFIX = "hf:"
PROCESSOR = "preprocessor_config.json"
RESAMPLING: dict[int, ResizeMethod] = {1: "pil_lanczos", 2: "pil_bilinear", 3: "pil_bicubic"}
"""Methods by Pillow's numbers, as in configurations."""


def any_backbone(name: str) -> ModelSpec | None:
    """The record of ``hf:<folder or hub id>``; None for another form.

    Raises UsageError for nothing behind
    the prefix, or as `read_preprocess`.
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
        weights=Weights(hub=location),
        licence="that of the checkpoint",
        description=f"Patch tokens of each frame by the transformers model in {location}",
        factory=AnyBackbone,
    )


MODELS.add_family(any_backbone)


def read_preprocess(location: str) -> Preprocess:
    """How frames are prepared, from ``preprocessor_config.json``.

    Without it: the image size of ``config.json``, or 224
    pixels, and ImageNet's statistics. Raises UsageError.
    """
    file = find_file(location, PROCESSOR)
    if file is None:
        size = configured_size(location) or 224
        text = "%s has no %s: frames are resized to %d with ImageNet's mean and std"
        log.info(text, location, PROCESSOR, size)
        return Preprocess(size=size, resize="pil_bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD, reader="pil")
    try:
        return _preprocess_of(read_json(file, "preparation of frames"))
    except (LaryError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"The preparation of frames in {file} can't be used: {type(error).__name__}: {error}"
        ) from error


def find_file(location: str, name: str, revision: str | None = None) -> Path | None:
    """A file of a folder or hub repository, None where it lacks it. Raises UsageError."""
    folder = as_path(location)
    file = folder / name if folder.exists() else fetch_file(location, name, revision)
    return file if file is not None and file.is_file() else None


def configured_size(location: str) -> int | None:
    """The image size in ``config.json`` of a network that is made for one.

    None for networks without patches, the benchmark's own
    that take any size, and images that aren't square.
    """
    import transformers

    file = find_file(location, CONFIG)
    if file is None:
        return None  # the error for the missing weights follows
    try:
        tower: Any = transformers.AutoConfig.for_model(**read_config(file.parent))
    except Exception:  # loading says what is wrong
        return None
    tower = getattr(tower, "vision_config", None) or tower
    known = builtin_tables()["backbones"].get(tower.model_type)
    if (known and not known.get("one_size")) or not (hasattr(tower, "patch_size") or hasattr(tower, "patch_sizes")):
        return None
    size = getattr(tower, "image_size", None)
    sides = set(size) if isinstance(size, list | tuple) else {size}
    side = sides.pop() if len(sides) == 1 else None
    return side if isinstance(side, int) and side > 0 else None


def _preprocess_of(config: JsonDict) -> Preprocess:
    """Translate an image processor's configuration."""
    size, crop = config.get("size", 224), config.get("crop_size")
    height = size if isinstance(size, int) else size.get("height", size.get("shortest_edge"))
    crop = crop if config.get("do_center_crop", False) else None
    target: Any = height if crop is None else crop if isinstance(crop, int) else crop["height"]
    short = height if crop is not None and (isinstance(size, int) or "shortest_edge" in size) else None

    def three(name: str, usual: tuple[float, ...], plain: float) -> tuple[float, float, float]:
        values = config.get(name, usual) if config.get("do_normalize", True) else (plain,) * 3
        first, second, third = (float(value) for value in values)
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
    """Patch tokens of every frame: P = T, N in rows, D of the checkpoint.

    Only cells of the image are tokens, without class,
    register and detection tokens and pooled vectors.
    Encoding two images on loading shows where the cells are.
    """

    def __init__(self, spec: ModelSpec, context: ModelContext) -> None:
        import transformers

        if context.weights == RANDOM:
            location = spec.name.removeprefix(PREFIX)
            file = find_file(location, CONFIG, context.revision)
            if file is None:
                raise UsageError(f"Model '{spec.name}': {location} has no {CONFIG}, or can't be reached.")
            folder, found = file.parent, random_weights(context.seed, file.read_text(encoding="utf-8"))
        else:
            found = find_weights(spec, context)
            folder = found.folder
        with built_from(folder, "model of transformers"):
            config = transformers.AutoConfig.for_model(**read_config(folder))
        config = getattr(config, "vision_config", None) or config
        model_class: Any = transformers.MODEL_MAPPING.get(type(config), None)
        if model_class is None:
            raise UsageError(f"Model '{spec.name}': transformers has no backbone for a '{config.model_type}' model.")
        self._config, self._masked = config, config.model_type == "vit_mae"
        if self._masked:
            config.mask_ratio = 0.0  # it is for pretraining
        unused = weight_layout("any backbone").unused
        unused += tuple(f"{model_class.base_model_prefix}.{key}" for key in unused)
        self._model = transformers_model(
            model_class, config, found, lambda: read_tensors(found.files, Layout(unused=unused)), context.device, unused
        )
        super().__init__(spec, context, found.identity)
        self._cells = self._find_cells()

    def run(self, clips: Tensor) -> Tensor:
        """Clips (B, T, 3, H, W) to tokens (B, T, N, D) float32."""
        features: Tensor = self._outputs(clips.flatten(0, 1)).last_hidden_state
        return self._cells.of(features).unflatten(0, clips.shape[:2])

    def _outputs(self, images: Tensor) -> Any:
        """What the network returns for images (B, 3, H, W)."""
        import torch

        if not self._masked:
            return self._model(images)
        # Without noise, even a mask of nothing shuffles the patches.
        count = (images.shape[-1] // self._config.patch_size) ** 2
        return self._model(images, noise=torch.arange(count, device=images.device).expand(len(images), -1))

    def _find_cells(self) -> Cells:
        """Where the tokens of image cells are. Raises UsageError where they aren't."""
        import torch
        from transformers.models.auto import modeling_auto

        side, name = self._spec.preprocess.size, self._spec.name
        kind = f"Model '{name}': {type(self._model).__name__} of transformers"
        videos = modeling_auto.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES  # some take images by name
        if self._config.model_type in videos or self._model.main_input_name == "pixel_values_videos":
            raise UsageError(f"{kind} is a video model, and hf: encodes single frames; for V-JEPA 2, use vjepa2.")
        maps: list[tuple[int, int]] = []  # sides and channels of square maps

        def note(module: object, inputs: object, output: Tensor) -> None:
            if output.ndim == 4 and output.shape[2] == output.shape[3]:
                maps.append((output.shape[2], output.shape[1]))

        layers = self._model.modules()
        hooks = [each.register_forward_hook(note) for each in layers if isinstance(each, torch.nn.Conv2d)]
        images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)).to(self._device)
        try:
            with torch.inference_mode():
                outputs = self._outputs(images)
        except Exception as error:  # each network fails in its own way
            raise UsageError(
                f"{kind} can't encode images of {side} x {side} pixels ({reason_of(error)}): hf: takes backbones that "
                "need an image alone, of the size in the preparation of frames."
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
        features = getattr(outputs, "last_hidden_state", None)
        queries = getattr(outputs, "encoder_last_hidden_state", None) is not None
        # Hiera's tokens are in rows if each stage but the last pools.
        pools = getattr(self._config, "num_query_pool", None)
        unordered = pools is not None and pools < len(self._config.depths) - 1
        if (
            unordered
            or queries
            or not isinstance(features, torch.Tensor)
            or features.ndim not in (3, 4)
            or len(features) != 2
        ):
            raise UsageError(f"{kind} gives no tokens or feature map: it is no vision backbone.")
        patch = getattr(self._config, "patch_size", None)
        if not maps and isinstance(patch, int) and patch > 0:
            maps.append((side // patch, getattr(self._config, "hidden_size", 0)))
        cells = find_cells(features, maps, count_extra(self._model))
        if cells is None:
            raise UsageError(
                f"{kind} gives {' x '.join(map(str, features.shape[1:]))} values for an image of {side} x {side} "
                "pixels, in which no square of patches can be told from other tokens."
            )
        return cells
