"""The core. Needs torch only, and works on any ``nn.Module``."""
