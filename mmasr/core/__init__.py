"""Re-parameterization of any ``nn.Module``: ASR, attaching and folding. Needs torch only."""
