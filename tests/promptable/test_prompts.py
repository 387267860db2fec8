import json

import pytest

from nnunet_hrmedseg.errors import HRMedSegError
from nnunet_hrmedseg.promptable.label_maps import class_values
from nnunet_hrmedseg.promptable.prompts import Prompt, parse_box, parse_point, read_prompts

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
def test_csv_and_json_say_the_same(tmp_path, name, text):
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


def test_only_points(tmp_path):
    file = tmp_path / "p.csv"
    file.write_text("image,points\na.png,3 4\n")
    assert read_prompts(file)["a.png"][0].points == ((3, 4, 1),)


@pytest.mark.parametrize(
    "name, text, said",
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
def test_files_that_cannot_be_understood(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(HRMedSegError, match=said) as raised:
        read_prompts(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value)


def test_no_such_file(tmp_path):
    with pytest.raises(HRMedSegError, match="cannot be read"):
        read_prompts(tmp_path / "none.csv")


def test_options():
    assert parse_box("1,2.5,3,4") == (1, 2.5, 3, 4)
    assert parse_point("1,2,0") == (1, 2, 0) and parse_point("1,2") == (1, 2, 1)
    for wrong in ("1,2,3", "1,2,3,4,5", "a,b,c,d", ""):
        with pytest.raises(ValueError):
            parse_box(wrong)
    with pytest.raises(ValueError):
        parse_point("1")


def test_a_prompt_says_where_it_was_written():
    with pytest.raises(HRMedSegError, match="p.csv, line 3: The box 0,0,200,5 reaches out of the image"):
        Prompt((0, 0, 200, 5), source="p.csv, line 3").check((50, 100))


def test_classes_are_numbered_in_their_order():
    def values(*names):
        return class_values(Prompt((0, 0, 1, 1), category=name) for name in names)

    assert values("wall", "nucleus", "wall") == {"nucleus": 1, "wall": 2}
    assert values("10", "2", "cell") == {"2": 1, "10": 2, "cell": 3}
    assert values() == {}
    with pytest.raises(HRMedSegError, match="cannot be called 'ignore'"):
        values("ignore")
