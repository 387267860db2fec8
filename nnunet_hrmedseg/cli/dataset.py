"""`hrmedseg dataset`."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "run"]

SUMMARY = "make an nnU-Net raw dataset from images and their masks"
DESCRIPTION = (
    "Make an nnU-Net raw dataset from a folder of images and a folder of masks (or COCO or labelme files): "
    "match names, convert without loss, write dataset.json and a contact sheet, and run nnU-Net's integrity "
    "check. Prints sizes and classes first. Required: IMAGES, MASKS, -d and -n."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images",
        type=Path,
        metavar="IMAGES",
        help="folder of images: PNG, JPEG, TIFF, BMP, WebP, GIF, DICOM, NIfTI of one slice; also mixed",
    )
    parser.add_argument(
        "masks",
        type=Path,
        metavar="MASKS",
        help="folder of masks named as the images, with a prefix or suffix if any; or a COCO file, or a folder of "
        "labelme files",
    )
    parser.add_argument("-d", "--number", type=int, required=True, help="number of the dataset, 1 to 999")
    parser.add_argument("-n", "--name", required=True, help="name of the dataset, such as Polyps")
    meaning = parser.add_argument_group("meaning of the masks")
    meaning.add_argument(
        "--classes",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names of the classes in the order of their values or colors, or the words in the names of files, if each "
        "class has its own; one name makes several masks of an image one class [default: foreground, or for several "
        "classes names from their values, colors or files, such as class_127]",
    )
    meaning.add_argument(
        "--colors",
        nargs="+",
        metavar="NAME=COLOR",
        help="class of each color of color-coded masks, such as disc=#ff0000; background=#ffffff if it is not black, "
        "and ignore=COLOR for pixels that were not annotated [default: every color is a class]",
    )
    meaning.add_argument(
        "--threshold",
        type=int,
        metavar="VALUE",
        help="mask pixels of at least this value belong to the single class, or to the class of their file; required "
        "for JPEG masks [default: none]",
    )
    meaning.add_argument(
        "--ignore", type=int, metavar="VALUE", help="mask value of pixels that were not annotated [default: none]"
    )
    meaning.add_argument(
        "--instances",
        action="store_true",
        help="each mask file, value, color or polygon is an object, such as a nucleus: write labels with borders, "
        "which separate touching objects [default: masks of classes]",
    )
    parser.add_argument(
        "--groups",
        metavar="PATTERN|CSV",
        help="keep cases of one patient, video or slide in one fold: a regular expression whose first parenthesis is "
        "the group, or a CSV file with the columns case and group; writes splits_final.json [default: no groups]",
    )
    parser.add_argument(
        "--link", action="store_true", help="hard-link files that need no conversion [default: copy them]"
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="describe the files and write nothing [default: write the dataset]"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the dataset with this number and name [default: refuse]"
    )


def run(args: argparse.Namespace) -> int:
    from nnunet_hrmedseg.datasets.make import SHEET, make_dataset
    from nnunet_hrmedseg.datasets.masks import parse_colors

    summary = make_dataset(
        args.images,
        args.masks,
        number=args.number,
        name=args.name,
        classes=args.classes,
        colors=parse_colors(args.colors) if args.colors else None,
        threshold=args.threshold,
        ignore=args.ignore,
        groups=args.groups,
        instances=args.instances,
        link=args.link,
        dry_run=args.dry_run,
        overwrite=args.overwrite,
    )
    if summary.folder is None:
        print("Nothing was written (--dry_run).")
        return 0
    print(f"Written: {summary.folder}")
    if summary.splits:
        print(f"Splits that keep groups together: {summary.splits}")
    print(f"Look at {summary.folder / SHEET}, then:\nnnUNetv2_plan_and_preprocess -d {args.number} -c 2d")
    return 0
