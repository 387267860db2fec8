"""`hrmedseg export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_hrmedseg.cli.argument_types import fold
from nnunet_hrmedseg.errors import PlanError
from nnunet_hrmedseg.io.shell import quote

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "run"]

SUMMARY = "write a trained model as ONNX files, or as a clean folder or zip to share"
DESCRIPTION = (
    "Write a trained model as ONNX files for prediction without torch and nnU-Net, or as a folder or zip to share, "
    "without names of cases and paths. Required: MODEL_FOLDER, and one of --onnx, --share and --to_hub, or several."
)
WEIGHTS = ("float32", "float16", "int8")
"""Number formats in which ONNX files store weights; computation is in float32."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL_FOLDER",
        help="folder of a trained model: TRAINER__PLANS__CONFIGURATION, below nnUNet_results; or one on the hub, "
        "hf://OWNER/NAME/DatasetNNN_Name/...",
    )
    parser.add_argument(
        "-f",
        "--folds",
        nargs="+",
        type=fold,
        default=None,
        metavar="FOLD",
        help="folds to export: 0, 1, ..., or the fold named all [default: every trained fold]",
    )
    parser.add_argument(
        "-chk",
        "--checkpoint",
        default="checkpoint_final.pth",
        metavar="FILE",
        help="name of the checkpoint file in each fold [default: %(default)s]",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an earlier export [default: refuse to, and change nothing]"
    )
    onnx = parser.add_argument_group("for prediction without torch and nnU-Net")
    onnx.add_argument(
        "--onnx", default=None, metavar="FOLDER", help="folder to write an ONNX file for each fold to, and model.json"
    )
    onnx.add_argument(
        "--weights",
        choices=WEIGHTS,
        default=None,
        help="number format in which the ONNX files store weights: smaller files, computed in float32 at the same "
        "speed [default: float32]",
    )
    share = parser.add_argument_group("for others who have this package")
    share.add_argument(
        "--share", default=None, metavar="FOLDER_OR_ZIP", help="new folder, or new .zip file, to write the model to"
    )
    share.add_argument(
        "--to_hub",
        default=None,
        metavar="OWNER/NAME",
        help="repository on the Hugging Face Hub to upload the model to; a new repository is private",
    )
    share.add_argument(
        "--license",
        "--licence",
        default=None,
        metavar="TEXT",
        help="license of the shared weights: a name, or the whole text [default: not stated]",
    )


def run(args: argparse.Namespace) -> int:
    """Write what the options ask for.

    Raises:
        HRMedSegError: no output was requested, or the model cannot be exported.
    """
    _check_options(args)
    from nnunet_hrmedseg.io.hub import local_path

    model = local_path(args.model)
    if args.onnx is not None and args.share is not None:  # before the minutes that the ONNX files take
        from nnunet_hrmedseg.deployment.sharing import check_place

        check_place(model, Path(args.share), args.overwrite)
    common = {"model": model, "folds": args.folds, "checkpoint": args.checkpoint}
    license = {} if args.license is None else {"license": args.license}
    if args.onnx is not None:
        from nnunet_hrmedseg.deployment.onnx_export import export_onnx

        exported = export_onnx(**common, output=args.onnx, weights=args.weights or "float32", overwrite=args.overwrite)
        options = f"-i IMAGES -o MASKS -m {quote(str(exported.folder))}"
        print(f"Written: {exported.folder}. Predict with it: hrmedseg predict-onnx {options}")
        install = "pip install ./client in a clone"
        print(f"On machines without torch and nnU-Net: {install}, and hrmedseg-onnx with the same options.")
        if exported.reader_package:
            print(f"To read the images of this model, prediction needs: pip install {exported.reader_package}")
    if args.share is not None:
        from nnunet_hrmedseg.deployment.sharing import share_model

        shared = share_model(**common, **license, output=args.share, overwrite=args.overwrite)
        print(f"Written: {shared.path}")
    if args.to_hub is not None:
        from nnunet_hrmedseg.deployment.upload import upload_model

        uploaded = upload_model(**common, **license, repository=args.to_hub)
        print(f"Uploaded: {uploaded.name}. A new repository is private; make it public in its settings on the hub.")
    return 0


def _check_options(args: argparse.Namespace) -> None:
    if args.onnx is None and args.share is None and args.to_hub is None:
        raise PlanError("Nothing to export: give --onnx FOLDER, --share FOLDER_OR_ZIP or --to_hub OWNER/NAME.")
    if args.weights is not None and args.onnx is None:
        raise PlanError(f"--weights {args.weights} is the number format in ONNX files: give --onnx FOLDER with it.")
    if args.license is not None and args.share is None and args.to_hub is None:
        raise PlanError(
            "--license is for a model that is shared: give --share FOLDER_OR_ZIP or --to_hub OWNER/NAME with it."
        )
