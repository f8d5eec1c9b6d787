"""Recipes: patch, calibrate, transfer, fine-tune, evaluate, save, from one file."""

from .schema import Recipe, load_recipe, make_recipe

__all__ = ["Recipe", "load_recipe", "make_recipe"]
