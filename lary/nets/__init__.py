"""Networks that no library provides, and the sizes of the LAQ family's codes.

This module imports no torch: the records of models need the sizes.
"""

from collections.abc import Mapping
from typing import Any

Conv = tuple[tuple[int, int], int, int]
"""Kernel, stride, padding."""

CODE_STACKS: dict[int, tuple[Conv, ...]] = {
    1: (((3, 3), 2, 1), ((4, 4), 1, 0)),
    2: (((3, 3), 2, 1), ((3, 4), 1, 0)),
    4: (((3, 3), 2, 1), ((3, 3), 1, 0)),
    16: (((3, 3), 2, 1), ((3, 3), 2, 1)),
    49: (((3, 3), 2, 1),),
    64: (((2, 2), 2, 1),),
    256: (((3, 3), 2, 1),),
}
"""Convolutions by the `code_seq_len` of a configuration.

ReLU is between them, all channels are Q. Rows depend on the
grid, too: for 64, a grid of 14 gives 64, one of 16 gives 81.
"""


def code_rows(code_seq_len: int, grid: int) -> int:
    """The number of rows of a code: what convolutions leave of a square grid.

    It is 0 for a code length that `CODE_STACKS` lacks.
    """
    height = width = grid
    for (high, wide), stride, padding in CODE_STACKS.get(code_seq_len, ()):
        height = max(0, (height + 2 * padding - high) // stride + 1)
        width = max(0, (width + 2 * padding - wide) // stride + 1)
    return height * width if code_seq_len in CODE_STACKS else 0


def quantizer_parameters(sizes: Mapping[str, Any]) -> int:
    """The number of parameters of a `DifferenceQuantizer` of these sizes."""
    dim, width = sizes["dim"], sizes["quant_dim"]
    count = sizes["codebook_size"] * width + (dim + 1) * width + (width + 1) * dim
    for (high, wide), _, _ in CODE_STACKS[sizes["code_seq_len"]]:
        count += width * (width * high * wide + 1)
    return int(count)


def each_frame(network: Any, clips: Any) -> Any:
    """Apply a network to every frame by itself: (B, T, ...) to (B, T, ...)."""
    return network(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])


MOST_SEQUENCES = 65_535
"""CUDA's limit for the second axis of a grid of blocks."""


def sliced_attention(q: Any, k: Any, v: Any, **options: Any) -> Any:
    """Attention of tensors (B, heads, N, D), in slices that a kernel takes."""
    from torch import cat
    from torch.nn.functional import scaled_dot_product_attention

    slices = (each.split(MOST_SEQUENCES) for each in (q, k, v))
    found = [scaled_dot_product_attention(*part, **options) for part in zip(*slices, strict=True)]
    return found[0] if len(found) == 1 else cat(found)
