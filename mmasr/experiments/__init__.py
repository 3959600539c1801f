"""Measurements and comparisons of networks, and small datasets for them."""
