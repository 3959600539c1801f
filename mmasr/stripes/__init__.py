"""The Stripe Observation (the paper's section 3): see it on any network, measure it, and fold attention by it."""

from .observe import Observer, Stripes
from .statistics import ChannelStatistics
from .values import VALUES, attention_modules

__all__ = ['VALUES', 'ChannelStatistics', 'Observer', 'Stripes', 'attention_modules']
