from torchadder.bench import detection


def test_both_sides_are_the_same_graph_and_are_measured(monkeypatch):
    monkeypatch.setattr(detection, "STEP_SIZE", (64, 96))
    sides = {name: detection.build("resnet18", name, (64, 96)) for name in detection.SIDES}
    shapes = [
        {key: value.shape for key, value in side.state_dict().items()} for side in sides.values()
    ]
    assert shapes[0] == shapes[1]
    kinds = {
        name: {type(layer).__name__ for layer in side.modules()} for name, side in sides.items()
    }
    assert "Adder2d" in kinds["adder"]
    assert "Adder2d" not in kinds["conv"]
    found = detection.measure_step(turns=1, batch=2)
    assert found["ratio"] == found["adder_ms"] / found["conv_ms"]
    assert (found["height"], found["width"], found["batch"]) == (64, 96, 2)
