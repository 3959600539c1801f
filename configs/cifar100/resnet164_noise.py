# Noise in every BatchNorm: one of the five pairs of the paper's Table 9. docs/experiments.md lists the
# others.
_base_ = 'resnet164.py'

model = dict(backbone=dict(norm_cfg=dict(type='mmasr.NoisyBN', n_a=0.8, n_b=0.5)))
