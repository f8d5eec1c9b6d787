"""The attention function that carries every encoding, and its kernels."""

from .interface import NAME, register
from .select import KERNELS

__all__ = ["KERNELS", "NAME", "register"]
