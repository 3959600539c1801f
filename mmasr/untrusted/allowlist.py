"""Allow-list of what an embedded config may build, and with which arguments.

Model classes only compute. The constructor and the forward pass of every class under :data:`MODEL` were
reviewed for what they do with numbers, booleans and plain words; ``reviewed.txt`` lists them. Data classes
only read local images and annotations.
"""

from collections.abc import Iterable, Mapping

#: Packages whose registered names are known.
PACKAGES = {'mmasr', 'mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'mmseg'}

#: Modules with the classes of models.
MODEL = (
    *('mmasr.attention', 'mmasr.convolutions', 'mmasr.core', 'mmasr.experiments.noise', 'mmasr.openmmlab'),
    *('mmcv.cnn.bricks', 'mmcv.ops', 'mmseg.structures.sampler', 'torch.nn.modules'),
    *('mmengine.model.base_model', 'mmengine.model.weight_init', 'mmengine.utils.dl_utils.parrots_wrapper'),
    *(
        f'mmdet.models.{room}'
        for room in (
            *(
                'backbones',
                'data_preprocessors',
                'dense_heads',
                'detectors',
                'layers',
                'losses',
                'mot',
                'necks',
            ),
            *(
                'reid',
                'roi_heads',
                'seg_heads',
                'task_modules',
                'test_time_augs',
                'trackers',
                'tracking_heads',
            ),
            *('utils', 'vis'),
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

#: Modules and classes in them that are not allowed, and why.
EXCLUDED = {
    'mmengine.model.weight_init.PretrainedInit': 'it loads a checkpoint that it names',
    'mmdet.models.dense_heads.atss_vlfusion_head': 'it downloads a language model',
    'mmdet.models.detectors.d2_wrapper': "it builds Detectron2's models from their own configs",
    'mmdet.models.detectors.kd_one_stage': 'it loads a teacher from a config and a checkpoint that it names',
    'mmdet.models.detectors.glip': 'it downloads a language model',
    'mmdet.models.detectors.grounding_dino': 'it downloads a language model',
    'mmdet.models.detectors.lad': 'it loads a teacher from a checkpoint that it names',
    'mmdet.models.task_modules.tracking.aflink': 'it loads a checkpoint that it names',
    'mmdet.models.task_modules.tracking.camera_motion_compensation': 'it evaluates a string as Python',
    'mmpretrain.models.classifiers.hugging_face': 'it downloads a model that it names',
    'mmpretrain.models.heads.grounding_head': 'it downloads a tokenizer',
    'mmpretrain.models.heads.itc_head': 'it downloads a tokenizer',
    'mmpretrain.models.heads.itm_head': 'it downloads a tokenizer',
    'mmpretrain.models.heads.seq_gen_head': 'it downloads a tokenizer',
    'mmpretrain.models.heads.vqa_head': 'it loads answers from a file that it names',
    'mmpretrain.models.selfsup.milan': 'it loads a checkpoint that it names',
    'mmpretrain.models.utils.huggingface': 'it downloads a model that it names',
    'mmpretrain.models.utils.tokenizer': 'it downloads a tokenizer',
    'mmpretrain.models.utils.vector_quantizer': 'it loads a checkpoint that it names',
    'mmseg.models.backbones.timm_backbone': "it downloads timm's weights by default",
    'mmseg.models.backbones.vpd': 'it builds a separate config, and loads checkpoints that it names',
    'mmseg.models.text_encoder': 'it evaluates a string as Python',
}

#: Arguments of models that are numbers, but if they are a string, the name of a file that is unpickled.
NUMBERS_OR_FILES = ('class_weight',)

#: Classes of data, evaluation and what connects them.
DATA = (
    'mmdet.datasets.coco.CocoDataset',
    'mmdet.datasets.cityscapes.CityscapesDataset',
    'mmdet.datasets.lvis.LVISV1Dataset',
    'mmdet.datasets.objects365.Objects365V2Dataset',
    'mmdet.datasets.dataset_wrappers.ConcatDataset',
    'mmpretrain.datasets.imagenet.ImageNet',
    'mmpretrain.datasets.custom.CustomDataset',
    # These unpickle, but only files whose checksums they know.
    'mmpretrain.datasets.cifar.CIFAR10',
    'mmpretrain.datasets.cifar.CIFAR100',
    'mmasr.openmmlab.datasets.STL10',
    *(
        f'mmseg.datasets.{name}'
        for name in (
            *('ade.ADE20KDataset', 'basesegdataset.BaseSegDataset', 'chase_db1.ChaseDB1Dataset'),
            *('cityscapes.CityscapesDataset', 'coco_stuff.COCOStuffDataset', 'dark_zurich.DarkZurichDataset'),
            *('drive.DRIVEDataset', 'hrf.HRFDataset', 'isaid.iSAIDDataset', 'isprs.ISPRSDataset'),
            *('loveda.LoveDADataset', 'mapillary.MapillaryDataset_v1', 'mapillary.MapillaryDataset_v2'),
            *('night_driving.NightDrivingDataset', 'pascal_context.PascalContextDataset'),
            *('pascal_context.PascalContextDataset59', 'potsdam.PotsdamDataset', 'stare.STAREDataset'),
            'voc.PascalVOCDataset',
        )
    ),
    'mmengine.dataset.sampler.DefaultSampler',
    'mmengine.dataset.utils.pseudo_collate',
    'mmengine.dataset.utils.default_collate',
    *(f'mmcv.transforms.loading.{name}' for name in ('LoadImageFromFile', 'LoadAnnotations')),
    'mmdet.datasets.transforms.loading.LoadAnnotations',
    'mmseg.datasets.transforms.loading.LoadAnnotations',
    *(f'mmcv.transforms.processing.{name}' for name in ('Resize', 'CenterCrop', 'Normalize', 'Pad')),
    *(
        f'mmdet.datasets.transforms.transforms.{name}'
        for name in ('Resize', 'FixScaleResize', 'FixShapeResize', 'Pad')
    ),
    'mmseg.datasets.transforms.transforms.Resize',
    *(
        f'mmpretrain.datasets.transforms.processing.{name}'
        for name in ('ResizeEdge', 'EfficientNetCenterCrop')
    ),
    'mmdet.datasets.transforms.formatting.PackDetInputs',
    'mmpretrain.datasets.transforms.formatting.PackInputs',
    'mmseg.datasets.transforms.formatting.PackSegInputs',
    *('mmdet.evaluation.metrics.coco_metric.CocoMetric', 'mmdet.evaluation.metrics.lvis_metric.LVISMetric'),
    *(f'mmpretrain.evaluation.metrics.single_label.{name}' for name in ('Accuracy', 'SingleLabelMetric')),
    'mmseg.evaluation.metrics.iou_metric.IoUMetric',
    'mmengine.runner.loops.TestLoop',
)

#: Their arguments. None of these classes writes a file, downloads or runs anything because of one, except
#: ``download``.
DATA_ARGUMENTS = tuple(
    """
    ann_file data_root data_prefix metainfo classes pipeline datasets split extensions filter_cfg indices
    serialize_data test_mode lazy_init max_refetch return_classes download img_suffix seg_map_suffix
    ignore_index reduce_zero_label shuffle seed round_up fp16 with_bbox with_label with_mask with_seg
    with_keypoints poly2mask box_type to_float32 color_type imdecode_backend ignore_empty scale
    scale_factor keep_ratio clip_object_border backend interpolation width height edge crop_size
    crop_padding auto_pad pad_cfg mean std to_rgb size size_divisor pad_to_square pad_val padding_mode
    meta_keys input_key algorithm_keys metric classwise proposal_nums iou_thrs metric_items
    sort_categories prefix topk thrs items average num_classes iou_metrics nan_to_num beta
    """.split()
)

_TIMM = 'in_channels in_chans num_classes drop_rate drop_path_rate model_name features_only se_ratio'.split()

_ADDED_BY_RUNNERS = 'data_preprocessor', 'train_cfg', 'test_cfg'

#: Arguments of models that pass others on to code that loads files.
_MODEL_ARGUMENTS = {
    'mmpretrain.models.backbones.timm_backbone.TIMMBackbone': (*_TIMM, 'out_indices'),
    'mmpretrain.models.classifiers.timm.TimmClassifier': (
        *(*_TIMM, 'out_indices', 'loss', 'train_cfg', 'with_cp', 'data_preprocessor'),
    ),
    **{
        f'mmasr.openmmlab.{name}': ('network', 'modules', 'attention', *_ADDED_BY_RUNNERS)
        for name in ('with_attention.WithAttention', 'without_attention.WithoutAttention')
    },
}

#: Arguments of a dataloader.
LOADER = tuple(
    """
    batch_size num_workers persistent_workers pin_memory drop_last sampler dataset collate_fn
    """.split()
)

#: Arguments that name files or folders of data.
PATHS = ('ann_file', 'data_root', 'data_prefix')


def path_of(found: object) -> str:
    """Return the full name of a class or function."""
    return f'{getattr(found, "__module__", "")}.{getattr(found, "__qualname__", "")}'


def reason_against(found: object, trusted: Iterable[str] = ()) -> str | None:
    """Return why a registered class may not be built; None if it may.

    Args:
        found (object): A class or function.
        trusted (Iterable[str]): Modules whose classes are all allowed. Default: none.

    Returns:
        str | None: The reason.
    """
    if is_below(found, EXCLUDED):
        return next(reason for part, reason in EXCLUDED.items() if is_below(found, [part]))
    return (
        None
        if path_of(found) in DATA or is_below(found, [*MODEL, *trusted])
        else 'it is not on the allow-list'
    )


def allowed_arguments(found: object) -> tuple[str, ...] | None:
    """Return the arguments that a class may be given, apart from None and False; None if all are allowed."""
    path = path_of(found)
    return DATA_ARGUMENTS if path in DATA else _MODEL_ARGUMENTS.get(path)


def forbidden_arguments(config: Mapping[str, object], allowed: Iterable[str]) -> list[str]:
    """Return the arguments in a config that are not allowed; None and False are, as they only switch off.

    Args:
        config (Mapping[str, object]): Config of an object.
        allowed (Iterable[str]): Names of allowed arguments.

    Returns:
        list[str]: Names of the others.
    """
    given = (key for key, value in config.items() if value is not None and value is not False)
    return [key for key in given if key not in (*allowed, 'type', '_scope_')]


def is_below(found: object, parts: Iterable[str]) -> bool:
    """Return whether a class, or the full name of one, is among some modules and classes or inside one.

    Args:
        found (object): A class or function, or its full name.
        parts (Iterable[str]): Full names of modules and classes.

    Returns:
        bool: Whether it is.
    """
    path = found if isinstance(found, str) else path_of(found)
    return any(path == part or path.startswith(f'{part}.') for part in parts)
