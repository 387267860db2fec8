"""SegMaFormer for two short epochs; found through nnU-Net's variable nnUNet_extTrainer."""

import torch

from nnunet_hrmedseg.trainers.segmaformer import nnUNetTrainerSegMaFormer


class TinySegMaFormer(nnUNetTrainerSegMaFormer):
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 2
        self.num_iterations_per_epoch = 10
        self.num_val_iterations_per_epoch = 1
        self.initial_lr = 3e-3  # few steps would change little with the warm-up

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
        rotation, dummy_2d, patch_size, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = None  # reduces the time of prediction to an eighth
        return rotation, dummy_2d, patch_size, None

    def perform_actual_validation(self, save_probabilities=False):
        """Skip the validation, which starts two more processes; new cases are predicted in the same way."""
