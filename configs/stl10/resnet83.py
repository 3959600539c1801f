_base_ = [
    '../_base_/datasets/stl10.py',
    '../_base_/networks/resnet83.py',
    '../_base_/schedules/step_81_122.py',
    '../_base_/default_runtime.py',
]
