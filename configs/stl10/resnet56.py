_base_ = [
    '../_base_/datasets/stl10.py',
    '../_base_/networks/resnet56.py',
    '../_base_/schedules/cosine_164.py',
    '../_base_/default_runtime.py',
]
