"""Convolutions with branches that become one. Needs torch only."""
