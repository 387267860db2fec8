import pytest

from nnunet_hrmedseg.cli.argument_types import joined_negative_values


@pytest.mark.parametrize(
    "arguments, joined",
    [
        (["--box", "-5,0,20,20"], ["--box=-5,0,20,20"]),
        (["--box", "-.5,0,20,20", "--point", "-1,2,1"], ["--box=-.5,0,20,20", "--point=-1,2,1"]),
        (["--box", "5,0,20,20", "-o", "out"], ["--box", "5,0,20,20", "-o", "out"]),
        (["--tolerance", "-1"], ["--tolerance", "-1"]),
        (["-5,3", "--box", "--box", "-device", "cpu"], ["-5,3", "--box", "--box", "-device", "cpu"]),
        (["--box=1,2,3,4", "-5,1"], ["--box=1,2,3,4", "-5,1"]),
    ],
)
def test_lists_that_begin_with_a_minus_sign_are_values(arguments, joined):
    assert joined_negative_values(arguments) == joined
