"""Recipes: from a file of data to a patched, calibrated, trained, measured and saved model."""
