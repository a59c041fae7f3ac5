"""Image backbones, each frame by itself, through transformers: DINOv2, DINOv3, SigLIP 2, and any ``hf:<folder or id>``.

Of the latter, the checkpoint's ``preprocessor_config.json`` says how its frames are prepared, its ``config.json`` which
class runs it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lary.models.networks import NetworkEncoder, check_frames, draw_transformers, load_transformers
from lary.models.preprocess import (
    CUBIC_224,
    CUBIC_224_IMAGENET,
    CUBIC_224_SIGNED,
    IMAGENET_MEAN,
    IMAGENET_STD,
    mix_planes,
)  # fmt: skip
from lary.models.spec import MODELS, ModelContext, ModelSpec, Preprocess, ResizeMethod, Weights, register_model
from lary.models.tensors import CONFIG, Layout, configured_by, read_tensors
from lary.models.weights import Checkpoint, fetch_file, find_weights, random_weights, read_config
from lary.runtime import log
from lary.types import RANDOM, LaryError, Latents, UsageError, as_path

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Backbone:
    """How transformers runs checkpoints of one ``model_type``.

    Attributes:
        model: class of transformers.
        leading: tokens before the patches, besides the register tokens that the configuration counts.
        patches: the model wants flattened patches instead of an image.
        one_size: position embeddings exist for the configuration's image size alone.
        prefix: of the image tower's keys in a file that holds a text tower too.
        unused: beginnings of keys on which the patch tokens don't depend; they may be missing and aren't read.
    """

    model: str
    leading: int
    patches: bool = False
    one_size: bool = False
    prefix: str = ""
    unused: tuple[str, ...] = ()


_MASK = ("embeddings.mask_token",)
_TEXT_AND_POOLING = ("text_model.", "logit_scale", "logit_bias", "head.", "vision_model.head.")
_SIGLIP = Backbone("SiglipVisionModel", leading=0, one_size=True, prefix="vision_model.", unused=_TEXT_AND_POOLING)
_SIGLIP2 = Backbone("Siglip2VisionModel", leading=0, patches=True, prefix="vision_model.", unused=_TEXT_AND_POOLING)

BACKBONES = {
    "dinov2": Backbone("Dinov2Model", leading=1, unused=_MASK),
    "dinov2_with_registers": Backbone("Dinov2WithRegistersModel", leading=1, unused=_MASK),
    "dinov3_vit": Backbone("DINOv3ViTModel", leading=1, unused=_MASK),
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "siglip2": _SIGLIP2,
    "siglip2_vision_model": _SIGLIP2,
}

DINOV2_LARGE: dict[str, Any] = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "mlp_ratio": 4, "hidden_act": "gelu",
    "layer_norm_eps": 1e-6, "image_size": 518, "patch_size": 14, "num_channels": 3, "qkv_bias": True,
    "layerscale_value": 1.0, "use_swiglu_ffn": False, "use_mask_token": True,
}  # fmt: skip
"""``facebook/dinov2-large``."""

DINOV3_LARGE: dict[str, Any] = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    "hidden_act": "gelu", "layer_norm_eps": 1e-5, "rope_theta": 100.0, "image_size": 224, "patch_size": 16,
    "num_channels": 3, "query_bias": True, "key_bias": False, "value_bias": True, "proj_bias": True, "mlp_bias": True,
    "layerscale_value": 1.0, "use_gated_mlp": False, "num_register_tokens": 4, "pos_embed_rescale": 2.0,
}  # fmt: skip
"""``facebook/dinov3-vitl16-pretrain-lvd1689m``."""

SIGLIP2_BASE: dict[str, Any] = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "image_size": 224, "patch_size": 16,
    "num_channels": 3, "vision_use_head": True,
}  # fmt: skip
"""Image tower of ``google/siglip2-base-patch16-224``, with its pooling head."""

DINOV2_WEIGHTS = Weights(
    variable="DINO_V2_PATH", folder="DINOv2", hub="facebook/dinov2-large",
    revision="47b73eefe95e8d44ec3623f8890bd894b6ea2d6c",
)  # fmt: skip

DINOV3_WEIGHTS = Weights(
    variable="DINO_V3_PATH", folder="DINOv3", hub="facebook/dinov3-vitl16-pretrain-lvd1689m",
    revision="ea8dc2863c51be0a264bab82070e3e8836b02d51",
)  # fmt: skip

SIGLIP2_WEIGHTS = Weights(
    variable="SIGLIP2_PATH", folder="SigLIP2", hub="google/siglip2-base-patch16-224",
    revision="75de2d55ec2d0b4efc50b3e9ad70dba96a7b2fa2",
)  # fmt: skip

_MIXED = "frames are reshaped, not permuted: each image mixes colour planes of several frames"


def _record(name: str, count: int, accepts: tuple[str, ...], config: dict[str, Any], **fields: Any) -> ModelSpec:
    """A record of a backbone with `count` patch tokens per frame; under ``paper`` its frames are mixed."""
    dim, (paper, difference) = config["hidden_size"], fields.pop("paper_pixels")
    return ModelSpec(
        name=name, paradigm="semantic encoder", dim=dim, pair_shape=(2, count, dim), clip_shape=(9, count, dim),
        options={"accepts": accepts, "mix_planes": False, "config": config}, options_paper={"mix_planes": True},
        preprocess_paper=paper, paper_differences=(_MIXED, difference), **fields,
    )  # fmt: skip


_SIGNED = (CUBIC_224_SIGNED, "pixels are x * 2 - 1 instead of ImageNet's normalisation")

DINOV2 = _record(
    "dinov2-origin",
    256,
    ("dinov2", "dinov2_with_registers"),
    {"model_type": "dinov2", **DINOV2_LARGE},
    weights=DINOV2_WEIGHTS,
    preprocess=CUBIC_224_IMAGENET,
    paper_pixels=_SIGNED,
    notes=("Checkpoints with register tokens are accepted too; class and register tokens are left out.",),
    parameters_m=304.37,
    licence="Apache-2.0",
    reference="Oquab et al. 2023, arXiv 2304.07193",
    description="DINOv2 ViT-L/14, patch tokens of each frame",
    class_token=True,
    in_demo=True,
)

DINOV3 = _record(
    "dinov3-origin",
    196,
    ("dinov3_vit",),
    {"model_type": "dinov3_vit", **DINOV3_LARGE},
    weights=DINOV3_WEIGHTS,
    preprocess=CUBIC_224_IMAGENET,
    paper_pixels=_SIGNED,
    notes=("Class and register tokens are left out. The hub's repository is gated: ask for access on its page.",),
    parameters_m=303.13,
    licence="DINOv3 License",
    reference="Siméoni et al. 2025, arXiv 2508.10104",
    description="DINOv3 ViT-L/16, patch tokens of each frame",
    class_token=True,
)

SIGLIP2 = _record(
    "siglip2-origin",
    196,
    ("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model"),
    {"model_type": "siglip_vision_model", **SIGLIP2_BASE},
    weights=SIGLIP2_WEIGHTS,
    preprocess=CUBIC_224_SIGNED,
    paper_pixels=(CUBIC_224, "pixels stay in [0, 1] instead of x * 2 - 1"),
    notes=("The paper's siglip2 row is the latent action model on these tokens, not this encoder.",),
    parameters_m=85.80,
    licence="Apache-2.0",
    reference="Tschannen et al. 2025, arXiv 2502.14786",
    description="Image tower of SigLIP 2 base, patch 16, without its pooling head: patch tokens of each frame",
)


@register_model(DINOV2, DINOV3, SIGLIP2)
class ImageEncoder(NetworkEncoder):
    """Patch tokens of every frame, after the backbone's final norm: P = T, N patches in rows, D of the checkpoint.

    The checkpoint's ``config.json`` decides about architecture, size and leading tokens. A checkpoint of another
    size than the record's is run, with a line in the log: the latents carry its D and its digest.
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
        backbone = BACKBONES[kind]
        model_class = getattr(transformers, backbone.model)
        with configured_by(found.folder, backbone.model):
            settings = model_class.config_class.from_dict(image_tower(config))
        self._side: int = spec.preprocessing(context.protocol).size
        if backbone.one_size and settings.image_size != self._side:
            raise UsageError(
                f"Weights of '{spec.name}': {found.folder} is for images of {settings.image_size} pixels, "
                f"the record prepares {self._side}."
            )
        if found.seed is not None:
            self._model = draw_transformers(model_class, settings, found.seed)
        else:
            tensors = read_tensors(found.files, Layout(unused=backbone.unused))
            if backbone.prefix:  # files of the image tower alone lack it
                tensors = {backbone.prefix + key.removeprefix(backbone.prefix): tensors[key] for key in tensors}
            self._model = load_transformers(
                model_class, settings, tensors, unused=backbone.unused, folder=found.folder
            )  # fmt: skip
        self._model.to(context.device)
        super().__init__(spec, context, found.identity, settings.hidden_size)
        self._mix_planes: bool = options["mix_planes"]
        self._leading = backbone.leading + int(getattr(settings, "num_register_tokens", 0) or 0)
        self._class_token = backbone.leading > 0
        self._patch: int | None = settings.patch_size if backbone.patches else None

    def encode(self, clips: torch.Tensor) -> Latents:
        """Clips (B, T, 3, H, W) to tokens (B, T, N, D) and class tokens (B, T, D) float32, on its device.

        Raises:
            LaryError: not clips, or frames of another size than the record's.
        """
        check_frames(self._spec, clips, side=self._side)
        if self._mix_planes:
            clips = mix_planes(clips)
        tokens = self.run_alone(clips)
        cls = tokens[:, :, 0] if self._class_token else None
        return Latents(tokens[:, :, self._leading :], cls=cls)

    def run(self, clips: torch.Tensor) -> torch.Tensor:
        """Clips (B, T, 3, H, W) to all tokens (B, T, leading + N, D)."""
        images = clips.flatten(0, 1)
        inputs = {"pixel_values": images} if self._patch is None else patch_inputs(images, self._patch)
        tokens: torch.Tensor = self._model(**inputs).last_hidden_state
        return tokens.reshape(*clips.shape[:2], *tokens.shape[1:])


def image_tower(config: dict[str, Any]) -> dict[str, Any]:
    """The image tower's part of a configuration, without its pooling head, which the patch tokens don't pass."""
    tower = dict(config.get("vision_config", config))
    return {**tower, "vision_use_head": False} if "siglip" in config["model_type"] else tower


def patch_inputs(images: torch.Tensor, patch: int) -> dict[str, torch.Tensor]:
    """Inputs of a model of variable resolution: images (B, 3, H, W) cut into patches (B, N, patch * patch * 3)."""
    import torch

    batch, channels, height, width = images.shape
    rows, columns = height // patch, width // patch
    cut = images[:, :, : rows * patch, : columns * patch].reshape(batch, channels, rows, patch, columns, patch)
    return {
        "pixel_values": cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, patch * patch * channels),
        "pixel_attention_mask": torch.ones(batch, rows * columns, dtype=torch.int32, device=images.device),
        "spatial_shapes": torch.tensor([[rows, columns]], device=images.device).expand(batch, 2),
    }


PREFIX = "hf:"
PROCESSOR = "preprocessor_config.json"
RESAMPLING: dict[int, ResizeMethod] = {1: "pil_lanczos", 2: "pil_bilinear", 3: "pil_bicubic"}
"""Pillow's numbers, which the configuration holds."""
UNUSED = (
    "classifier.", "cls_classifier.", "distillation_classifier.", "pooler.", "head.", "vision_model.head.", "decoder.",
    "lm_head.", "embeddings.mask_token", "text_model.", "text_projection.", "visual_projection.", "logit_scale",
    "logit_bias",
)  # fmt: skip
"""Beginnings of keys (behind the backbone's own prefix) that patch tokens don't depend on."""


def any_backbone(name: str) -> ModelSpec | None:
    """The record of ``hf:<folder or hub id>``; None for a name of another form.

    Raises:
        UsageError: there is nothing after the prefix, or the preparation of frames can't be read.
    """
    if not name.startswith(PREFIX):
        return None
    location = name.removeprefix(PREFIX)
    if not location or location == RANDOM:  # which is no folder in a model's context
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
    """How frames are prepared, from ``preprocessor_config.json``; without one, 224 pixels and ImageNet's statistics.

    Raises:
        UsageError: the file is there and can't be read, or asks for something that isn't known here.
    """
    file = as_path(location) / PROCESSOR if as_path(location).exists() else fetch_file(location, PROCESSOR)
    if file is None or not file.is_file():
        log.info("%s has no %s: frames are resized to 224 with ImageNet's mean and std", location, PROCESSOR)
        return Preprocess(resize="pil_bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD, reader="pil")
    try:
        return preprocess_of(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"The preparation of frames in {file} can't be used: {error!r}.") from error


def preprocess_of(config: dict[str, Any]) -> Preprocess:
    """Translate an image processor's configuration."""
    size, crop = config.get("size", 224), config.get("crop_size")
    height = size if isinstance(size, int) else size.get("height", size.get("shortest_edge"))
    crop = crop if config.get("do_center_crop", False) else None
    target: Any = height if crop is None else crop if isinstance(crop, int) else crop["height"]
    short = height if crop is not None and (isinstance(size, int) or "shortest_edge" in size) else None
    normalises = config.get("do_normalize", True)
    return Preprocess(
        size=int(target),
        short_side=None if short is None else int(short),
        resize=RESAMPLING[int(config.get("resample", 2))],
        scale=1 / float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
        mean=_three(config.get("image_mean", IMAGENET_MEAN)) if normalises else (0.0, 0.0, 0.0),
        std=_three(config.get("image_std", IMAGENET_STD)) if normalises else (1.0, 1.0, 1.0),
        reader="pil",
    )


def _three(values: Any) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third


def find_configuration(spec: ModelSpec, context: ModelContext) -> tuple[Path, Checkpoint]:
    """The folder of the checkpoint's ``config.json``, which is all that random weights need, and their identity.

    Raises:
        UsageError: there is no such file.
    """
    location = spec.weights.hub if spec.weights and spec.weights.hub else ""
    file = as_path(location) / CONFIG
    if not file.parent.exists():
        file = fetch_file(location, CONFIG, context.revision) or file
    if not file.is_file():
        raise UsageError(f"Model '{spec.name}': {location} has no {CONFIG}, or can't be reached.")
    return file.parent, random_weights(context.seed, file.read_text(encoding="utf-8"))


class AnyBackbone(NetworkEncoder):
    """Patch tokens of every frame: P = T, N patches in rows, D of the checkpoint.

    Tokens before the patches (class and register tokens) are those that the configuration's grid doesn't explain.
    """

    def __init__(self, spec: ModelSpec, context: ModelContext) -> None:
        import transformers

        if context.weights == RANDOM:
            folder, found = find_configuration(spec, context)
        else:
            found = find_weights(spec, context)
            folder = found.folder
        with configured_by(folder, "model of transformers"):
            config = transformers.AutoConfig.for_model(**read_config(folder))
        config = getattr(config, "vision_config", config)
        model_class: Any = transformers.MODEL_MAPPING.get(type(config), None)
        if model_class is None:
            raise UsageError(f"Model '{spec.name}': transformers has no backbone for a '{config.model_type}' model.")
        if found.seed is not None:
            self._model = draw_transformers(model_class, config, found.seed)
        else:
            own = f"{model_class.base_model_prefix}."
            unused = (*UNUSED, *(own + key for key in UNUSED))
            tensors = read_tensors(found.files, Layout(unused=unused))
            self._model = load_transformers(model_class, config, tensors, unused=unused, folder=folder)
        self._model.to(context.device)
        patch = getattr(config, "patch_size", None)  # a convolutional network has none
        self._patches = (spec.preprocess.size // patch) ** 2 if isinstance(patch, int) and patch > 0 else None
        super().__init__(spec, context, found.identity)

    def encode(self, clips: torch.Tensor) -> Latents:
        """Clips (B, T, 3, H, W) to tokens (B, T, N, D) float32.

        Raises:
            LaryError: not clips, frames of another size than the record's, or the model gives no sequence or map of
                features.
        """
        check_frames(self._spec, clips, side=self._spec.preprocess.size)
        return Latents(self.run_alone(clips))

    def run(self, clips: torch.Tensor) -> torch.Tensor:
        features = getattr(self._model(clips.flatten(0, 1)), "last_hidden_state", None)
        if features is None or features.ndim not in (3, 4):
            raise LaryError(f"Model '{self._spec.name}' gives no tokens or feature map: it is no vision backbone.")
        if features.ndim == 4:  # a convolutional map (B, C, H, W)
            features = features.flatten(2).transpose(1, 2)
        elif self._patches is not None and features.shape[1] > self._patches:
            features = features[:, features.shape[1] - self._patches :]
        tokens: torch.Tensor = features.reshape(*clips.shape[:2], *features.shape[1:])
        return tokens
