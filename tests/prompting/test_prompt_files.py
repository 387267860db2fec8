import json

import pytest

from nnunet_hrmedseg.errors import DataError
from nnunet_hrmedseg.prompting.label_maps import class_values
from nnunet_hrmedseg.prompting.prompt_files import read_prompts

CSV = """\
image,x0,y0,x1,y1,points,class,score
a.png,10,20,110,90.5,,nucleus,0.9
sub/b.png,,,,,30 40 1; 35 80 0,,
a.png, 1, 2, 3, 4,5 6 1,wall,
empty.png,,,,,,,
"""
ENTRIES = [
    {"image": "a.png", "box": [10, 20, 110, 90.5], "class": "nucleus"},
    {"image": "sub/b.png", "points": [[30, 40, 1], [35, 80, 0]]},
    {"image": "a.png", "box": [1, 2, 3, 4], "points": [[5, 6, 1]], "class": "wall"},
    {"image": "empty.png"},
]


@pytest.mark.parametrize("name, text", [("p.csv", CSV), ("p.csv", "\ufeff" + CSV), ("p.json", json.dumps(ENTRIES))])
def test_csv_and_json_give_the_same_prompts(tmp_path, name, text):
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    found = read_prompts(file)
    assert list(found) == ["a.png", "sub/b.png", "empty.png"]
    assert [(p.box, p.points, p.category) for p in found["a.png"]] == [
        ((10, 20, 110, 90.5), (), "nucleus"),
        ((1, 2, 3, 4), ((5, 6, 1),), "wall"),
    ]
    assert [(p.box, p.points, p.category) for p in found["sub/b.png"]] == [(None, ((30, 40, 1), (35, 80, 0)), "object")]
    assert found["empty.png"] == []
    where = found["a.png"][1].source
    assert where == f"{file}, {'line 4' if name == 'p.csv' else 'entry 3'}"


def test_table_with_points_only(tmp_path):
    file = tmp_path / "p.csv"
    file.write_text("image,points\na.png,3 4\n")
    assert read_prompts(file)["a.png"][0].points == ((3, 4, 1),)


@pytest.mark.parametrize(
    "name, text, message",
    [
        (
            "p.csv",
            "image,xmin,ymin,xmax,ymax\na.png,1,2,3,4\n",
            "needs the columns image,x0,y0,x1,y1.*It has image,xmin",
        ),
        ("p.csv", "", "It has nothing"),
        ("p.csv", "image,x0,y0,x1,y1\n", "no prompts in"),
        ("p.csv", "image,x0,y0,x1,y1\na.png,1,2,3\n", "line 2: box .* cannot be understood"),
        ("p.csv", "image,x0,y0,x1,y1\na.png,1,2,3,four\n", "line 2: box .* cannot be understood.*four"),
        ("p.csv", "image,points\na.png,1 2 3 4 5\n", "line 2"),
        ("p.csv", "image,x0,y0,x1,y1\n,1,2,3,4\n", "line 2: there is no image"),
        ("p.json", "{", "is no JSON"),
        ("p.json", '{"a.png": []}', "must be a list of prompts"),
        ("p.json", '[{"image": "a.png", "box": [1, 2, 3]}]', "entry 1: box"),
        ("p.json", '[{"box": [1, 2, 3, 4]}]', "entry 1: there is no image"),
    ],
)
def test_invalid_files_are_rejected(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as raised:
        read_prompts(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value)


def test_missing_file_is_reported(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(tmp_path / "none.csv")


def read(tmp_path, text, name="p.csv", encoding="utf-8"):
    (tmp_path / name).write_bytes(text.encode(encoding))
    return read_prompts(tmp_path / name)


# ---- unknown keys ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"bbox": [20, 10, 90, 70]}, "neither a box nor points, but bbox"),
        ({"boxes": [[20, 10, 90, 70]]}, "but boxes"),
        ({"class": "nucleus"}, "but class"),
        ({"xmin": 0, "ymin": 1, "xmax": 2, "ymax": 3}, "but xmin, ymin, xmax, ymax"),
        ({"x0": 0, "y0": 1, "x1": 2, "y1": 3, "box": None}, "but x0, y0"),
        ({"box": [], "mask": "m.png"}, "but mask"),
        ({"box": [1, 2, 9, 9], "label": "nucleus"}, "has 'label', which is not read. If it means 'class'"),
        ({"box": [1, 2, 9, 9], "category_id": 3, "class": None}, "has 'category_id'"),
        ({"points": [[1, 2, 1]], "bbox": [1, 2, 9, 9]}, "has 'bbox'.*'box'"),
        (
            {"points": [[1, 2], [3, 4]], "labels": [1, 0], "class": "a"},
            "has 'labels': the label of a point stands with",
        ),
        ({"box": [1, 2, 9, 9], "Box": [1, 2, 9, 9]}, "a key twice"),
        ({"box": [True, 0, 5, 5]}, "True is not a number"),
        ({"box": [1, 2, 9, 9], "class": True}, "the class is True"),
    ],
)
def test_entries_with_only_unknown_keys_are_rejected(tmp_path, entry, message):
    entries = [{"image": "a.png", "box": [1, 2, 3, 4]}, {"image": "two.png", **entry}]
    with pytest.raises(DataError, match=f"entry 2.*{message}"):
        read(tmp_path, json.dumps(entries), "p.json")


@pytest.mark.parametrize(
    "text, message",
    [
        ("image,points,xmin,ymin,xmax,ymax\na.png,,1,2,3,4\n", "line 2 has neither a box nor points, but xmin"),
        ("image,x0,y0,x1,y1,class\na.png,1,2,3,4,a\nb.png,,,,,a\n", "line 3 has neither .* but class"),
        ("image,x0,y0,x1,y1,label\na.png,1,2,3,4,a\n", "line 2 has 'label', which is not read"),
        ("image,x0,y0,x1,y1\na.png,1,2,3,4,5\n", "line 2 has more cells than there are columns"),
        ('image,points,class\na.png,1 2 1,"a\nb.png,1 2 1,b\n', "no CSV that can be read: unexpected end of data"),
        ("image;points\na.png;1 2 1;3 4 0\n", "line 2 has more cells.*';' must stand in quotes"),
        ("image,x0,y0,x1,y1,X0\na.png,1,2,3,4,5\n", "several columns x0"),
        ("image,x0,y0,x1,y1\na.png,1_0,2,30,4\n", "'1_0' is not a number"),
    ],
)
def test_rows_with_only_unknown_columns_are_rejected(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, text)


def test_unknown_keys_beside_a_prompt_are_ignored(tmp_path):
    entry = {"image": "a.png", "Box": [1, 2, 3, 4], "class": "a", "label": "b", "score": 0.5, "id": 7}
    [prompt] = read(tmp_path, json.dumps([entry, {"image": "b.png", "box": None, "id": ""}]), "p.json")["a.png"]
    assert prompt.box == (1, 2, 3, 4) and prompt.category == "a"


# ---- spreadsheets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        'Image;X0;Y0;X1;Y1;Points;Class\nä.png;1,5;2;3;4;"5 6,5 1; 7 8 0";Kern\nb.png;;;;;;\n;;;;;;\n',
        'sep=;\nIMAGE;x0;y0;x1;y1;points;class\nä.png;1,5;2;3;4;"5 6,5 1;7 8 0";Kern;;\nb.png\n',
        "image\tx0\ty0\tx1\ty1\tpoints\tclass\nä.png\t1.5\t2\t3\t4\t5 6.5 1;7 8 0\tKern\nb.png\t\t\t\t\t\t\n",
        " Image , x0, y0, x1, y1, points, class\nä.png,1.5,2,3,4,5 6.5 1;7 8 0,Kern\r\nb.png,,,,,,\r\n\r\n",
    ],
    ids=["semicolons", "sep", "tabs", "commas"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
def test_csv_files_of_spreadsheets(tmp_path, capsys, text, encoding):
    found = read(tmp_path, text, encoding=encoding)
    assert list(found) == ["ä.png", "b.png"] and found["b.png"] == []
    [prompt] = found["ä.png"]
    assert prompt.box == (1.5, 2, 3, 4) and prompt.points == ((5, 6.5, 1), (7, 8, 0)) and prompt.category == "Kern"
    assert ("Windows-1252" in capsys.readouterr().err) == (encoding == "cp1252")


def test_line_numbers_are_those_of_the_file(tmp_path):
    with pytest.raises(DataError, match="line 4: box"):
        read(tmp_path, "sep=;\nimage;x0;y0;x1;y1\na.png;1;2;3;4\na.png;1;2;3;x\n")


def test_comma_as_separator_is_not_a_decimal_comma(tmp_path):
    with pytest.raises(DataError, match="cannot be understood"):
        read(tmp_path, 'image,x0,y0,x1,y1\na.png,"1,5",2,3,4\n')


def test_workbook_is_reported(tmp_path):
    (tmp_path / "p.csv").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(DataError, match="is a workbook or an archive, not text: export the table as CSV"):
        read_prompts(tmp_path / "p.csv")


# ---- classes ---------------------------------------------------------------------------------------------------------


def test_class_numbers_written_by_pandas_with_an_empty_row(tmp_path):
    """With a missing value, pandas writes the column as floats."""
    rows = "".join(f"a.png,1,2,3,4,{number}.0\n" for number in range(1, 11))
    found = read(tmp_path, "image,x0,y0,x1,y1,class\n" + rows + "b.png,,,,,\n")
    assert class_values(found["a.png"]) == {str(number): number for number in range(1, 11)}


@pytest.mark.parametrize(
    "written, name",
    [(2.0, "2"), (2, "2"), ("2.00", "2"), (2.5, "2.5"), ("v1.0", "v1.0"), (float("nan"), "object"), (" ", "object")],
)
def test_integral_class_numbers_become_integers(tmp_path, written, name):
    entry = {"image": "a.png", "box": [1, 2, 3, 4], "class": written}
    assert read(tmp_path, json.dumps([entry]), "p.json")["a.png"][0].category == name


def test_missing_values_written_by_pandas(tmp_path):
    found = read(tmp_path, "image,x0,y0,x1,y1,class\na.png,1,2,3,4,nan\nb.png,NaN,NaN,NaN,NaN,NaN\n")
    assert found["a.png"][0].category == "object" and found["b.png"] == []


def test_decimal_comma_in_a_class_number(tmp_path):
    assert read(tmp_path, "image;points;class\na.png;1 2 1;3,0\n")["a.png"][0].category == "3"
