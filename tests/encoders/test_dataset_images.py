"""Images of nnU-Net raw datasets, broken images, and loading."""

import warnings
import zlib

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hrmedseg_onnx import image_check
from nnunet_hrmedseg.encoders.canvas_images import BrokenImages, CanvasImages
from nnunet_hrmedseg.encoders.image_sources import find_images
from nnunet_hrmedseg.errors import DataError
from tests.encoders.image_files import (
    CANVAS,
    encoded,
    flat,
    names,
    picture,
    read,
    write_raw_dataset,
    write_shard,
    write_volume,
)


def test_raw_datasets_are_found_by_folder_name_and_number(tmp_path, monkeypatch):
    dataset = write_raw_dataset(tmp_path / "Dataset012_Spots")
    picture(1).save(dataset / "imagesTr" / "b_0000.png")
    picture(2).save(dataset / "imagesTs" / "a_0000.png")
    picture(2).save(dataset / "imagesTs" / "stray.png")
    flat(mode="L").save(dataset / "labelsTr" / "b.png")
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    expected = ["imagesTr/b_0000.png", "imagesTs/a_0000.png"]
    for source in (dataset, str(dataset), "Dataset012_Spots", "12", "012", tmp_path):  # without labels
        found = find_images([source])
        assert names(found, dataset) == expected
        assert ["stray.png" in fault for fault in found.faults] == [True]
    assert len(find_images(["12", dataset])) == 2
    pixels = np.asarray(picture(1))
    assert np.array_equal(read(dataset, canvas=pixels.shape[:2]).permute(1, 2, 0).numpy(), pixels)


@pytest.mark.parametrize("channels, expected", [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_channel_files_become_red_green_and_blue(tmp_path, channels, expected):
    dataset = write_raw_dataset(tmp_path / "Dataset001_X")
    levels = [10, 90, 170, 200, 250]
    for channel in range(channels):
        Image.new("L", (24, 16), levels[channel]).save(dataset / "imagesTr" / f"a_{channel:04d}.png")
    assert read(dataset)[:, 5, 5].tolist() == [levels[channel] for channel in expected]


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_every_slice_of_a_volume_is_an_image(tmp_path, ending):
    dataset = write_raw_dataset(tmp_path / "Dataset001_X", ending)
    volume = np.zeros((12, 16, 24), np.int16) - 1000
    volume += (np.arange(12) * 100).astype(np.int16)[:, None, None]
    write_volume(dataset / "imagesTr" / f"v_0000{ending}", volume)
    (dataset / "imagesTr" / f"w_0000{ending}").write_bytes(b"broken")
    found = find_images([dataset])
    assert [image.name[-5:] for image in found] == [f"#{i:04d}" for i in range(12)]
    assert len(found.faults) == 1 and f"w_0000{ending}" in found.faults[0]
    levels = [CanvasImages(found, CANVAS)[i].image.float().mean().item() for i in range(12)]
    assert levels == pytest.approx(np.linspace(0, 255, 12), abs=1)  # scaled as a whole, not slice by slice


def test_uint8_volumes_keep_their_values_and_2d_files_are_one_image(tmp_path):
    dataset = write_raw_dataset(tmp_path / "Dataset001_X", ".nii.gz")
    write_volume(dataset / "imagesTr" / "a_0000.nii.gz", np.full((16, 24), 77, np.uint8))
    write_volume(dataset / "imagesTr" / "b_0000.nii.gz", np.full((2, 16, 24), 33, np.uint8))
    found = find_images([dataset])
    assert names(found, dataset / "imagesTr") == ["a_0000.nii.gz", "b_0000.nii.gz#0000", "b_0000.nii.gz#0001"]
    images = CanvasImages(found, CANVAS)
    assert [images[i].image.unique().tolist() for i in range(3)] == [[77], [33], [33]]


def test_slices_are_counted_along_the_axis_of_the_reader(tmp_path):
    dataset = write_raw_dataset(
        tmp_path / "Dataset001_X", ".nii.gz", overwrite_image_reader_writer="NibabelIOWithReorient"
    )
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(4, 5, 6)))
    image.SetDirection((0, 0, 1, 1, 0, 0, 0, 1, 0))
    sitk.WriteImage(image, str(dataset / "imagesTr" / "a_0000.nii.gz"))
    found = find_images([dataset])
    assert len(found) == 5  # 4 slices are stored: the second array axis runs from foot to head
    assert all(item.image is not None for item in CanvasImages(found, CANVAS))


def test_tif_volumes_and_tif_images_are_distinguished(tmp_path):
    volumes, flats = (write_raw_dataset(tmp_path / f"Dataset00{i}_X", ".tif") for i in (1, 2))
    (volumes / "imagesTr" / "a_0000.tif").write_bytes(b"broken")
    tifffile.imwrite(volumes / "imagesTr" / "b_0000.tif", np.full((5, 16, 24), 55, np.uint8))
    tifffile.imwrite(flats / "imagesTr" / "a_0000.tif", np.full((16, 24), 66, np.uint8))
    found = find_images([tmp_path])
    slices = [f"0000.tif#{i:04d}" for i in range(5)]
    assert [image.name.split("_")[-1] for image in found] == [*slices, "0000.tif"]
    assert [item.image.unique().tolist() for item in CanvasImages(found, CANVAS)] == [[55]] * 5 + [[66]]
    assert len(found.faults) == 1


def test_dataset_json_may_list_its_files(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    picture().save(tmp_path / "elsewhere" / "p.png")
    flat(mode="L").save(tmp_path / "elsewhere" / "l.png")
    cases = {"p": {"images": ["../elsewhere/p.png"], "label": "../elsewhere/l.png"}}
    dataset = write_raw_dataset(tmp_path / "Dataset001_X", dataset=cases)
    assert names(find_images([dataset]), tmp_path) == ["elsewhere/p.png"]


@pytest.mark.parametrize("entry", [{"label": "../elsewhere/missing.png"}, {}])
def test_cases_listed_in_dataset_json_need_no_labels(tmp_path, entry):
    (tmp_path / "elsewhere").mkdir()
    for name in ("p", "q"):
        picture().save(tmp_path / "elsewhere" / f"{name}.png")
    cases = {name: {"images": [f"../elsewhere/{name}.png"], **entry} for name in ("p", "q")}
    dataset = write_raw_dataset(tmp_path / "Dataset001_X", dataset=cases)
    assert names(find_images([dataset]), tmp_path) == ["elsewhere/p.png", "elsewhere/q.png"]


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_listed_case_without_images_is_skipped(tmp_path, ending):
    picture().save(tmp_path / f"p{ending}")
    cases = {"o": {"images": []}, "p": {"images": [f"../p{ending}"]}}
    dataset = write_raw_dataset(tmp_path / "Dataset001_X", ending, dataset=cases)
    assert names(find_images([dataset]), tmp_path) == [f"p{ending}"]


@pytest.mark.parametrize("listed", [["p.png"], {"p": ["p.png"]}, {"p": {"label": "p.png"}}, {"p": {"images": 5}}, 7])
def test_lists_that_nnunet_cannot_read_are_reported(tmp_path, listed):
    dataset = write_raw_dataset(tmp_path / "Dataset001_X", dataset=listed)
    with pytest.raises(DataError, match='"dataset" in the dataset.json of .* is not what nnU-Net reads'):
        find_images([dataset])


def test_datasets_of_nnunet_v1_are_reported(tmp_path):
    dataset = write_raw_dataset(tmp_path / "Task01_X")
    (dataset / "dataset.json").write_text("{}")
    with pytest.raises(DataError, match="nnUNetv2_convert_MSD_dataset"):
        find_images([dataset])


def test_channels_of_different_size_are_broken(tmp_path):
    dataset = write_raw_dataset(tmp_path / "Dataset001_X")
    for channel in range(3):
        Image.new("L", (24, 16 + channel)).save(dataset / "imagesTr" / f"a_{channel:04d}.png")
    item = CanvasImages(find_images([dataset]), CANVAS)[0]
    assert item.image is None and "same shape" in item.reason


# ---- broken images, and loading --------------------------------------------------------------------------------------


def write_broken(folder):
    """Write six images a to f, of which b, d, e and f are broken."""
    picture(1).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"no image")
    picture(2).save(folder / "c.jpg")
    (folder / "d.jpg").write_bytes(encoded(picture(3))[:-200])
    (folder / "e.png").write_bytes(b"")
    header = bytearray(encoded(Image.new("L", (8, 8)), "PNG"))
    header[16:24] = (30_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    (folder / "f.png").write_bytes(header)


def test_broken_images_are_returned_with_a_reason(tmp_path):
    write_broken(tmp_path)
    items = list(CanvasImages(find_images([tmp_path]), CANVAS))
    assert [item.image is None for item in items] == [False, True, False, True, True, True]
    assert "no image" in items[1].reason and "truncated" in items[3].reason
    assert items[5].reason == "it has more than 400,000,000 pixels"


def test_large_images_are_allowed(tmp_path, monkeypatch):
    limit = Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(image_check, "MAX_PIXELS", 30 * 20)
    picture().save(tmp_path / "a.png")
    picture(width=31).save(tmp_path / "b.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's own warning would be printed for every large image
        items = list(CanvasImages(find_images([tmp_path]), CANVAS))
    assert [item.image is None for item in items] == [False, True]
    assert limit == Image.MAX_IMAGE_PIXELS


def test_collate_drops_broken_images(tmp_path):
    write_broken(tmp_path)
    images = CanvasImages(find_images([tmp_path]), CANVAS)
    batch = images.collate([images[i] for i in (1, 2, 0)])
    assert batch.indices.tolist() == [2, 0]
    assert torch.equal(batch.images[1], images[0].image)
    assert batch.images.dtype == torch.uint8
    assert [index for index, _ in batch.broken] == [1]
    nothing = images.collate([images[1]])
    assert nothing.images.shape == (0, 3, *CANVAS) and nothing.indices.shape == (0,)


@pytest.mark.slow
def test_spawned_workers_read_the_same_images(tmp_path):
    write_broken(tmp_path)
    write_shard(tmp_path / "sa_1.tar", [1, 2])
    dataset = write_raw_dataset(tmp_path / "Dataset001_X", ".nii.gz")
    write_volume(dataset / "imagesTr" / "v_0000.nii.gz", np.random.default_rng(0).normal(size=(3, 16, 24)))
    images = CanvasImages(find_images([tmp_path]), CANVAS)
    loader = DataLoader(images, 4, num_workers=2, collate_fn=images.collate, multiprocessing_context="spawn")
    indices, broken = [], []
    for batch in loader:
        indices += batch.indices.tolist()
        broken += [index for index, _ in batch.broken]
        for index, image in zip(batch.indices.tolist(), batch.images, strict=True):
            assert torch.equal(image, images[index].image)
    assert len(indices) == 7 and len(broken) == 4
    assert sorted(indices + broken) == list(range(len(images)))


def test_broken_images_are_reported_once_and_counted(tmp_path):
    write_broken(tmp_path)
    images, lines = CanvasImages(find_images([tmp_path]), CANVAS), []
    broken = BrokenImages(images.collection, log=lines.append)
    assert broken.summary() == ""
    for _ in range(2):
        for index, reason in images.collate(list(images)).broken:
            broken.add(index, reason)
    assert len(broken.reasons) == len(lines) == 4
    assert 1 in broken.reasons and 0 not in broken.reasons
    assert str(tmp_path / "b.png") in lines[0] and "no image" in lines[0]
    assert broken.summary(names=1).startswith("4 broken: ") and "and 3 more" in broken.summary(names=1)


def test_all_images_broken_is_an_error(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no image")
    broken = BrokenImages(find_images([tmp_path]), log=lambda line: None)
    broken.add(0, "x")
    broken.add(0, "x")
    with pytest.raises(DataError, match="None of the 2 images"):
        broken.add(1, "y")
