"""The training of latent action models.

A finished training is a folder with

``model.safetensors``
    the weights, by the keys of the published checkpoints but
    without the backbone's; averaged ones where they are averaged;
``training.json``
    the record: ``schema`` (1), ``options`` (all fields of
    `TrainLamConfig`), ``sizes`` (arguments of
    `LatentActionModel`), ``backbone`` (``model``: the record's
    name; ``weights``: path, hub id or ``random``; ``seed``;
    ``digest``, ``revision``: of its weights), ``preprocess``
    (fields of `Preprocess`: what the network was given),
    ``weights_digest`` (of model.safetensors), ``manifest``
    (as the source returns it), ``curves`` (``train``,
    ``monitor`` and ``validation``: lists of rows with a
    ``step``), ``verdict`` (``state`` and ``text``),
    ``finished``, and ``versions``;
``.work/state.pt``
    what resumes it: networks, moments, counters, curves;
``published.pt``
    with ``--export published``, the flat form of the
    published code with the backbone's weights.
"""

import torch
from torch import nn

BETAS = (0.9, 0.99)
CLIP = 0.5
"""Largest norm of all gradients together, as published."""


def make_optimizer(network: nn.Module, rate: float, decay: float) -> torch.optim.Adam:
    """Adam, or with weight decay AdamW, over all that is trained, as published.

    Only tensors of at least two dimensions decay.
    """
    weights = [value for value in network.parameters() if value.requires_grad]
    if not decay:
        return torch.optim.Adam(weights, lr=rate, betas=BETAS, fused=True)
    wide = [value for value in weights if value.ndim >= 2]
    rest = [value for value in weights if value.ndim < 2]
    groups = [{"params": wide, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=BETAS, fused=True)
