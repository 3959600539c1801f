"""Plain networks and layers of the paper that MMPretrain does not have. What is folded becomes one of these."""
