"""Everything random about the data, each draw from a seed and the number of its row alone.

So neither the number of workers or processes nor where a run was interrupted changes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

ORDER, ROW, EVALUATED, BUFFER = range(4)
"""What is drawn: the order of a pass, what happens to a row, or to one for evaluation, the shuffling of a stream."""

Order = Sequence[int] | np.ndarray
"""Numbers of rows, one after the other."""


def generator(seed: int, *numbers: int) -> np.random.Generator:
    """A generator for one purpose; other ``numbers`` give an independent one."""
    return np.random.default_rng([seed, *numbers])


def torch_generator(random: np.random.Generator) -> torch.Generator:
    """A torch generator seeded by the next draw of another."""
    return torch.Generator().manual_seed(int(random.integers(2**63)))


def pose(random: np.random.Generator, length: int, target_length: int, chunks: int) -> Tensor:
    """Position ids int64 ``[length]`` that skip between chunks (PoSE).

    The row is cut into ``chunks`` pieces of random size, at least one token each. The first starts at position 0; piece
    i is moved by ``u_i``, uniform on ``u_{i-1} .. target_length - length``, with ``u_0 = 0``. The tokens themselves are
    consecutive.

    Source: Zhu et al., PoSE: Efficient Context Window Extension of LLMs via Positional Skip-wise Training, 2023, arXiv
    2309.10400.
    """
    cuts = np.sort(random.choice(length - 1, chunks - 1, replace=False)) + 1
    skips = [0]
    for _ in range(chunks - 1):
        skips.append(int(random.integers(skips[-1], target_length - length + 1)))
    sizes = np.diff([0, *cuts, length])
    return torch.arange(length) + torch.from_numpy(np.repeat(skips, sizes))


def randomized(random: np.random.Generator, length: int, target_length: int) -> Tensor:
    """Position ids int64 ``[length]``: a uniformly drawn subset of ``range(target_length)``, ascending.

    Source: Ruoss et al., Randomized Positional Encodings Boost Length Generalization of Transformers, 2023, arXiv
    2305.16843.
    """
    return torch.from_numpy(np.sort(random.choice(target_length, length, replace=False, shuffle=False)))


def order(seed: int, turn: int, count: int, *, shuffle: bool) -> Order:
    """The order of ``count`` rows in pass ``turn`` over them."""
    return generator(seed, ORDER, turn).permutation(count) if shuffle else range(count)
