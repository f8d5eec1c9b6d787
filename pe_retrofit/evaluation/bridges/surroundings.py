"""What lm-eval finds around it while it runs: fresh generators, and a terminal it cannot write to."""

from __future__ import annotations

import io
import logging
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import numpy as np

from ...models import quiet

INSTALL = "pip install 'pe_retrofit[eval]'"

NUMPY_SEED = 1234
"""lm-eval's default; its default for ``random`` is 0."""


@contextmanager
def silent() -> Iterator[None]:
    """Keep its prints, bars and warnings off the terminal; what matters in them is checked here instead."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with quiet(), redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Its generators as a fresh ``lm_eval`` process has them (seed 0: with its default seeds); ours stay untouched."""
    before = random.getstate(), np.random.get_state()
    sys.modules.pop("lm_eval.tasks.ruler.cwe_utils", None)  # holds a generator that remembers what was built before
    random.seed(seed)
    np.random.seed((NUMPY_SEED + seed) % 2**32)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
