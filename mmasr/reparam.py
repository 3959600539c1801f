"""``mmasr.reparam.reparameterize``, the Python of tools/reparam.py."""

from .deploy.reparameterize import Report, reparameterize

__all__ = ['Report', 'reparameterize']
