"""The Stripe Observation (the paper's section 3): see it on any network, measure it, and fold attention by it."""

from .modules import VALUES, attention_modules
from .observer import Observer, Stripes
from .statistics import ChannelStatistics

__all__ = ['VALUES', 'ChannelStatistics', 'Observer', 'Stripes', 'attention_modules']
