"""What a config from a stranger may build, and with what: classes that only compute, and those that only read local images and
annotations.

Of everything that is registered under :data:`MODEL`, the constructor and the forward were looked at: what they do with numbers,
booleans and plain words. Nothing else may be built, of OpenMMLab's other packages either.
"""

from collections.abc import Iterable, Mapping

#: Packages whose registered names are known.
PACKAGES = {'mmasr', 'mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'mmseg'}

#: Modules with what a model is built from.
MODEL = (
    *('mmasr.attention', 'mmasr.convolutions', 'mmasr.core', 'mmasr.experiments.noise', 'mmasr.openmmlab'),
    *('mmcv.cnn.bricks', 'mmcv.ops', 'mmseg.structures.sampler', 'torch.nn.modules'),
    *('mmengine.model.base_model', 'mmengine.model.weight_init', 'mmengine.utils.dl_utils.parrots_wrapper'),
    *(
        f'mmdet.models.{room}'
        for room in (
            *('backbones', 'data_preprocessors', 'dense_heads', 'detectors', 'layers', 'losses', 'mot', 'necks', 'reid'),
            *('roi_heads', 'seg_heads', 'task_modules', 'test_time_augs', 'trackers', 'tracking_heads', 'utils', 'vis'),
        )
    ),
    *(
        f'mmpretrain.models.{room}'
        for room in ('backbones', 'classifiers', 'heads', 'losses', 'necks', 'selfsup', 'tta', 'utils')
    ),
    *(
        f'mmseg.models.{room}'
        for room in (
            *('assigners', 'backbones', 'data_preprocessor', 'decode_heads', 'losses', 'necks', 'segmentors'),
            *('text_encoder', 'utils'),
        )
    ),
)

#: What is left out of them, module or class, and why.
LEFT_OUT = {
    'mmengine.model.weight_init.PretrainedInit': 'loads a checkpoint that it names',
    'mmdet.models.dense_heads.atss_vlfusion_head': 'downloads a language model',
    'mmdet.models.detectors.d2_wrapper': "builds Detectron2's models from its own configs",
    'mmdet.models.detectors.kd_one_stage': 'loads a teacher from a config and a checkpoint that it names',
    'mmdet.models.detectors.glip': 'needs a language model, which is downloaded',
    'mmdet.models.detectors.grounding_dino': 'needs a language model, which is downloaded',
    'mmdet.models.detectors.lad': 'loads a teacher from a checkpoint that it names',
    'mmdet.models.task_modules.tracking.aflink': 'loads a checkpoint that it names',
    'mmdet.models.task_modules.tracking.camera_motion_compensation': 'evaluates a string as Python',
    'mmpretrain.models.classifiers.hugging_face': 'downloads what it is told to',
    'mmpretrain.models.heads.grounding_head': 'needs a tokenizer, which is downloaded',
    'mmpretrain.models.heads.itc_head': 'needs a tokenizer, which is downloaded',
    'mmpretrain.models.heads.itm_head': 'needs a tokenizer, which is downloaded',
    'mmpretrain.models.heads.seq_gen_head': 'needs a tokenizer, which is downloaded',
    'mmpretrain.models.heads.vqa_head': 'loads answers from a file that it names',
    'mmpretrain.models.selfsup.milan': 'loads a checkpoint that it names',
    'mmpretrain.models.utils.huggingface': 'downloads what it is told to',
    'mmpretrain.models.utils.tokenizer': 'downloads what it is told to',
    'mmpretrain.models.utils.vector_quantizer': 'loads a checkpoint that it names',
    'mmseg.models.backbones.timm_backbone': "downloads timm's weights where nothing else is said",
    'mmseg.models.backbones.vpd': 'builds what a config of its own names, and loads checkpoints that it names',
    'mmseg.models.text_encoder': 'evaluates a string as Python',
}

#: Arguments of models that are numbers, and where they are a string the name of a file that is unpickled.
NUMBERS_OR_FILES = ('class_weight',)

_TIMM = ('in_channels', 'in_chans', 'num_classes', 'drop_rate', 'drop_path_rate', 'model_name', 'features_only', 'out_indices')
_DATASET = (
    *('ann_file', 'data_root', 'data_prefix', 'metainfo', 'classes', 'pipeline'),
    *('filter_cfg', 'indices', 'serialize_data', 'test_mode', 'lazy_init', 'max_refetch'),
)
_SCALE = ('scale', 'scale_factor', 'keep_ratio', 'clip_object_border', 'backend', 'interpolation')
_COCO_METRIC = ('ann_file', 'metric', 'classwise', 'proposal_nums', 'iou_thrs', 'metric_items', 'sort_categories', 'prefix')
_LOAD_ANNOTATIONS = (
    *('with_bbox', 'with_label', 'with_mask', 'with_seg', 'with_keypoints', 'poly2mask', 'box_type', 'reduce_zero_label'),
    *('ignore_index', 'imdecode_backend'),
)

#: What data may consist of, and with which arguments.
DATA = {
    'mmdet.datasets.coco.CocoDataset': (*_DATASET, 'return_classes'),
    'mmdet.datasets.cityscapes.CityscapesDataset': (*_DATASET, 'return_classes'),
    'mmdet.datasets.lvis.LVISV1Dataset': (*_DATASET, 'return_classes'),
    'mmdet.datasets.objects365.Objects365V2Dataset': (*_DATASET, 'return_classes'),
    'mmdet.datasets.dataset_wrappers.ConcatDataset': ('datasets', 'lazy_init'),
    'mmpretrain.datasets.imagenet.ImageNet': (*_DATASET, 'split', 'with_label', 'extensions'),
    'mmpretrain.datasets.custom.CustomDataset': (*_DATASET, 'with_label', 'extensions'),
    # They unpickle, but only files whose checksums they know.
    'mmpretrain.datasets.cifar.CIFAR10': (*_DATASET, 'split', 'download'),
    'mmpretrain.datasets.cifar.CIFAR100': (*_DATASET, 'split', 'download'),
    'mmasr.openmmlab.datasets.STL10': _DATASET,
    **{
        f'mmseg.datasets.{name}': (*_DATASET, 'img_suffix', 'seg_map_suffix', 'ignore_index', 'reduce_zero_label')
        for name in (
            *('ade.ADE20KDataset', 'basesegdataset.BaseSegDataset', 'chase_db1.ChaseDB1Dataset'),
            *('cityscapes.CityscapesDataset', 'coco_stuff.COCOStuffDataset', 'dark_zurich.DarkZurichDataset'),
            *('drive.DRIVEDataset', 'hrf.HRFDataset', 'isaid.iSAIDDataset', 'isprs.ISPRSDataset', 'loveda.LoveDADataset'),
            *('mapillary.MapillaryDataset_v1', 'mapillary.MapillaryDataset_v2', 'night_driving.NightDrivingDataset'),
            *('pascal_context.PascalContextDataset', 'pascal_context.PascalContextDataset59'),
            *('potsdam.PotsdamDataset', 'stare.STAREDataset', 'voc.PascalVOCDataset'),
        )
    },
    'mmengine.dataset.sampler.DefaultSampler': ('shuffle', 'seed', 'round_up'),
    'mmengine.dataset.utils.pseudo_collate': (),
    'mmengine.dataset.utils.default_collate': (),
    'mmcv.transforms.loading.LoadImageFromFile': ('to_float32', 'color_type', 'imdecode_backend', 'ignore_empty'),
    'mmcv.transforms.loading.LoadAnnotations': _LOAD_ANNOTATIONS,
    'mmdet.datasets.transforms.loading.LoadAnnotations': _LOAD_ANNOTATIONS,
    'mmseg.datasets.transforms.loading.LoadAnnotations': ('reduce_zero_label', 'imdecode_backend'),
    'mmcv.transforms.processing.Resize': _SCALE,
    'mmdet.datasets.transforms.transforms.Resize': _SCALE,
    'mmseg.datasets.transforms.transforms.Resize': _SCALE,
    'mmdet.datasets.transforms.transforms.FixScaleResize': _SCALE,
    'mmdet.datasets.transforms.transforms.FixShapeResize': ('width', 'height', 'pad_val', *_SCALE),
    'mmpretrain.datasets.transforms.processing.ResizeEdge': ('scale', 'edge', 'backend', 'interpolation'),
    'mmpretrain.datasets.transforms.processing.EfficientNetCenterCrop': (
        *('crop_size', 'crop_padding', 'interpolation', 'backend'),
    ),
    'mmcv.transforms.processing.CenterCrop': ('crop_size', 'auto_pad', 'pad_cfg', 'clip_object_border'),
    'mmcv.transforms.processing.Normalize': ('mean', 'std', 'to_rgb'),
    'mmcv.transforms.processing.Pad': ('size', 'size_divisor', 'pad_to_square', 'pad_val', 'padding_mode'),
    'mmdet.datasets.transforms.transforms.Pad': ('size', 'size_divisor', 'pad_to_square', 'pad_val', 'padding_mode'),
    'mmdet.datasets.transforms.formatting.PackDetInputs': ('meta_keys',),
    'mmpretrain.datasets.transforms.formatting.PackInputs': ('input_key', 'algorithm_keys', 'meta_keys'),
    'mmseg.datasets.transforms.formatting.PackSegInputs': ('meta_keys',),
    'mmdet.evaluation.metrics.coco_metric.CocoMetric': _COCO_METRIC,
    'mmdet.evaluation.metrics.lvis_metric.LVISMetric': _COCO_METRIC,
    'mmpretrain.evaluation.metrics.single_label.Accuracy': ('topk', 'thrs', 'prefix'),
    'mmpretrain.evaluation.metrics.single_label.SingleLabelMetric': ('thrs', 'items', 'average', 'num_classes', 'prefix'),
    'mmseg.evaluation.metrics.iou_metric.IoUMetric': ('ignore_index', 'iou_metrics', 'nan_to_num', 'beta', 'prefix'),
    'mmengine.runner.loops.TestLoop': ('fp16',),
}

#: Arguments of those that hand others on to what loads files, and of all of :data:`DATA`. Any other may be None or False.
ARGUMENTS = {
    'mmpretrain.models.backbones.timm_backbone.TIMMBackbone': _TIMM,
    'mmpretrain.models.classifiers.timm.TimmClassifier': (*_TIMM, 'loss', 'train_cfg', 'with_cp', 'data_preprocessor'),
    'mmasr.openmmlab.without_attention.WithoutAttention': (
        *('network', 'modules', 'data_preprocessor', 'train_cfg', 'test_cfg'),
    ),
    **DATA,
}
#: What a dataloader may be given.
LOADER = ('batch_size', 'num_workers', 'persistent_workers', 'pin_memory', 'drop_last', 'sampler', 'dataset', 'collate_fn')
#: Arguments that name files or folders of data.
PATHS = ('ann_file', 'data_root', 'data_prefix')


def path_of(found: object) -> str:
    """The full name of a class or a function."""
    return f'{getattr(found, "__module__", "")}.{getattr(found, "__qualname__", "")}'


def reason_against(found: object, trusted: Iterable[str] = ()) -> str | None:
    """Why something that is registered may not be built into a model; None if it may.

    Args:
        found (object): A class or a function.
        trusted (Iterable[str]): Modules of which everything may be.
    """
    if is_below(found, LEFT_OUT):
        return next(reason for part, reason in LEFT_OUT.items() if is_below(found, [part]))
    return None if is_below(found, [*MODEL, *trusted]) else 'it is not known'


def forbidden(config: Mapping[str, object], allowed: Iterable[str]) -> list[str]:
    """The arguments in a config that are not among the allowed ones, but for those that are None or False: these only switch
    something off.

    Args:
        config (Mapping[str, object]): What builds something.
        allowed (Iterable[str]): Names of arguments.
    """
    given = (key for key, value in config.items() if value is not None and value is not False)
    return [key for key in given if key not in (*allowed, 'type', '_scope_')]


def is_below(found: object, parts: Iterable[str]) -> bool:
    """Whether something, or what has this full name, is one of some modules and classes, or within one."""
    path = found if isinstance(found, str) else path_of(found)
    return any(path == part or path.startswith(f'{part}.') for part in parts)
