"""ASR, putting re-parameterization into a network, and folding it. Needs torch only, and works on any ``nn.Module``."""
