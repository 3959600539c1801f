# The control for retinanet_lite0_asr_se_abrupt: it starts as that one does, and its ASR does not train.
_base_ = 'retinanet_lite0_asr_se_abrupt.py'

optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'.asr.': dict(lr_mult=0, decay_mult=0)}, bypass_duplicate=True)
)
