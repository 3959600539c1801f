"""The cost of attention and of convolutions with branches, in every form, measured in one run."""
