_base_ = [
    '../_base_/datasets/stl10.py',
    '../_base_/networks/repvgg_b3.py',
    '../_base_/schedules/step_130.py',
    '../_base_/default_runtime.py',
]
