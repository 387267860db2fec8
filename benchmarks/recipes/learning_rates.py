"""nnUNetTrainerHRMedSegScratch with other learning rates: the trainers of ../learning_rate.py, as found by nnU-Net."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Adam

from nnunet_hrmedseg.trainers.hrmedseg import nnUNetTrainerHRMedSegScratch
from nnunet_hrmedseg.trainers.schedule import PaperLRScheduler, WarmupPolyLRScheduler


def with_decoder_rate(
    network: nn.Module, learning_rate: float, decoder_rate: float, slower: tuple[str, ...] = ("neck.", "decoder.")
) -> list[dict[str, Any]]:
    """Return parameter groups for an optimizer; names beginning with `slower` have a fraction of the learning rate."""
    rest, slow = [], []
    for name, parameter in network.named_parameters():
        (slow if name.startswith(slower) else rest).append(parameter)
    return [{"params": rest, "lr": learning_rate}, {"params": slow, "lr": decoder_rate * learning_rate}]


class nnUNetTrainerHRMedSegPaperDecay5e4(nnUNetTrainerHRMedSegScratch):
    """Decay by 0.98 per epoch of 200, stretched over the training, as the published code applies the papers' factor."""

    scheduler: type = PaperLRScheduler
    learning_rate = 5e-4
    decoder_rate = 1.0  # rate of neck and decoder, relative to the learning rate
    slower: tuple[str, ...] = ("neck.", "decoder.")
    betas = 0.9, 0.999

    def configure_optimizers(self):
        self.initial_lr = self.learning_rate
        groups = with_decoder_rate(self.network, self.learning_rate, self.decoder_rate, self.slower)
        optimizer = Adam(groups, betas=self.betas)
        return optimizer, self.scheduler(
            optimizer, self.num_epochs, self.warmup_iterations / self.num_iterations_per_epoch
        )


class nnUNetTrainerHRMedSegPoly1e3(nnUNetTrainerHRMedSegPaperDecay5e4):
    """nnU-Net's polynomial, from 1e-3."""

    scheduler = WarmupPolyLRScheduler
    learning_rate = 1e-3


class nnUNetTrainerHRMedSegPoly2e3(nnUNetTrainerHRMedSegPoly1e3):
    """nnU-Net's polynomial, from 2e-3."""

    learning_rate = 2e-3


class nnUNetTrainerHRMedSegBeta95(nnUNetTrainerHRMedSegPoly1e3):
    """nnU-Net's polynomial, from 1e-3; Adam averages squared gradients over about 20 steps instead of 1000."""

    betas = 0.9, 0.95


class nnUNetTrainerHRMedSegDecoder03(nnUNetTrainerHRMedSegBeta95):
    """Like Beta95, with 3e-4 in neck and decoder."""

    decoder_rate = 0.3


class nnUNetTrainerHRMedSegDecoder01(nnUNetTrainerHRMedSegDecoder03):
    """Like Beta95, with 1e-4 in neck and decoder."""

    decoder_rate = 0.1


class nnUNetTrainerHRMedSegTransformer01(nnUNetTrainerHRMedSegDecoder01):
    """Like Beta95, with 1e-4 only in the decoder's two-way transformer."""

    slower = ("decoder.transformer.",)


class nnUNetTrainerHRMedSegReadout10(nnUNetTrainerHRMedSegDecoder01):
    """Like Beta95, with 1e-4 in neck and two-way transformer, and 1e-3 in the encoder and after the transformer."""

    slower = ("neck.", "decoder.transformer.")


class nnUNetTrainerHRMedSegLengthAware(nnUNetTrainerHRMedSegScratch):
    """The recipe of this package: the longer the training, the lower the learning rate of neck and decoder."""
