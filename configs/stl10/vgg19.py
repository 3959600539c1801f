_base_ = [
    '../_base_/datasets/stl10.py',
    '../_base_/networks/vgg19.py',
    '../_base_/schedules/step_60_120_160.py',
    '../_base_/default_runtime.py',
]
