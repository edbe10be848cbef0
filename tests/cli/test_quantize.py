"""`torchadder quantize`: what is refused before the work begins."""

import pytest

import torchadder as ta
from torchadder import cli


def refusal(capsys, *arguments):
    """The one line on stderr of a command that ends with 2."""
    assert cli.main(["quantize", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("torchadder: error: ")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return ta.save(ta.models.lenet5_bn(), tmp_path_factory.mktemp("run") / "model.safetensors")


def test_a_checkpoint_in_the_output_folder_stays(checkpoint, capsys):
    before = checkpoint.read_bytes()
    line = refusal(capsys, checkpoint, "--output", checkpoint.parent)
    assert line == f"--output {str(checkpoint)!r}: the file exists and is not overwritten"
    assert checkpoint.read_bytes() == before


def test_a_wrong_suffix_is_said_at_once(checkpoint, tmp_path, capsys):
    line = refusal(capsys, checkpoint, "--output", tmp_path / "net.pt")
    assert line.endswith("net.pt: a checkpoint's name ends in .safetensors, not in .pt")


@pytest.mark.parametrize(
    "option",
    [
        ("--bits", "4"),
        ("--groups", "2"),
        ("--clamp", "false"),
        ("--output", "net.safetensors"),
        ("--report", "layers.csv"),
    ],
)
def test_options_that_a_table_does_not_take(option, checkpoint, tmp_path, capsys):
    line = refusal(capsys, checkpoint, "--table", tmp_path / "table", *option)
    assert line.startswith(f"{option[0]} and --table: a table has all widths and schemes")
    assert list(tmp_path.iterdir()) == []
