"""Take the network that predicts out of a semi-supervised detector."""

import dataclasses
from typing import Any

from mmengine.config import Config

from ..core.class_lookup import lookup_by_class
from ..untrusted import Network

#: Settings that train the student and the teacher together.
_TRAINING = ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr')


def predicting_part(network: Network) -> tuple[Network, list[str]]:
    """Return the detector that predicts, of a semi-supervised detector of MMDetection; else the network.

    A semi-supervised detector, such as SoftTeacher, trains a student with the predictions of a teacher, its
    moving average. Only one of them predicts: the teacher, unless ``semi_test_cfg.predict_on`` names the
    student. It becomes a stock detector: its config is ``detector``, and its weights lose their prefix. The
    config loses what trains or evaluates both.

    Args:
        network (Network): A network with its weights.

    Returns:
        tuple[Network, list[str]]: The network to deploy; and what this changes in the config, as text.
    """
    if not lookup_by_class({'mmdet.SemiBaseDetector': True}, network.model):
        return network, []
    config = network.config.to_dict()
    whole = config['model']
    part = (whole.get('semi_test_cfg') or {}).get('predict_on', 'teacher')
    part = part if part == 'teacher' else 'student'  # as MMDetection reads it
    detector = dict(whole['detector'])
    if '_scope_' in whole:
        detector.setdefault('_scope_', whole['_scope_'])
    model = network.model.get_submodule(part)
    # Prediction uses the outer preprocessor, which has one for each branch in training and one otherwise.
    preprocessor, built = whole.get('data_preprocessor'), network.model.data_preprocessor
    if preprocessor and 'data_preprocessor' in preprocessor:
        preprocessor, built = preprocessor['data_preprocessor'], built.data_preprocessor
    if preprocessor:
        detector['data_preprocessor'], model.data_preprocessor = preprocessor, built
    prefix = f'{part}.'
    weights = {
        name.removeprefix(prefix): tensor
        for name, tensor in network.weights.items()
        if name.startswith(prefix)
    }
    found = Network(
        model=model,
        config=Config({**_of_one_detector(config), 'model': detector}),
        meta=network.meta,
        weights=weights,
        origin=dataclasses.replace(network.origin, sizes={name: t.numel() for name, t in weights.items()}),
    )
    return found, [f'model (the {part} of {type(network.model).__name__})']


def _of_one_detector(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config without the settings that need both the student and the teacher."""
    config = {name: value for name, value in config.items() if name not in _TRAINING}
    if config.get('val_cfg'):  # TeacherStudentValLoop evaluates both
        config['val_cfg'] = {'type': 'ValLoop'}
    if config.get('custom_hooks'):
        config['custom_hooks'] = [
            hook for hook in config['custom_hooks'] if not str(hook['type']).endswith('MeanTeacherHook')
        ]
    return config
