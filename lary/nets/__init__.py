"""The networks that no library has, and the code tables of the LAQ family, without torch,
because records need them.
"""

from collections.abc import Mapping
from typing import Any

Conv = tuple[int | tuple[int, int], int, int]
"""Kernel, stride, padding."""

CODE_STACKS: dict[int, tuple[Conv, ...]] = {
    1: ((3, 2, 1), (4, 1, 0)),
    2: ((3, 2, 1), ((3, 4), 1, 0)),
    4: ((3, 2, 1), (3, 1, 0)),
    16: ((3, 2, 1), (3, 2, 1)),
    49: ((3, 2, 1),),
    64: ((2, 2, 1),),
    256: ((3, 2, 1),),
}
"""Convolutions by the code length of a configuration. How many rows come out depends on
the grid as well.
"""


def code_rows(code_seq_len: int, grid: int) -> int:
    """Rows of a code: positions that are left of a grid after its convolutions; 0 for a
    length that has none.
    """
    height = width = grid
    for kernel, stride, padding in CODE_STACKS.get(code_seq_len, ()):
        high, wide = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        height = (height + 2 * padding - high) // stride + 1
        width = (width + 2 * padding - wide) // stride + 1
    return height * width if code_seq_len in CODE_STACKS else 0


def quantizer_parameters(sizes: Mapping[str, Any]) -> int:
    """Parameters of a `DifferenceQuantizer` of these sizes: codebook, projections in and
    out, convolutions.
    """
    dim, width = sizes["dim"], sizes["quant_dim"]
    count = sizes["codebook_size"] * width + (dim + 1) * width + (width + 1) * dim
    for kernel, _, _ in CODE_STACKS[sizes["code_seq_len"]]:
        high, wide = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        count += width * (width * high * wide + 1)
    return int(count)
