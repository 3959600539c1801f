"""The Stripe Observation during training."""

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Subset

from ..errors import InputError
from ..registry import HOOKS
from .figures import choose_evenly, draw_changes
from .observer import Observer

#: The paper's Fig. 1c shows 20 channels of three images.
CHANNELS, IMAGES = 20, 3


@HOOKS.register_module()
class StripeHook(Hook):
    """Hook that records attention values of a few fixed images during training.

    After every ``interval`` epochs it logs ``median_std``, ``steady_share`` and ``between_channels`` of each
    module (see :meth:`mmasr.stripes.Stripes.summary`) to the visualizer, as ``stripes/<module>/<name>``. When
    training ends, it draws how much the values of 20 channels changed between records (the paper's Fig. 1c).
    The picture goes to ``stripes_changes.png`` in the work dir and to the visualizer. Checkpoints contain the
    records, so they resume with the run.

    The images are from the validation data, or from the training data if there is none. They are the same in
    every run.

    Args:
        interval (int): Epochs between two records. Default: 1.
        images (int): Number of images, at least 2. Default: 8.

    Raises:
        InputError: When training starts, if the network has no attention that depends on its input, or if
            there are fewer than two images.
    """

    def __init__(self, interval: int = 1, images: int = 8) -> None:
        self.interval = interval
        self.images = images

    @master_only
    def before_train(self, runner: Runner) -> None:
        """Load the images and the records of a resumed run.

        Raises:
            InputError: See the class.
        """
        self.model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        names = list(Observer(self.model).modules)
        # If no head contains attention, the heads and the post-processing need not run, which takes longer.
        in_features = all(name.startswith(('backbone.', 'neck.')) for name in names)
        self.run = self._extract_features if in_features else self.model.test_step
        loader = runner.train_dataloader if runner.val_loop is None else runner.val_dataloader
        order = torch.randperm(len(loader.dataset), generator=torch.Generator().manual_seed(0))[: self.images]
        if len(order) < 2:
            raise InputError(
                f'StripeHook: a standard deviation needs at least two images, but found {len(order)}; '
                'increase its option images, or use more data'
            )
        # A separate generator, so that training draws the same random numbers as without this hook.
        image_loader = DataLoader(
            Subset(loader.dataset, order.tolist()),
            loader.batch_size or 1,
            collate_fn=loader.collate_fn,
            generator=torch.Generator(),
        )
        self.batches = list(image_loader)
        self.history = runner.message_hub.get_info('stripes', None)
        if not self.history or list(self.history['values']) != names:
            self.history = {'epochs': [], 'values': {name: [] for name in names}}

    def _extract_features(self, batch: dict) -> None:
        self.model.extract_feat(self.model.data_preprocessor(batch, False)['inputs'])

    @master_only
    @torch.no_grad()
    def after_train_epoch(self, runner: Runner) -> None:
        """Record the attention values, and log their summary."""
        if not self.every_n_epochs(runner, self.interval):
            return
        epoch = runner.epoch + 1
        self.model.eval()
        with Observer(self.model) as observer:
            for batch in self.batches:
                self.run(batch)
        self.model.train()
        scalars = {}
        for name, stripes in observer.stripes.items():
            values = stripes.rows[1, :IMAGES].float()
            channels = np.linspace(0, values.shape[1] - 1, CHANNELS).astype(int)
            self.history['values'][name].append(values[:, channels])
            scalars.update({f'stripes/{name}/{key}': value for key, value in stripes.summary().items()})
        runner.visualizer.add_scalars(scalars, step=epoch)
        self.history['epochs'].append(epoch)
        runner.message_hub.update_info('stripes', self.history)

    @master_only
    def after_train(self, runner: Runner) -> None:
        """Draw the changes between records."""
        epochs = self.history['epochs']
        # A module in a head may have run for some of the records only.
        changes = {
            name: torch.stack(values).diff(dim=0).abs()
            for name, values in self.history['values'].items()
            if len(values) == len(epochs) > 1 and len({v.shape for v in values}) == 1
        }
        if not changes:
            runner.logger.info('StripeHook: there are fewer than two records, so no changes to draw')
            return
        figure = draw_changes({name: changes[name] for name in choose_evenly(list(changes))}, epochs[1:])
        path = f'{runner.work_dir}/stripes_changes.png'
        figure.savefig(path)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        runner.visualizer.add_image(
            'stripes_changes', np.array(canvas.buffer_rgba())[..., :3], step=runner.epoch
        )
        runner.logger.info(f'StripeHook: wrote {path}')
