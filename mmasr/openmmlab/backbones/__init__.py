"""Registered backbones: stock classes with re-parameterization.

A file is imported only when a config asks for one of its types.
"""
