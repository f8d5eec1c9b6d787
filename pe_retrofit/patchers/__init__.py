"""Where positions act in each family of models: one small descriptor per family, and how to install a site."""

from .family import FAMILIES, Family, Host, find_host

__all__ = ["FAMILIES", "Family", "Host", "find_host"]
