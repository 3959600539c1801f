"""Whatever needs OpenMMLab: mmengine, mmcv, mmdet or mmpretrain."""
