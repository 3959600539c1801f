"""From a trained checkpoint to deployed files."""
