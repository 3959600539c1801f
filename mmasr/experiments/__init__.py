"""Measuring and comparing networks, and small data sets to do it on."""
