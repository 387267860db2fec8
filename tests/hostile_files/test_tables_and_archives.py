"""CSV, tar and safetensors files that are hostile or damaged."""

import csv
import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from nnunet_hrmedseg.encoders.canvas_images import CanvasImages
from nnunet_hrmedseg.encoders.image_sources import find_images
from nnunet_hrmedseg.errors import CheckpointError, DataError
from nnunet_hrmedseg.io.files import escape_formula
from nnunet_hrmedseg.prompting.checkpoints import read_decoder
from nnunet_hrmedseg.prompting.networks import StudentEncoder
from nnunet_hrmedseg.prompting.prompt_files import read_prompts
from nnunet_hrmedseg.prompting.segment import SegmentedObject, scores_csv
from nnunet_hrmedseg.trainers.initialization import initialize_encoder
from nnunet_hrmedseg.weights import load_encoder, write_encoder
from nnunet_hrmedseg.weights.student import Student
from tests.hostile_files.common import ARCHITECTURE, CARD, DESCRIPTION, SIZE, with_card

# ---- CSV -------------------------------------------------------------------------------------------------------------


def test_table_with_a_hundred_thousand_columns(tmp_path):
    file = tmp_path / "p.csv"
    columns = [f"c{i}" for i in range(10**5)]
    file.write_text(",".join(columns))
    with pytest.raises(DataError, match="needs the columns") as raised:
        read_prompts(file)
    assert len(str(raised.value)) < 2000
    row = ["a.png", "1", "2", "3", "4"] + ["x"] * 10**5
    file.write_text(",".join(["image", "x0", "y0", "x1", "y1", *columns]) + "\n" + ",".join(row))
    assert read_prompts(file)["a.png"][0].box == (1, 2, 3, 4)
    file.write_text("image,points\n" + ",".join(row))  # more cells than columns
    with pytest.raises(DataError):
        read_prompts(file)


@pytest.mark.parametrize(
    "content",
    [
        b"image,points\na\0.png,1 2 1\n",
        b"image,points\na.png,1\0 2 1\n",
        b"\0" * 1000,
        b"image,points\na.png," + b"1" * 200_000 + b"\n",
        b"image,points\n\x81\xfe.png,1 2 1\n",
        b"image,points\na.png,1e999999999 2 x\n",
    ],
)
def test_nonsense_in_csv_is_rejected(tmp_path, content):
    file = tmp_path / "p.csv"
    file.write_bytes(content)
    with pytest.raises(DataError) as raised:
        read_prompts(file)
    assert len(str(raised.value)) < 2000


def test_formulas_are_written_as_text(tmp_path):
    formula = '=HYPERLINK("http://example.org/"&A1,"x")'
    file = tmp_path / "p.csv"
    with open(file, "w", newline="") as opened:
        csv.writer(opened).writerows([["image", "points", "class"], ["a.png", "1 2 1", formula]])
    [prompt] = read_prompts(file)["a.png"]
    assert prompt.category == formula
    written = [*csv.reader(io.StringIO(scores_csv([SegmentedObject("a.png", 1, prompt.category, 0.9, 5)])))]
    assert written[1] == ["a.png", "1", f"'{formula}", "0.900", "5"]
    for text in ("=1", "+1", "-x", "@x", "\tx"):
        assert escape_formula(text) == f"'{text}"
    assert escape_formula("liver = 1") == "liver = 1"


# ---- tar -------------------------------------------------------------------------------------------------------------


def _png() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "PNG")
    return content.getvalue()


def _member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = len(content), kind
    for field, value in fields.items():
        setattr(member, field, value)
    header = member.tobuf(tarfile.GNU_FORMAT if abs(member.size) > 2**32 else tarfile.USTAR_FORMAT)
    return header + content + bytes(-len(content) % 512)


END = bytes(1024)
WHOLE = _member("sa_1.png", _png())

TARS = {
    "a name with ..": (_member("../sa_9.png", _png()), 0),
    "an absolute name": (_member("/sa_9.png", _png()), 0),
    "a link": (_member("sa_9.png", kind=tarfile.SYMTYPE, linkname="/etc/passwd"), 0),
    "a hard link": (_member("sa_9.png", kind=tarfile.LNKTYPE, linkname="sa_1.png"), 0),
    "a device": (_member("sa_9.png", kind=tarfile.CHRTYPE), 0),
    "a pipe": (_member("sa_9.png", kind=tarfile.FIFOTYPE), 0),
    "a sparse member": (_member("sa_9.png", _png(), kind=tarfile.GNUTYPE_SPARSE), 0),
    "a huge size": (_member("sa_9.png", size=2**60), 1),
    "a negative size": (_member("sa_9.png", size=-(2**40)), 1),
    "a huge long name": (_member("x", kind=tarfile.GNUTYPE_LONGNAME, size=2**50), 1),
    "huge pax headers": (_member("x", kind=tarfile.XHDTYPE, size=2**50), 1),
    "pax headers with a size": (_member("x", b"14 size=99999\n", kind=tarfile.XHDTYPE) + _member("sa_9.png"), 1),
    "pax headers with a negative size": (_member("x", b"13 size=-512\n", kind=tarfile.XHDTYPE) + _member("y"), 1),
    "pax headers that are none": (_member("x", b"999999999999 a=b\n", kind=tarfile.XHDTYPE) + _member("y"), None),
    "many pax headers": (_member("x", b"6 a=b\n", kind=tarfile.XHDTYPE) * 3000, 1),
    "sparse of pax": (
        _member("x", b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n", kind=tarfile.XHDTYPE)
        + _member("sa_9.png", b"99999999\n" + bytes(503)),
        1,
    ),
}


@pytest.mark.parametrize("what", TARS)
def test_hostile_tar_members_are_skipped(tmp_path, what):
    member, faults = TARS[what]
    file = tmp_path / "sa_1.tar"
    file.write_bytes(WHOLE + member + END)
    before = sorted(tmp_path.iterdir())
    found = find_images([file])
    assert [image.name.rpartition("!")[2] for image in found] == ["sa_1.png"]
    assert [item.image is not None for item in CanvasImages(found, SIZE)] == [True]
    # None: some versions of Python treat such headers as the end
    assert faults in (None, len(found.faults)) and all("sa_1.tar" in fault for fault in found.faults)
    assert sorted(tmp_path.iterdir()) == before


def test_huge_number_of_slices_in_a_header_is_rejected(tmp_path):
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "dataset.json").write_text(json.dumps({**DESCRIPTION, "file_ending": ".mha"}))
    header = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 4 4 2000000000\nElementType = MET_UCHAR\n"
        "ElementDataFile = LOCAL\n"
    )
    (tmp_path / "imagesTr" / "a_0000.mha").write_bytes(header.encode() + bytes(16))
    with pytest.raises(DataError, match="its header says 2,000,000,000 slices"):
        find_images([tmp_path])


# ---- safetensors -----------------------------------------------------------------------------------------------------


def _safetensors(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def _described(**tensors) -> bytes:
    return json.dumps(tensors).encode()


FLOATS = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BROKEN = {
    "a header of 2^60 bytes": _safetensors(b"{}", length=2**60),
    "a header that is no JSON": _safetensors(b"hello, this is not JSON"),
    "a deep header": _safetensors(b'{"a":' + b"[" * 10**5),
    "overlapping tensors": _safetensors(_described(a=FLOATS, b={**FLOATS, "data_offsets": [4, 12]}), bytes(12)),
    "a hole": _safetensors(_described(a={**FLOATS, "data_offsets": [8, 16]}), bytes(16)),
    "more than is there": _safetensors(
        _described(a={**FLOATS, "data_offsets": [0, 2**60], "shape": [2**58]}), bytes(8)
    ),
    "an offset below 0": _safetensors(_described(a={**FLOATS, "data_offsets": [-8, 0]}), bytes(8)),
    "a shape that overflows": _safetensors(_described(a={**FLOATS, "shape": [2**40, 2**40]}), bytes(8)),
    "a type that is none": _safetensors(_described(a={**FLOATS, "dtype": "OBJECT"}), bytes(8)),
    "a type that torch has not": _safetensors(_described(a={**FLOATS, "dtype": "F6_E2M3"}), bytes(8)),
    "nothing": b"",
    "NaN": _safetensors(_described(a=FLOATS), np.array([1, np.nan], "<f4").tobytes()),
}


@pytest.mark.parametrize("what", BROKEN)
def test_hostile_safetensors_are_rejected(tmp_path, what):
    file = tmp_path / "e.safetensors"
    file.write_bytes(BROKEN[what])
    with pytest.raises(CheckpointError, match=r"e\.safetensors"):
        load_encoder(with_card(file))
    folder = tmp_path / "sam"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "sam"}')
    (folder / "model.safetensors").write_bytes(BROKEN[what].replace(b'"a"', b'"mask_decoder.a"'))
    if what not in ("NaN", "nothing"):
        from nnunet_hrmedseg.prompting.prompt_decoder import PromptDecoder

        with pytest.raises(CheckpointError):
            PromptDecoder(read_decoder(folder))


def test_encoder_that_does_not_match_its_card_is_rejected(tmp_path):
    state = Student(ARCHITECTURE).state_dict()
    first, *others = state
    for wrong in ({first: state[first]}, {**state, "encoder.more": torch.ones(1)}, {**state, first: torch.ones(3)}, {}):
        file = write_encoder(tmp_path / "e.safetensors", wrong, CARD)
        from nnunet_hrmedseg.architectures import HRMedSeg

        network = HRMedSeg(3, 2, decoder_heads=2, decoder_mlp_dim=16, **ARCHITECTURE)
        with pytest.raises(CheckpointError, match="does not hold the weights that its card describes"):
            initialize_encoder(network, file, ["ZScoreNormalization"] * 3)
        with pytest.raises(CheckpointError, match="does not contain what its card describes"):
            StudentEncoder(file)
    # the width is wrong only in the card: nothing of that size is allocated
    wide = {**CARD, "architecture": {**ARCHITECTURE, "embed_dim": 16_008}}
    with pytest.raises(CheckpointError, match="does not contain what its card describes"):
        StudentEncoder(write_encoder(tmp_path / "w.safetensors", state, wide))
    assert others
