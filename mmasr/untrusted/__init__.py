"""Open checkpoints from untrusted sources.

Threat model: an attacker controls every byte of a checkpoint, including the config inside. Opening,
deploying, evaluating or resuming it must not

- run code: :mod:`reader` interprets the pickle itself and calls nothing but its own functions,
  and safetensors contain no code; :mod:`config_text` parses the config as literals and never executes it;
  :mod:`embedded_config` and :mod:`allowlist` accept only reviewed classes, whose arguments are numbers,
  booleans and plain words;
- read, write or download other files: no argument may name one, except local images and annotations;
  :mod:`sandbox` refuses all loading while the network is built and run;
- take much more memory or time than an honest file of its size: :mod:`memory` limits the process, and
  :mod:`sandbox` the size of the network;
- reach the next user: deployed files are written from the checked config alone, and read back.

:func:`open_checkpoint` is the only entry point. Where mmengine's runner loads a checkpoint by itself, in
training and testing, :func:`data_only` replaces its loader, and :mod:`resuming` removes what a resumed
checkpoint would do besides training.

Not covered: a config that the user passes as a file, and modules that the user trusts with ``trust_imports``,
which run as any program; vulnerabilities in torch, numpy, mmcv and the other packages; the predictions of the
network.
"""

from .checkpoint import data_only
from .config_text import write_config
from .opening import Checkpoint, Network, Origin, open_checkpoint

__all__ = ['Checkpoint', 'Network', 'Origin', 'data_only', 'open_checkpoint', 'write_config']
