"""``--weights random``: a model's architecture at its full size, its weights drawn from the seed instead of read.

What such a model's tokens tell of an action, they tell by their architecture alone (a control, see Hewitt and Liang
2019). Every tensor is drawn on the CPU from the seed and its own name, so that neither the device nor the order in
which a network is built has a say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lary.files import digest

if TYPE_CHECKING:
    import torch

TABLE_STD = 0.02
"""Of position embeddings and learned tokens, as vision transformers begin."""
CODEBOOK = "vq"
"""What the names of codebooks begin with; their rows have the scale of the latents that look for them."""
STARTS_AT_ZERO = ("bias", "beta", "running_mean")


def weights_name(seed: int, configuration: str = "") -> str:
    """What stands for the digest of weights that were drawn.

    Args:
        configuration: the network's, where the model's record does not hold it.
    """
    name = f"random weights, seed {seed}"
    return f"{name}, configuration {digest(configuration)}" if configuration else name


def draw(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Give a network, which may be without memory yet, random weights; returns it in eval mode.

    Matrices and convolutions have a standard deviation of 1 / sqrt(inputs), tables of rows `TABLE_STD`, codebooks 1;
    scales of norms are 1, shifts 0. Buffers that have memory already are constants of the architecture and stay.
    """
    from torch import nn

    for prefix, module in network.named_modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            value = _value(module, f"{prefix}.{key}".strip("."), parameter, seed)
            module.register_parameter(key, nn.Parameter(value, requires_grad=parameter.requires_grad))
        for key, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                module.register_buffer(key, _value(module, f"{prefix}.{key}".strip("."), buffer, seed))
    return network.eval()


def _value(module: torch.nn.Module, name: str, like: torch.Tensor, seed: int) -> torch.Tensor:
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


def draw_transformers(model_class: Any, config: Any, seed: int) -> torch.nn.Module:
    """A model of transformers in float32 with random weights. Its buffers are those that the library computes."""
    import torch

    with _parameters_without_memory(), torch.random.fork_rng(devices=[]):  # the caller's draws stay what they were
        network: torch.nn.Module = model_class(config)
    return draw(network, seed)


@contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """Modules built in here have parameters on the meta device: the library's own draws of them would be lost."""
    from torch import nn
    from torch.nn.modules.module import register_module_parameter_registration_hook

    def drop(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(drop)  # type: ignore[arg-type]  # its result replaces
    try:
        yield
    finally:
        hook.remove()
