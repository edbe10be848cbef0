"""The demo from the command line to the page, with few steps on real digits."""

import json

import pytest

from html_page import read_page
from torchadder.cli import demo, main
from torchadder.energy.report import short_number
from torchadder.report import sentences
from torchadder.report.page import NO_BREAK, energy

SECTIONS = [
    "Results",
    "Learning curves",
    "Features in two dimensions",
    "Weights",
    "Mistakes of the adder net",
    "Arithmetic, layer by layer",
    "Where these numbers come from",
]
PICTURES = [
    "learning_curves",
    "distillation",
    "features",
    "weight_histograms",
    "confusion_matrix",
    "mistakes",
]
LABELS = {"conv": "CNN", "adder": "Adder net", "pkkd": "Adder net, distilled"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "runs" / "demo"
    plan = demo.plan

    def short_plan(**options):
        jobs = plan(**options)
        for recipe in jobs.values():
            recipe.trainer.limit_train_batches = 2
        return jobs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "plan", short_plan)
        options = ["--epochs", "2", "--seed", "3", "--threads", "1", "--output", str(folder)]
        assert main(["demo", *options]) == 0
    return folder


@pytest.fixture(scope="module")
def summary(folder):
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(folder):
    return read_page(folder / "report.html")


def test_sections_and_pictures(folder, page):
    assert page.headings == SECTIONS
    assert len(page.images) == len(PICTURES)
    for name in PICTURES:
        assert (folder / f"{name}.png").stat().st_size > 5000
        assert (folder / f"{name}-dark.png").is_file()


def test_figures_of_the_page_are_those_of_the_summary(page, summary):
    rows = {row[0]: row[1:] for row in page.rows if len(row) == 7}
    for kind, label in LABELS.items():
        net = summary["nets"][kind]
        assert rows[label][0] == f"{100 * net['accuracy']:.1f} %"
        assert rows[label][2] == short_number(net["num_mul"])
        assert rows[label][3] == short_number(net["num_add"])
        assert rows[label][4] == energy(net["energy_pj"]).replace(NO_BREAK, " ")
    shares = [summary["features"][kind]["radial_share"] for kind in ("conv", "adder")]
    assert sentences.cloud_sentence(*shares).replace(NO_BREAK, " ") in page.text.replace(
        NO_BREAK, " "
    )
    assert f"one seed ({summary['seed']}), 4,000 training images and 2 epochs" in page.text
    assert summary["hardware"]["platform"] in page.text


def test_accuracies_are_those_of_the_last_epoch(folder, summary):
    for kind in LABELS:
        run = json.loads((folder / kind / "summary.json").read_text(encoding="utf-8"))
        accuracy = summary["nets"][kind]["accuracy"]
        assert accuracy == pytest.approx(run["metrics"]["val_accuracy"])
        low, high = summary["nets"][kind]["accuracy_interval"]
        assert low < accuracy < high
        assert run["seed"] == 3


def test_arithmetic(summary):
    conv, adder, pkkd = (summary["nets"][kind] for kind in LABELS)
    assert conv["num_mul"] == conv["num_add"] == 416_520
    # First and last layer multiply: 28 x 28 x 6 x 25 and 84 x 10.
    assert adder["num_mul"] == pkkd["num_mul"] == 117_600 + 840
    assert adder["num_add"] == 2 * 416_520 - adder["num_mul"]
    assert adder["energy_pj"] == pytest.approx(3.7 * adder["num_mul"] + 0.9 * adder["num_add"])


def test_every_inner_layer_is_fitted(page, summary):
    tables = [row[0] for row in page.rows]
    for kind, label in LABELS.items():
        assert set(summary["nets"][kind]["weights"]) == {"conv1", "conv2", "conv3", "conv4", "fc"}
        for name in ("conv2", "conv3", "conv4"):
            fits = summary["nets"][kind]["weights"][name]
            better = max(("laplace", "normal"), key=lambda n: fits[n]["log_likelihood"])
            assert fits["better"].lower() == better
            row = page.rows[tables.index(f"{label} {name}")]
            assert row[-1] == fits["better"]


def test_an_older_demo_stays_as_it_is(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "report.html").write_text("mine")
    assert demo.new_folder(tmp_path / "demo") == tmp_path / "demo-2"
    assert demo.new_folder(tmp_path / "demo-2") == tmp_path / "demo-2"
    (tmp_path / "demo-2" / "x").touch()
    assert demo.new_folder(tmp_path / "demo") == tmp_path / "demo-3"
    assert (tmp_path / "demo" / "report.html").read_text() == "mine"


def test_a_file_in_the_way_stays(tmp_path):
    (tmp_path / "demo").write_text("mine")
    assert demo.new_folder(tmp_path / "demo") == tmp_path / "demo-2"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "epochs = 0: at least 1 is wanted"),
        (["--seed", "-1"], "seed = -1"),
        (["--threads", "0"], "trainer.threads = 0"),
        (["--epochz", "3"], "epochs"),
    ],
)
def test_bad_options_are_one_line_and_make_no_folder(tmp_path, capsys, options, message):
    assert main(["demo", *options, "--output", str(tmp_path / "demo")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("torchadder: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
def test_one_full_epoch(tmp_path, capsys):
    assert main(["demo", "--epochs", "1", "--output", str(tmp_path / "demo")]) == 0
    output = capsys.readouterr().out
    for label in LABELS.values():
        assert label in output
    assert str(tmp_path / "demo" / "report.html") in output
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text(encoding="utf-8"))
    assert summary["nets"]["conv"]["accuracy"] > 0.85
