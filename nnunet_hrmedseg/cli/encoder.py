"""`hrmedseg encoder distill | pretrain | import`."""

from __future__ import annotations

import argparse
from types import ModuleType
from typing import TYPE_CHECKING

from nnunet_hrmedseg.cli import distill, pretrain

if TYPE_CHECKING:
    from nnunet_hrmedseg.weights import EncoderFile

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "run"]

SUMMARY = "make an encoder to start training from, or import the published one"
DESCRIPTION = (
    "Make an encoder to start training from: distill it from a large teacher, pre-train it on labeled datasets, or "
    "import the SAM-distilled encoder that HRMedSeg's authors publish. `hrmedseg distill` and `hrmedseg pretrain` are "
    "other names of the first two. Required: SUB-COMMAND. For its options: hrmedseg encoder SUB-COMMAND --help."
)
ON_INTERRUPTION = "To continue distillation or pre-training from the last checkpoint, repeat the command."
TRAININGS: dict[str, ModuleType] = {"distill": distill, "pretrain": pretrain}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(
        dest="encoder_command", required=True, metavar="SUB-COMMAND", help="what to do with an encoder"
    )
    for name, module in TRAININGS.items():
        module.add_arguments(commands.add_parser(name, help=module.SUMMARY, description=module.DESCRIPTION))
    summary = "convert the encoder that the authors of HRMedSeg publish (SAM_PFD_10K.pth) to an encoder file"
    description = f"{summary[0].upper()}{summary[1:]}. Required: FILE and -o."
    _add_import_arguments(commands.add_parser("import", help=summary, description=description))


def _add_import_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="FILE", help="SAM_PFD_10K.pth, or a checkpoint that was fine-tuned from it; also hf://..."
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="FOLDER", help="folder for encoder.safetensors and encoder.json"
    )
    parser.add_argument(
        "--normalization",
        choices=("distillation", "imagenet"),
        default="distillation",
        help="normalization of images that the encoder was made with, for its card: (x - mean) / mean as in the "
        "authors' distillation script, or ImageNet's mean and standard deviation [default: %(default)s]",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an encoder in this folder")


def run(args: argparse.Namespace) -> int:
    if args.encoder_command in TRAININGS:
        return TRAININGS[args.encoder_command].run(args)
    from nnunet_hrmedseg.weights.published import import_encoder

    file = import_encoder(args.source, args.output, normalization=args.normalization, overwrite=args.overwrite)
    print(_describe_import(file))
    return 0


def _describe_import(file: EncoderFile) -> str:
    """Return what was written, what was assumed, and how to continue, in lines."""
    from nnunet_hrmedseg.encoders.card import training_command

    architecture, card = file.architecture, file.card
    lines = [
        f"Encoder: {file.path} (sha256 {file.sha256}), card beside it: {card['name']}.",
        f"Width {architecture['embed_dim']}, {architecture['channel_interactive_layers']} channel-interactive layers, "
        f"token-interactive layers {architecture['depth']}, neck {architecture['neck']} to "
        f"{architecture['decoder_dim']} channels.",
    ]
    left_out = card["source"]["left_out"]
    if left_out:
        lines.append("Left out: " + ", ".join(f"{part} ({count})" for part, count in left_out.items()) + ".")
    lines += [
        f"Assumed, as the file does not record it: teacher {card['teacher']['name']}; images normalized as "
        f"(x - {card['normalization']['mean']}) / {card['normalization']['std']} (--normalization).",
        "Licenses: " + ", ".join(f"{part} {license}" for part, license in file.licenses.items()) + ".",
        f"Train from it:  {training_command(file.path.absolute())}",
    ]
    if card["teacher"]["kind"] == "sam":
        lines.append(
            f"Segment with it:  hrmedseg segment IMAGE --encoder {file.path} --sam sam_vit_h_4b8939.pth --box ..."
        )
    return "\n".join(lines)
