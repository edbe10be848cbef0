"""Average precision against pycocotools, and against figures worked out by hand."""

import contextlib
import copy
import io

import numpy as np
import pytest

from torchadder.data.detection import DigitScenes, coco_ground_truth, open_detection
from torchadder.detection import coco_ap, voc_ap
from torchadder.detection.coco_ap import AREAS

NUM_SCENES = 40


@pytest.fixture(scope="module")
def case():
    """Scenes of digits with crowds, and detections that miss, repeat, shift and confuse them."""
    scenes = DigitScenes(num_train=1, num_validation=NUM_SCENES, height=160, width=192)
    truth = coco_ground_truth(open_detection("digit-scenes", scenes=scenes).splits["validation"])
    random = np.random.default_rng(0)
    results = []
    for number, entry in enumerate(truth["annotations"]):
        entry["iscrowd"] = int(number % 11 == 0)
        entry["area"] *= float(random.choice([0.5, 1.0, 30.0]))  # some of every size
        x, y, width, height = entry["bbox"]
        for _ in range(random.integers(0, 4)):
            is_right = random.random() < 0.8
            dx, dy = random.normal(scale=0.08, size=2) * (width, height)
            sx, sy = np.exp(random.normal(scale=0.08, size=2)) * (width, height)
            results.append(
                {
                    "image_id": entry["image_id"],
                    "category_id": entry["category_id"] if is_right else int(random.integers(1, 9)),
                    "bbox": [float(value) for value in (x + dx, y + dy, sx, sy)],
                    "score": round(float(random.random()), 2),  # some equal ones
                }
            )
    return truth, results


def reference(truth, results, image_ids=None):
    """What pycocotools says: its twelve figures and the precision of every class."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        whole = COCO()
        whole.dataset = copy.deepcopy(truth)
        whole.createIndex()
        evaluation = COCOeval(whole, whole.loadRes(copy.deepcopy(results)), "bbox")
        if image_ids is not None:
            evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats, evaluation.eval["precision"]


@pytest.mark.parametrize("num_images", [NUM_SCENES, 13])
def test_cocos_figures_are_those_of_pycocotools(case, num_images):
    truth, results = case
    image_ids = list(range(1, num_images + 1))
    results = [entry for entry in results if entry["image_id"] <= num_images]
    before = copy.deepcopy((truth, results))
    found = coco_ap(truth, results, image_ids)
    assert (truth, results) == before
    stats, precision = reference(truth, results, image_ids)
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    assert [getattr(found, name) for name in names] == pytest.approx(stats[:6], rel=1e-9)
    assert found.recall == pytest.approx(stats[8], rel=1e-9)
    assert 0.05 < found.ap < 0.9
    for number, name in enumerate(found.per_class):
        defined = precision[:, :, number, 0, -1]
        if (defined > -1).any():
            assert found.per_class[name] == pytest.approx(defined.mean(), rel=1e-9)
            assert found.per_class_50[name] == pytest.approx(defined[0].mean(), rel=1e-9)
            np.testing.assert_allclose(found.precision_50[name], defined[0], rtol=1e-9)
        else:
            assert found.per_class[name] is None
    assert found.num_images == num_images
    assert AREAS["small"][1] == AREAS["medium"][0] == 1024


def test_nothing_found_is_nothing_right(case):
    found = coco_ap(case[0], [])
    assert found.figures() == dict.fromkeys(found.figures(), 0.0)
    assert len(found.figures()) == 6
    assert voc_ap(case[0], []).area == 0.0


def test_the_truth_itself_is_perfect(case):
    truth, _ = case
    results = [{**entry, "score": 0.5} for entry in truth["annotations"] if not entry["iscrowd"]]
    assert set(coco_ap(truth, results).figures().values()) == {1.0}
    voc = voc_ap(truth, results)
    assert (voc.area, voc.points) == (1.0, 1.0)


def test_results_of_other_images_are_refused(case):
    with pytest.raises(ValueError, match=r"results hold images that were not looked at: \[2\]"):
        coco_ap(case[0], [{"image_id": 2, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}], [1])
    with pytest.raises(ValueError, match="image_ids must name images"):
        coco_ap(case[0], [], [])


def scene(objects, found):
    """One class, images 1 and 2: objects (image, box, difficult) and found (image, box, score)."""
    return (
        {
            "images": [{"id": 1}, {"id": 2}],
            "categories": [{"id": 4, "name": "cat"}, {"id": 5, "name": "dog"}],
            "annotations": [
                {"id": number, "image_id": image, "category_id": 4, "bbox": box, "difficult": hard}
                for number, (image, box, hard) in enumerate(objects, 1)
            ],
        },
        [
            {"image_id": image, "category_id": 4, "bbox": box, "score": score}
            for image, box, score in found
        ],
    )


def test_voc_by_hand():
    """Right, repeated, right, wrong: recall 1/3 1/3 2/3 2/3, precision 1 1/2 2/3 1/2."""
    box, other = [0, 0, 10, 10], [50, 50, 10, 10]
    truth, results = scene(
        [(1, box, 0), (1, other, 0), (2, box, 0)],
        [(1, box, 0.9), (1, box, 0.8), (2, box, 0.7), (2, other, 0.6)],
    )
    found = voc_ap(truth, results)
    assert found.area == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)
    assert found.points == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)
    assert found.per_class == {"cat": pytest.approx(5 / 9), "dog": None}


def test_voc_leaves_difficult_objects_out():
    box, hard = [0, 0, 10, 10], [50, 50, 10, 10]
    truth, results = scene([(1, box, 0), (1, hard, 1)], [(1, hard, 0.9), (1, box, 0.8)])
    assert voc_ap(truth, results).area == 1.0
    truth, results = scene([(1, hard, 1)], [(1, hard, 0.9)])
    assert voc_ap(truth, results).area is None


def test_voc_takes_half_an_overlap_and_not_less():
    """A box moved by a third of its width overlaps by 1/2, by more than that by less."""
    for shift, area in ((30 / 3, 1.0), (30 / 3 + 0.1, 0.0)):
        truth, results = scene([(1, [0, 0, 30, 10], 0)], [(1, [shift, 0, 30, 10], 0.9)])
        assert voc_ap(truth, results).area == area


def test_voc_at_one_threshold_is_near_cocos_ap50(case):
    """COCO reads the same curve at 101 recalls, so that without crowds they nearly agree."""
    truth, results = copy.deepcopy(case)
    for entry in truth["annotations"]:
        entry["iscrowd"] = 0
    assert voc_ap(truth, results).area == pytest.approx(coco_ap(truth, results).ap50, abs=0.02)
