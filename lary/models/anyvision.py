"""Any vision backbone of transformers without a file of one's own: ``--model hf:<folder or hub id>``.

The checkpoint's ``preprocessor_config.json`` says how its frames are prepared, its ``config.json`` which class runs it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lary.models.networks import NetworkEncoder, check_frames, draw_transformers, load_transformers
from lary.models.preprocess import IMAGENET_MEAN, IMAGENET_STD
from lary.models.spec import MODELS, ModelContext, ModelSpec, Preprocess, ResizeMethod, Weights
from lary.models.tensors import CONFIG, Layout, configured_by, read_tensors
from lary.models.weights import Checkpoint, fetch_file, find_weights, random_weights, read_config
from lary.runtime import log
from lary.types import RANDOM, LaryError, Latents, UsageError, as_path

if TYPE_CHECKING:
    import torch

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
    crops = config.get("do_center_crop", False) and crop is not None
    target: Any = height
    if crops and crop is not None:
        target = crop if isinstance(crop, int) else crop["height"]
    short = height if crops and (isinstance(size, int) or "shortest_edge" in size) else None
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
        self._patches = _patches(config, spec.preprocess.size)
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


def _patches(config: Any, size: int) -> int | None:
    """How many patches a frame has, where the configuration knows its patch size."""
    patch = getattr(config, "patch_size", None)
    if not isinstance(patch, int) or patch < 1:
        return None
    return (size // patch) ** 2
