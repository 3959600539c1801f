"""The Stripe Observation while a network trains."""

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
from .figures import choose, draw_changes
from .observer import Observer

#: The paper's Fig. 1c: 20 channels of three images.
CHANNELS, IMAGES = 20, 3


@HOOKS.register_module()
class StripeHook(Hook):
    """Takes attention values on a few fixed images while a network trains.

    After every ``interval`` epochs it logs each module's ``median_std``, ``steady_share`` and ``between_channels`` (see
    :meth:`mmasr.stripes.Stripes.summary`) to the visualizer, as ``stripes/<module>/<figure>``. When training ends it draws how
    much the values of 20 channels changed from one time to the next (the paper's Fig. 1c) into ``stripes_changes.png`` in the
    work dir, and to the visualizer. What it remembers is in the checkpoints and resumes with the run.

    The images are of the validation data, or of the training data if there is none, and always the same ones.

    Args:
        interval (int): Epochs from one time to the next. Default: 1.
        images (int): Number of images, at least 2. Default: 8.

    Raises:
        InputError: When training starts, if the network has no attention that depends on its input, or there are fewer than
            two images.
    """

    def __init__(self, interval: int = 1, images: int = 8) -> None:
        self.interval = interval
        self.images = images

    @master_only
    def before_train(self, runner: Runner) -> None:
        """Take the images, and what a resumed run remembers."""
        self.model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        names = list(Observer(self.model).modules)
        # Where no head has attention, the heads and what comes after them, which take longer, need not run.
        in_features = all(name.startswith(('backbone.', 'neck.')) for name in names)
        self.run = self._extract_features if in_features else self.model.test_step
        loader = runner.train_dataloader if runner.val_loop is None else runner.val_dataloader
        order = torch.randperm(len(loader.dataset), generator=torch.Generator().manual_seed(0))[: self.images]
        if len(order) < 2:
            raise InputError(f'StripeHook: there are no deviations in less than two images, here {len(order)}')
        # With a generator of its own, so that training draws the random numbers that it would without this hook.
        probes = DataLoader(
            Subset(loader.dataset, order.tolist()),
            loader.batch_size or 1,
            collate_fn=loader.collate_fn,
            generator=torch.Generator(),
        )
        self.batches = list(probes)
        self.history = runner.message_hub.get_info('stripes', None)
        if not self.history or list(self.history['values']) != names:
            self.history = {'epochs': [], 'values': {name: [] for name in names}}

    def _extract_features(self, batch: dict) -> None:
        self.model.extract_feat(self.model.data_preprocessor(batch, False)['inputs'])

    @master_only
    @torch.no_grad()
    def after_train_epoch(self, runner: Runner) -> None:
        """Take the attention values, log their figures and remember some."""
        if not self.every_n_epochs(runner, self.interval):
            return
        epoch = runner.epoch + 1
        self.model.eval()
        with Observer(self.model) as observer:
            for batch in self.batches:
                self.run(batch)
        self.model.train()
        figures = {}
        for name, stripes in observer.stripes.items():
            values = stripes.rows[1, :IMAGES].float()
            self.history['values'][name].append(values[:, np.linspace(0, values.shape[1] - 1, CHANNELS).astype(int)])
            figures.update({f'stripes/{name}/{figure}': value for figure, value in stripes.summary().items()})
        runner.visualizer.add_scalars(figures, step=epoch)
        self.history['epochs'].append(epoch)
        runner.message_hub.update_info('stripes', self.history)

    @master_only
    def after_train(self, runner: Runner) -> None:
        """Draw the changes."""
        epochs = self.history['epochs']
        # A module of a head may have run on some occasions only.
        changes = {
            name: torch.stack(values).diff(dim=0).abs()
            for name, values in self.history['values'].items()
            if len(values) == len(epochs) > 1 and len({v.shape for v in values}) == 1
        }
        if not changes:
            runner.logger.info('StripeHook: no changes to draw, since values were taken less than twice')
            return
        figure = draw_changes({name: changes[name] for name in choose(list(changes))}, epochs[1:])
        path = f'{runner.work_dir}/stripes_changes.png'
        figure.savefig(path)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        runner.visualizer.add_image('stripes_changes', np.array(canvas.buffer_rgba())[..., :3], step=runner.epoch)
        runner.logger.info(f'StripeHook: drew {path}')
