"""`nnUNetTrainerHRMedSegPaper`: HRMedSeg trained with the recipe of the paper.

The text (v1, implementation details) gives Adam, a learning rate of 1e-4 that decays by a factor of 0.98, a batch of 16
images, 200 epochs, and Dice + focal loss. Where it is silent, the recipe follows the published code (train.py and
loss.py): the decay is applied after every epoch and to all parameters; Adam has its default betas and no weight decay;
there is no warm-up; an epoch is one pass over the training images that leaves out the last, incomplete batch; the only
augmentation is a horizontal flip of one image in ten; prediction does not mirror; Dice and focal loss are weighted 0.8
and 0.2. The text names a focal loss, which is taken per pixel (Lin et al.) rather than of the mean cross entropy as in
the published code.

The rest is nnU-Net's: images are drawn with replacement, gradients are clipped at a norm of 12, training on a GPU uses
mixed precision, and checkpoint_final holds the last weights. (The published code keeps those with the best validation
loss; nnU-Net's checkpoint_best, chosen by the pseudo Dice, is the nearest to that.)
"""

from __future__ import annotations

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform

from nnunet_hrmedseg.trainers.hrmedseg import nnUNetTrainerHRMedSeg
from nnunet_hrmedseg.trainers.schedule import PaperLRScheduler

__all__ = ["nnUNetTrainerHRMedSegPaper"]

FLIPPED = 0.1  # part of the training images, in the published code
WIDTH = 1  # spatial axis of a 2D image along which a horizontal flip goes


class nnUNetTrainerHRMedSegPaper(nnUNetTrainerHRMedSeg):
    """HRMedSeg with the recipe of the paper: Adam, 1e-4 x 0.98 per epoch, batches of 16, 200 passes over the images.

    A plan that is already HRMedSeg's keeps its batch size. A subclass that sets `num_iterations_per_epoch` keeps it.
    """

    recipe_lr = 1e-4
    recipe_batch_size = 16
    mirroring = False  # in prediction; the flip is of augmentation alone

    # exactly nnU-Net's arguments: it records them by name for the checkpoint
    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.warmup_iterations = 0
        self.oversample_foreground_percent = 0.0
        self.default_iterations = self.num_iterations_per_epoch

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PaperLRScheduler(optimizer, self.num_epochs)

    def get_training_transforms(self, *args, regions=None, ignore_label=None, **kwargs) -> BasicTransform:
        """Return the flip and nnU-Net's transforms of validation images; they take the workers hardly any time."""
        flip = RandomTransform(MirrorTransform(allowed_axes=(WIDTH,)), apply_probability=2 * FLIPPED)  # x 1/2 inside
        unchanged = self.get_validation_transforms(None, regions=regions, ignore_label=ignore_label)
        return ComposeTransforms([flip, unchanged])

    def get_tr_and_val_datasets(self):
        training, validation = super().get_tr_and_val_datasets()
        if self.num_iterations_per_epoch == self.default_iterations:  # neither a subclass nor a budget has set it
            slices = self.plans_manager.plans["original_median_shape_after_transp"][0]
            images = round(len(training.identifiers) * slices)
            self.num_iterations_per_epoch = max(1, images // self.configuration_manager.batch_size)
        return training, validation
