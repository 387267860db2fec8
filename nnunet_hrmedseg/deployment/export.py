"""`hrmedseg export`: a trained model for machines without nnU-Net, or for other people."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.io.hub import local_path
from nnunet_hrmedseg.io.shell import quote

__all__ = ["export"]


def export(args: argparse.Namespace) -> int:
    """Write ONNX files and a model folder to pass on, and upload it to the hub, as requested. Returns the exit status.

    Raises:
        HRMedSegError: nothing was asked for, or the model cannot be exported.
    """
    if args.onnx is None and args.share is None and args.to_hub is None:
        raise HRMedSegError("Nothing to export: give --onnx FOLDER, --share FOLDER_OR_ZIP or --to-hub OWNER/NAME.")
    if args.weights is not None and args.onnx is None:
        raise HRMedSegError(f"--weights {args.weights} says how ONNX files store weights: give --onnx FOLDER with it.")
    if args.licence is not None and args.share is None and args.to_hub is None:
        raise HRMedSegError(
            "--licence goes with a model that is passed on: give --share FOLDER_OR_ZIP or --to-hub OWNER/NAME with it."
        )

    model, folds = local_path(args.model), args.folds
    if args.onnx is not None and args.share is not None:  # before the minutes that ONNX files take
        from nnunet_hrmedseg.deployment.sharing import check_place

        check_place(model, Path(args.share), args.overwrite)
    if args.onnx is not None:
        from hrmedseg_onnx.image_files import package_needed
        from hrmedseg_onnx.sidecar import Sidecar
        from nnunet_hrmedseg.deployment.onnx_export import export_onnx

        written = export_onnx(
            model,
            Path(args.onnx),
            folds=folds,
            checkpoint=args.checkpoint,
            weights=args.weights or "float32",
            overwrite=args.overwrite,
        )
        command = f"hrmedseg predict-onnx -i IMAGES -o MASKS -m {quote(str(written))}"
        print(f"Written: {written}. Predict with it: {command}")
        needed = package_needed(Sidecar.read(written).image_reader)
        if needed:
            print(f"The images of this model are read by {needed}, which prediction needs: pip install {needed}")
    if args.share is not None:
        from nnunet_hrmedseg.deployment.sharing import NOT_STATED, share_model

        written = share_model(
            model,
            Path(args.share),
            folds=folds,
            checkpoint=args.checkpoint,
            licence=args.licence or NOT_STATED,
            overwrite=args.overwrite,
        )
        print(f"Written: {written}")
    if args.to_hub is not None:
        from nnunet_hrmedseg.deployment.hub_card import share_on_hub
        from nnunet_hrmedseg.deployment.sharing import NOT_STATED

        name = share_on_hub(
            model, args.to_hub, folds=folds, checkpoint=args.checkpoint, licence=args.licence or NOT_STATED
        )
        print(f"Uploaded: {name}. A new repository is private; make it public in its settings on the hub.")
    return 0
