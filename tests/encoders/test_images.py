"""Images as training data: folders, files, pixels and shards."""

import io
import os
import tarfile

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from nnunet_hrmedseg.encoders.canvas_images import CanvasImages
from nnunet_hrmedseg.encoders.image_sources import find_images
from nnunet_hrmedseg.errors import DataError, PlanError
from tests.encoders.image_files import (
    CANVAS,
    NEEDS_LINKS,
    add,
    encoded,
    flat,
    names,
    picture,
    read,
    write_raw_dataset,
    write_shard,
)
from tests.encoders.tiny_datasets import write_sheared

# ---- folders and files -----------------------------------------------------------------------------------------------


def test_folders_are_searched_for_every_suffix_in_any_case(tmp_path):
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    wanted = ["a.png", "b/b.JPG", "b/c/c.jpeg", "d.tif", "e.TIFF", "f.bmp"]
    for name in [*wanted, ".hidden/x.png", "._a.png"]:
        picture().save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    assert names(find_images([tmp_path]), tmp_path) == wanted
    assert names(find_images([tmp_path / "b" / "b.JPG"]), tmp_path) == ["b/b.JPG"]


@NEEDS_LINKS
def test_images_are_sorted_by_name_without_duplicates(tmp_path):
    for name in ("x/2.png", "x/10.png", "a/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture().save(tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path / "x")
    (tmp_path / "x" / "up").symlink_to(tmp_path)
    one = find_images([tmp_path / "x", tmp_path, tmp_path / "link", tmp_path / "x" / "2.png"])
    other = find_images([tmp_path, str(tmp_path / "x")])
    assert names(one, tmp_path) == ["a/3.png", "x/10.png", "x/2.png"] == names(other, tmp_path)
    assert one.identities == other.identities
    assert sum(one.counts.values()) == 3


def test_limit_draws_a_deterministic_and_nested_subset(tmp_path):
    for i in range(12):
        picture(i).save(tmp_path / f"{i:02d}.png")
    drawn = [names(find_images([tmp_path], limit=limit), tmp_path) for limit in (3, 6, 100)]
    assert drawn[0] == names(find_images([tmp_path], limit=3), tmp_path)
    assert [len(some) for some in drawn] == [3, 6, 12]
    assert set(drawn[0]) < set(drawn[1]) < set(drawn[2])
    assert all(some == sorted(some) for some in drawn)
    with pytest.raises(PlanError, match="at least 1"):
        find_images([tmp_path], limit=0)


def test_skipped_files_are_reported(tmp_path):
    (tmp_path / "sub" / ".cache").mkdir(parents=True)
    for name in ("a.png", "sub/b.jpg"):
        picture().save(tmp_path / name)
    for name in ("notes.txt", "._a.png", "sub/b.json", "sub/c.json", "sub/d.heic"):
        (tmp_path / name).touch()
    found = find_images([tmp_path])
    assert names(found, tmp_path) == ["a.png", "sub/b.jpg"]
    # b.json belongs to b.jpg, as in SA-1B
    assert found.faults == [f"{tmp_path}: 5 other files are skipped: ._a.png, notes.txt, .cache/, c.json, d.heic"]


def test_skipped_files_of_shards_and_raw_datasets_are_reported(tmp_path):
    dataset = write_raw_dataset(tmp_path / "Dataset001_X")
    picture().save(dataset / "imagesTr" / "a_0000.png")
    for name in ("a_0000.jpg", "._a_0000.png"):
        (dataset / "imagesTr" / name).touch()
    assert find_images([dataset]).faults == [
        f"{dataset}: 2 other files are skipped: imagesTr/._a_0000.png, imagesTr/a_0000.jpg"
    ]
    shard = tmp_path / "sa_000001.tar"
    with tarfile.open(shard, "w") as tar:
        for name in ("sa_1.jpg", "sa_1.json", "readme.txt"):
            add(tar, name, encoded(picture()))
    assert find_images([shard]).faults == [f"{shard}: 1 other files are skipped: sa_000001.tar!readme.txt"]


def test_volumes_that_simpleitk_rejects_are_read_as_by_nnunet(tmp_path):
    dataset = write_sheared(tmp_path / "Dataset001_Sheared")
    found = find_images([dataset])
    assert found.faults == [] and [image.name[-5:] for image in found] == [f"#000{i}" for i in range(4)]
    images = CanvasImages(found, (20, 30))
    # 8 bits are kept unchanged
    assert [images[i].image.unique().tolist() for i in range(4)] == [[50], [50, 150], [50, 150], [50]]
    assert images[1].image[0, 6:16, 5:15].unique().tolist() == [150]


def test_changed_file_has_another_identity(tmp_path):
    picture().save(tmp_path / "a.png")
    before = find_images([tmp_path]).identities
    assert find_images([tmp_path]).identities == before
    os.utime(tmp_path / "a.png", ns=(1, 1))
    assert find_images([tmp_path]).identities != before


def test_unusable_sources_are_reported(tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty.*\.png.*sa_\*\.tar.*dataset\.json"):
        find_images([tmp_path / "empty"])
    with pytest.raises(DataError, match="missing does not exist"):
        find_images([tmp_path / "missing"])
    with pytest.raises(DataError, match="notes.txt"):
        find_images([tmp_path / "notes.txt"])
    picture().save(tmp_path / "a.png")
    assert find_images([tmp_path / "empty", tmp_path / "a.png"]).faults == [
        f"{tmp_path / 'empty'}: no image was found there"
    ]
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(DataError, match="nnUNet_raw is not set"):
        find_images(["12"])
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    with pytest.raises(DataError, match="no dataset for 12"):
        find_images(["12"])


@NEEDS_LINKS
def test_pipes_and_dangling_links_are_skipped(tmp_path):
    picture().save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "sa_1.tar")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    found = find_images([tmp_path])
    assert names(found, tmp_path) == ["a.png"]
    assert len(found.faults) == 3


# ---- kinds of pixels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode, suffix, expected",
    [
        ("RGB", "png", (204, 102, 51)),
        ("RGBA", "png", (204, 102, 51)),
        ("P", "png", (204, 102, 51)),
        ("P", "tif", (204, 102, 51)),
        ("CMYK", "tif", (204, 102, 51)),
        ("CMYK", "jpg", (204, 102, 51)),
        ("RGB", "bmp", (204, 102, 51)),
        ("L", "jpg", (127, 127, 127)),
        ("LA", "png", (127, 127, 127)),
        ("1", "png", None),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, suffix, expected):
    flat(mode=mode).save(tmp_path / f"a.{suffix}")
    image = read(tmp_path)
    assert image.shape == (3, *CANVAS)
    if expected is None:
        assert torch.equal(image[0], image[1])
        assert image.max() > 128 > image.min()
    else:
        # JPEG is not exact
        assert (image - torch.tensor(expected)[:, None, None]).abs().max() <= 4


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("low, high", [(100, 1100), (0, 60000)])
def test_values_of_other_types_are_scaled_by_percentiles(tmp_path, dtype, low, high):
    ramp = np.linspace(low, high, 24)[None].repeat(16, 0).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", ramp)
    expected = torch.linspace(0, 255, 24).expand(16, 24)
    image = read(tmp_path)
    assert torch.equal(image[0], image[2])
    assert (image[0] - expected).abs().max() <= 3


def test_sixteen_bit_png_is_scaled(tmp_path):
    ramp = np.linspace(0, 4095, 24)[None].repeat(16, 0).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert (read(tmp_path)[1] - torch.linspace(0, 255, 24)).abs().max() <= 3


def test_color_tifs_unknown_to_pillow_are_read(tmp_path):
    color = np.random.default_rng(0).random((16, 24, 3)).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", color, photometric="rgb")
    tifffile.imwrite(tmp_path / "b.tif", color.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    low, high = np.percentile(color, (0.5, 99.5))
    expected = torch.from_numpy(np.clip((color - low) / (high - low), 0, 1) * 255).permute(2, 0, 1)
    for index in (0, 1):
        assert (read(tmp_path, index) - expected).abs().max() <= 1


def test_nan_constant_and_sparse_images_are_scaled(tmp_path):
    values = np.zeros((16, 24), np.float32)
    tifffile.imwrite(tmp_path / "a.tif", values + 7)
    values[3, 4] = 9
    tifffile.imwrite(tmp_path / "b.tif", values)
    values[0, 0], values[0, 1] = np.nan, np.inf
    tifffile.imwrite(tmp_path / "c.tif", values)
    tifffile.imwrite(tmp_path / "d.tif", np.full((16, 24), np.nan, np.float32))
    images = CanvasImages(find_images([tmp_path]), CANVAS)
    assert images[0].image.max() == 0
    for index in (1, 2):
        assert (images[index].image[:, 3, 4], images[index].image[:, 5, 5]) == (
            pytest.approx([255] * 3),
            pytest.approx([0] * 3),
        )
    assert images[2].image[0, 0, 0] == 0
    assert images[3].image is None and "no finite value" in images[3].reason


def test_orientation_tag_is_applied(tmp_path):
    image = Image.new("RGB", (40, 20))
    image.paste((255, 255, 255), (0, 0, 40, 10))  # bright above
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees clockwise: bright on the right
    image.save(tmp_path / "a.jpg", exif=exif)
    seen = read(tmp_path, canvas=(16, 16))
    assert seen[:, :, 10:].min() > 240 and seen[:, :, :6].max() < 15


def test_resizing_is_antialiased_and_fills_the_canvas(tmp_path):
    stripes = np.zeros((64, 96), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    inner = read(tmp_path, canvas=(16, 16))[:, 2:-2, 2:-2]
    assert (inner - 127).abs().max() <= 3  # without anti-aliasing, 0 or 255


# ---- SA-1B's shards --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_shards_are_read_in_place(tmp_path, tar_format):
    write_shard(tmp_path / "sa_000001.tar", [1, 22], tar_format)
    write_shard(tmp_path / "sa_000000.tar", [333], tar_format)
    write_shard(tmp_path / "other.tar", [4])  # in a folder, only the shards of SA-1B
    found = find_images([tmp_path])
    assert names(found, tmp_path) == ["sa_000000.tar!sa_333.jpg", "sa_000001.tar!sa_1.jpg", "sa_000001.tar!sa_22.jpg"]
    assert names(find_images([tmp_path / "other.tar"]), tmp_path) == ["other.tar!sa_4.jpg"]
    assert found.faults == [f"{tmp_path}: 1 other files are skipped: other.tar"]
    for index, number in enumerate((333, 1, 22)):
        expected = Image.open(io.BytesIO(encoded(picture(number)))).resize(CANVAS[::-1], Image.Resampling.BILINEAR)
        _, image, _ = CanvasImages(found, CANVAS)[index]
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.array(expected))


def test_hostile_members_are_ignored(tmp_path):
    content = encoded(picture())
    with tarfile.open(tmp_path / "sa_1.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "sa_1.jpg", content)
        add(tar, "../sa_2.jpg", content)
        add(tar, "/tmp/sa_3.jpg", content)
        add(tar, "a/../../sa_4.jpg", content)
        add(tar, "sa_5.jpg", kind=tarfile.SYMTYPE, link="/etc/passwd")
        add(tar, "sa_6.jpg", kind=tarfile.LNKTYPE, link="sa_1.jpg")
        add(tar, "sa_7.jpg", kind=tarfile.CHRTYPE)
        add(tar, "sa_8.jpg", kind=tarfile.FIFOTYPE)
        add(tar, "sa_9.jpg", kind=tarfile.DIRTYPE)
        add(tar, "._sa_10.jpg", content)
        add(tar, "folder/" + "long" * 40 + "/sa_11.jpg", content)
    before = sorted(tmp_path.iterdir())
    found = find_images([tmp_path])
    assert [image.name.rsplit("/")[-1] for image in found] == ["sa_11.jpg", "sa_1.tar!sa_1.jpg"]
    assert all(item.image is not None for item in CanvasImages(found, CANVAS))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("where", ["in an image", "in a header", "between members", "damaged header"])
def test_intact_images_of_a_truncated_shard_are_used(tmp_path, where):
    file = write_shard(tmp_path / "sa_1.tar", [1, 2, 3])
    with tarfile.open(file) as tar:
        third = tar.getmember("sa_3.jpg")
    content = bytearray(file.read_bytes())
    cut = {"in an image": third.offset_data + 100, "in a header": third.offset + 77, "between members": third.offset}
    if where in cut:
        del content[cut[where] :]
    else:
        content[third.offset : third.offset + 512] = b"\x07" * 512
    file.write_bytes(content)
    found = find_images([tmp_path])
    assert names(found, tmp_path) == ["sa_1.tar!sa_1.jpg", "sa_1.tar!sa_2.jpg"]
    [fault] = found.faults
    assert "sa_1.tar" in fault and ("truncated" in fault or "unexpected end" in fault)
    assert all(item.image is not None for item in CanvasImages(found, CANVAS))


def test_file_that_is_not_a_tar_is_reported(tmp_path):
    (tmp_path / "sa_1.tar").write_bytes(b"\x1f\x8b nothing of the kind" * 100)
    with pytest.raises(DataError, match=r"sa_1\.tar: .*ReadError"):
        find_images([tmp_path])


def test_shard_truncated_after_indexing_gives_broken_images(tmp_path):
    file = write_shard(tmp_path / "sa_1.tar", [1])
    images = CanvasImages(find_images([file]), CANVAS)
    file.write_bytes(b"")
    assert images[0].image is None
