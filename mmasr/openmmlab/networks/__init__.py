"""Plain networks of the paper that MMPretrain does not have. Folded networks are of these classes."""
