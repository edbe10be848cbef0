"""Tiny data sets on disk."""

import io

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest


def png(seed: int = 0, size: tuple[int, int] = (16, 16), mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


class Writer:
    """Writes data sets below a folder; images are numbered so that they can be recognised."""

    def __init__(self, folder):
        self.folder = folder

    def parquet(self, name="train-00000-of-00001.parquet", images=None, labels=None, **options):
        images = [png(seed) for seed in range(12)] if images is None else images
        labels = [seed % 3 for seed in range(len(images))] if labels is None else labels
        column = options.get("image_column", "img")
        cells = [{"bytes": image, "path": None} for image in images]
        struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        label = pa.array(labels, options.get("label_type"))
        table = pa.table(
            {column: pa.array(cells, struct), options.get("label_column", "label"): label}
        )
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        return path

    def named_parquet(self, name, class_names, labels=None):
        """A file whose schema has the names of the classes."""
        import datasets

        labels = list(range(len(class_names))) * 2 if labels is None else labels
        cells = [{"bytes": png(seed), "path": None} for seed in range(len(labels))]
        kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=class_names)}
        table = datasets.Dataset.from_dict(
            {"image": cells, "label": labels}, features=datasets.Features(kinds)
        )
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(path)
        return path

    def image(self, name, seed=0, **options):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(seed, **options))
        return path


@pytest.fixture
def writer(tmp_path):
    return Writer(tmp_path / "images")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    """`datasets` keeps its tables below the test's own folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(name="png")
def _png():
    """Bytes of a PNG image with random pixels: `png(seed, size=(16, 16), mode="RGB")`."""
    return png
