"""Two processes with half of each batch do what one does with the whole."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import rank_jobs
import ranks
from torchadder.training.checkpoint_io import read_state

EVERY_STEP = {"trainer.checkpoint_minutes": 0}
DOUBLE = {"trainer.precision": "64-true", "data.num_classes": 10}
# Sums over the batch are taken in another order. Over 12 steps the relative difference of two
# float64 runs stays many orders below this, and one image counted twice lies far above it.
TOLERANCE = 1e-9


def weights(folder):
    state = read_state(f"{folder}/checkpoints/last.ckpt")
    tensors = dict(state["state_dict"])
    momenta = state["optimizer_states"][0]["state"]
    return tensors | {f"momentum {k}": v["momentum_buffer"] for k, v in momenta.items()}


def assert_close(got, want):
    assert got.keys() == want.keys()
    for name, value in want.items():
        difference = (got[name].double() - value.double()).abs().max()
        assert difference <= TOLERANCE * value.double().abs().max().clamp(min=1), name


def assert_same_history(got, want):
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"seconds"}:
            assert one[name] == pytest.approx(other[name], rel=1e-6, abs=1e-6), name


@pytest.fixture(scope="module")
def alone(digits, tmp_path_factory):
    """One process, the whole batch, with batch norm."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    return ranks.run(rank_jobs.train, digits, folder, **DOUBLE)[0]


def test_two_halves_make_a_whole_with_synchronised_batch_norm(digits, alone, tmp_path):
    synchronised = DOUBLE | {"trainer.sync_batchnorm": True}
    both = ranks.run(rank_jobs.train, digits, tmp_path / "run", world_size=2, **synchronised)
    assert both[0]["digest"] == both[1]["digest"]
    assert both[0]["folder"] == both[1]["folder"]
    assert_close(weights(both[0]["folder"]), weights(alone["folder"]))
    assert_same_history(both[0]["history"], alone["history"])
    # Shares of 21 images are counted, none twice.
    correct = both[0]["history"][-1]["val_accuracy"] * 21
    assert correct == pytest.approx(round(correct), abs=1e-5)
    # The plain layers are back, and so the weights are those of a plain net.
    assert both[0]["norms"] == ["BatchNorm2d"]
    import torchadder

    assert isinstance(
        torchadder.load(tmp_path / "run" / "checkpoints" / "best.safetensors"), nn.Module
    )


def test_normalised_weights_in_two_processes(digits, tmp_path):
    """The scales of AWN get the gradient of the whole batch, too."""
    options = DOUBLE | {"model.weight_norm": "adaptive", "trainer.sync_batchnorm": True}
    alone = ranks.run(rank_jobs.train, digits, tmp_path / "alone", **options)
    both = ranks.run(rank_jobs.train, digits, tmp_path / "both", world_size=2, **options)
    assert both[0]["digest"] == both[1]["digest"]
    got, want = weights(both[0]["folder"]), weights(alone[0]["folder"])
    scales = {name for name in want if name.endswith("parametrizations.weight.0.scale")}
    assert scales
    assert_close(got, want)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"distill.scale": "batch"},
        {"distill.scale": "magnitude", "distill.linear_map": False},
        {"distill.kernel": "none"},
        {"distill.kernel": "laplacian"},
        {"trainer.accumulate": 2},
        {"method": "kd"},
        {"method": "at"},
        {"method": "sp"},
        {"method": "fsp"},
        {"method": "fitnet"},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()) or "plain",
)
def test_two_halves_of_a_distillation_make_a_whole(digits, tmp_path, options):
    """Comparisons of features that look at the batch as a whole look at that of both processes."""
    options = DOUBLE | {"trainer.sync_batchnorm": True, "epochs": 2} | options
    if "method" in options:
        options |= {"distill.progressive": True}
    alone = ranks.run(rank_jobs.train, digits, tmp_path / "alone", "pkkd", **options)
    both = ranks.run(rank_jobs.train, digits, tmp_path / "both", "pkkd", world_size=2, **options)
    assert both[0]["digest"] == both[1]["digest"]
    assert both[0]["sigmas"] == both[1]["sigmas"] == pytest.approx(alone[0]["sigmas"], rel=1e-9)
    assert_close(weights(both[0]["folder"]), weights(alone[0]["folder"]))


@pytest.mark.parametrize(
    ("method", "num_compiled"),
    [
        ("pkkd", 3),  # the first batch of a run gives the kernels their scale
        pytest.param("sp", 4, marks=pytest.mark.slow),
    ],
)
def test_compiled_halves_make_a_whole(digits, tmp_path, method, num_compiled):
    """Batches of 18, two full ones an epoch, and 17: of these one process has 9 as ever, one 8."""
    options = DOUBLE | {"method": method, "data.batch_size": 18, "epochs": 2}
    options |= {"distill.progressive": True, "trainer.sync_batchnorm": True}
    alone = ranks.run(rank_jobs.train, digits, tmp_path / "alone", "pkkd", **options)
    options |= {"world_size": 2, "compiler": "eager", "trainer.compile": True}
    both = ranks.run(rank_jobs.train, digits, tmp_path / "both", "pkkd", **options)
    assert both[0]["digest"] == both[1]["digest"]
    assert [one["num_compiled"] for one in both] == [num_compiled] * 2
    assert_close(weights(both[0]["folder"]), weights(alone[0]["folder"]))


def test_processes_look_at_their_own_shares_unless_they_are_synchronised(digits, tmp_path):
    losses = []
    for synchronised in (False, True):
        options = DOUBLE | {"trainer.sync_batchnorm": synchronised, "epochs": 1}
        folder = tmp_path / str(synchronised)
        both = ranks.run(rank_jobs.train, digits, folder, "pkkd", world_size=2, **options)
        losses.append(both[0]["history"][0]["train_mid"])
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("world_size", [1, 2])
def test_accumulated_batches_make_a_whole(digits, tmp_path, world_size):
    """Norms of single images, batches of 16 against 2 of 8: the last step has 5 images."""
    whole = ranks.run(rank_jobs.train, digits, tmp_path / "whole", norm="group", **DOUBLE)
    options = DOUBLE | {"trainer.accumulate": 2, "data.batch_size": 8}
    parts = ranks.run(
        rank_jobs.train, digits, tmp_path / "parts", norm="group", world_size=world_size, **options
    )
    assert_close(weights(parts[0]["folder"]), weights(whole[0]["folder"]))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"distill.beta": 0.0},
        {"distill.alpha": 0.0, "distill.kernel": "none"},
        {"distill.linear_map": False},
        {"distill.learned_scales": "none"},
        {"trainer.sync_batchnorm": True, "trainer.precision": "bf16-mixed"},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()) or "plain",
)
def test_pkkd_in_two_processes(digits, tmp_path, options):
    """Teacher, student and the loss's own parameters: all of them in step, none left over."""
    both = ranks.run(
        rank_jobs.train, digits, tmp_path / "run", "pkkd", world_size=2, epochs=2, **options
    )
    assert both[0]["digest"] == both[1]["digest"]
    assert both[0]["sigmas"] == both[1]["sigmas"]
    assert all(sigma > 0 for sigma in both[0]["sigmas"].values())
    assert bool(both[0]["sigmas"]) == (
        options.get("distill.beta") != 0 and "distill.kernel" not in options
    )


@pytest.mark.slow
def test_pkkd_in_two_processes_and_half_precision(digits, tmp_path):
    """In step to the last bit, and near to what single precision does."""
    losses = []
    for precision in ("bf16-mixed", "32-true"):
        options = {"trainer.precision": precision, "epochs": 2}
        folder = tmp_path / precision
        both = ranks.run(rank_jobs.train, digits, folder, "pkkd", world_size=2, **options)
        assert both[0]["digest"] == both[1]["digest"]
        assert both[0]["sigmas"] == both[1]["sigmas"]
        losses.append([row["train_loss"] for row in both[0]["history"]])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]


def test_alignment_is_measured_by_all_processes_or_none(digits, few_digits, tmp_path):
    """Three images are too few for it; a process that logs what another does not waits for it."""
    for data, is_measured in ((digits, True), (few_digits, False)):
        options = {"epochs": 1, "trainer.timeout": 20.0}
        folder = tmp_path / str(is_measured)
        both = ranks.run(rank_jobs.train, data, folder, "pkkd", world_size=2, **options)
        for process in both:
            assert ("alignment/conv2" in process["history"][-1]) == is_measured


@pytest.mark.parametrize(
    ("options", "done"), [({}, "1 of 3 epochs"), (EVERY_STEP, "1 of 3 epochs and 2 batches of")]
)
def test_a_run_goes_on_with_another_number_of_processes(digits, alone, tmp_path, options, done):
    synchronised = DOUBLE | {"trainer.sync_batchnorm": True}
    cut = ranks.start(
        rank_jobs.train,
        digits,
        tmp_path / "run",
        world_size=2,
        at=[("interrupt", 1, 2, 0), ("interrupt", 1, 2, 1)],
        **synchronised | options,
    ).outcomes()
    assert {outcome.error[0] for outcome in cut} == {"KeyboardInterrupt"}
    assert f"interrupted after {done}" in cut[0].error[1]
    told = ranks.run(rank_jobs.go_on, tmp_path / "run", digits)
    assert_close(weights(tmp_path / "run"), weights(alone["folder"]))
    assert_same_history(told[0]["history"], alone["history"])
    again = ranks.start(rank_jobs.go_on, tmp_path / "run", digits, world_size=2).outcomes()
    assert [outcome.error[0] for outcome in again] == ["RecipeError"] * 2
    assert all("the run is finished" in outcome.error[1] for outcome in again)


def test_one_process_goes_on_as_two_within_an_epoch(digits, alone, tmp_path):
    """The sums of the epoch so far are those of one process; they must not count twice."""
    options = DOUBLE | EVERY_STEP | {"trainer.sync_batchnorm": True}
    at = [("interrupt", 1, 2, 0)]
    ranks.start(rank_jobs.train, digits, tmp_path / "run", at=at, **options).outcomes()
    both = ranks.run(rank_jobs.go_on, tmp_path / "run", digits, world_size=2)
    assert both[0]["digest"] == both[1]["digest"]
    assert_close(weights(tmp_path / "run"), weights(alone["folder"]))
    assert_same_history(both[0]["history"], alone["history"])


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ("pkkd", {}),
        ("pkkd", EVERY_STEP),
        ("adder", EVERY_STEP | {"method": "dropout"}),  # draws in each process
    ],
    ids=["after an epoch", "within an epoch", "dropout"],
)
def test_the_same_number_of_processes_goes_on_bit_by_bit(digits, tmp_path, row, options):
    plain = {key: value for key, value in options.items() if key not in EVERY_STEP}
    straight = ranks.run(rank_jobs.train, digits, tmp_path / "straight", row, world_size=2, **plain)
    at = [("interrupt", 1, 2, 0), ("interrupt", 1, 2, 1)]
    cut = ranks.start(
        rank_jobs.train, digits, tmp_path / "cut", row, world_size=2, at=at, **options
    ).outcomes()
    assert ("2 batches of the next" in cut[0].error[1]) == (options != {})
    resumed = ranks.run(rank_jobs.go_on, tmp_path / "cut", digits, world_size=2)
    assert resumed[0]["digest"] == resumed[1]["digest"] == straight[0]["digest"]
    for got, want in zip(resumed[0]["history"], straight[0]["history"], strict=True):
        assert got | {"seconds": 0} == want | {"seconds": 0}


@pytest.mark.parametrize("options", [{}, EVERY_STEP], ids=["after an epoch", "within an epoch"])
def test_streamed_images_are_divided_and_go_on_bit_by_bit(digits, tmp_path, options):
    streamed = {"data.streaming": True, "data.num_classes": 10, "data.shuffle_buffer": 8}
    streamed["data.workers"] = 0
    straight = ranks.run(rank_jobs.train, digits, tmp_path / "straight", world_size=2, **streamed)
    assert straight[0]["digest"] == straight[1]["digest"]
    at = [("interrupt", 1, 1, 0), ("interrupt", 1, 1, 1)]
    ranks.start(
        rank_jobs.train, digits, tmp_path / "cut", world_size=2, at=at, **streamed | options
    ).outcomes()
    if options:  # what one of two has read is not known to a single one
        alone = ranks.start(rank_jobs.go_on, tmp_path / "cut", digits).outcomes()[0]
        assert alone.error[0] == "CheckpointError"
        assert "must end with as many processes as it was begun with, 2, got 1" in alone.error[1]
    resumed = ranks.run(rank_jobs.go_on, tmp_path / "cut", digits, world_size=2)
    assert resumed[0]["digest"] == straight[0]["digest"]
    # With another number of processes the order is another one; every image is still seen once.
    ranks.run(rank_jobs.train, digits, tmp_path / "alone", **streamed)


def test_a_batch_that_cannot_be_shared(digits, tmp_path):
    outcomes = ranks.start(
        rank_jobs.train, digits, tmp_path / "run", world_size=2, **{"data.batch_size": 15}
    ).outcomes()
    for outcome in outcomes:
        assert outcome.error[0] == "DataError"
        assert outcome.error[1].startswith("data.batch_size=15 counts the images of all processes")
    assert not (tmp_path / "run").exists()


def test_a_parameter_without_a_gradient_is_named(digits, tmp_path):
    outcomes = ranks.start(
        rank_jobs.train, digits, tmp_path / "run", world_size=2, idle=True
    ).outcomes()
    assert outcomes[0].error[0] == "RecipeError"
    assert outcomes[0].error[1].endswith("these parameters do not: model.idle")


@pytest.mark.parametrize(
    ("kind", "words"), [("first", "'seven'"), ("any", "rank 1: "), ("bytes", "can't decode byte")]
)
def test_processes_fail_together(kind, words):
    outcomes = ranks.start(rank_jobs.disagree, kind, world_size=2).outcomes()
    assert [outcome.error[0] for outcome in outcomes] == ["ValueError"] * 2
    assert all(words in outcome.error[1] for outcome in outcomes)


def test_numbers_that_are_not_finite_stop_all_processes(digits, tmp_path):
    outcomes = ranks.start(
        rank_jobs.train, digits, tmp_path / "run", world_size=2, at=[("poison", 1, 1, 1)]
    ).outcomes()
    first, second = outcomes
    assert first.error == second.error
    assert first.error[0] == "NonFiniteError"
    assert "rank 1: step 6 (epoch 2, batch 2)" in first.error[1]


@pytest.mark.parametrize("momentum", [0.1, None])
def test_synchronised_norm_is_batch_norm_of_all_rows(momentum):
    inputs = torch.randn(
        7, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    inputs = inputs * 3 + 5
    gradient = torch.randn(inputs.shape, dtype=torch.float64)
    rows = [[0, 2, 4, 6, 5], [1, 3]]
    arrays = ranks.run(
        rank_jobs.share_of_norm, inputs.numpy(), gradient.numpy(), momentum, rows, world_size=2
    )
    shares = [[torch.from_numpy(array) for array in share] for share in arrays]
    layer = nn.BatchNorm2d(3, momentum=momentum).double()
    nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(1))
    whole = inputs.clone().requires_grad_()
    output = layer(whole)
    output.backward(gradient)
    for rank in range(2):
        torch.testing.assert_close(shares[rank][0], output[rows[rank]])
        torch.testing.assert_close(shares[rank][1], whole.grad[rows[rank]])
        torch.testing.assert_close(shares[rank][4], layer.running_mean)
        torch.testing.assert_close(shares[rank][5], layer.running_var)
        own_alone = F.batch_norm(inputs[rows[rank]], None, None, training=True)
        torch.testing.assert_close(shares[rank][6], own_alone)
    torch.testing.assert_close(shares[0][2] + shares[1][2], layer.weight.grad)
    torch.testing.assert_close(shares[0][3] + shares[1][3], layer.bias.grad)
