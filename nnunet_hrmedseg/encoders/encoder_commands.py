"""`hrmedseg encoder`: commands on encoder files."""

from __future__ import annotations

import argparse

from nnunet_hrmedseg.encoders.card import training_command
from nnunet_hrmedseg.weights.published import import_encoder

__all__ = ["encoder"]


def encoder(args: argparse.Namespace) -> int:
    """Run the sub-command with the arguments of `pretraining.arguments.add_encoder_arguments`.

    Raises:
        HRMedSegError: an error the user can fix.
    """
    return {"import": _import}[args.encoder_command](args)


def _import(args: argparse.Namespace) -> int:
    file = import_encoder(args.source, args.output, normalization=args.normalization, overwrite=args.overwrite)
    architecture, card = file.architecture, file.card
    print(f"Encoder: {file.path} (sha256 {file.sha256}), card beside it: {card['name']}.")
    print(
        f"Width {architecture['embed_dim']}, {architecture['channel_interactive_layers']} channel-interactive layers, "
        f"token-interactive layers {architecture['depth']}, neck {architecture['neck']} to "
        f"{architecture['decoder_dim']} channels."
    )
    if card["source"]["left_out"]:
        print("Left out: " + ", ".join(f"{part} ({count})" for part, count in card["source"]["left_out"].items()) + ".")
    print(
        f"Assumed, as the file does not record it: teacher {card['teacher']['name']}; images normalized as "
        f"(x - {card['normalization']['mean']}) / {card['normalization']['std']} (--normalization)."
    )
    print("Licenses: " + ", ".join(f"{part} {licence}" for part, licence in card["licences"].items()) + ".")
    print(f"Train from it:  {training_command(file.path.absolute())}")
    if card["teacher"]["kind"] == "sam":
        print(f"Segment with it:  hrmedseg segment IMAGE --encoder {file.path} --sam sam_vit_h_4b8939.pth --box ...")
    return 0
