"""Registered backbones: stock classes with re-parameterization. A file is imported when one of its types is asked for."""
