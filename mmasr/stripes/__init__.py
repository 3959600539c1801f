"""The Stripe Observation (section 3 of the paper): see it, measure it, and fold attention by it."""

from .modules import VALUES, attention_modules
from .observer import Observer, Stripes
from .statistics import ChannelStatistics

__all__ = ['VALUES', 'ChannelStatistics', 'Observer', 'Stripes', 'attention_modules']
