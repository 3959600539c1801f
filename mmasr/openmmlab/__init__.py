"""Code that needs OpenMMLab (mmengine, mmcv, mmdet, mmpretrain or mmseg) to train and evaluate."""
