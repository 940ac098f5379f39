"""Archives that are written whole or not at all, and refused when they have changed."""

import hashlib
import io
import os
import random
import zipfile

import pytest
import torch

from sknan._utils.archive import load, save, write_archive

CONTENTS = {"weights": torch.arange(500.0), "numbers": [1, (2.5, None)], "text": "a"}


class FailingFile(io.BytesIO):
    """File that raises an error once, after the first 500 bytes."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, data):
        if self.tell() > 500 and self.error is not None:
            error, self.error = self.error, None
            raise error
        return super().write(data)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(28, "No space left on device")]
)
def test_an_error_that_interrupts_the_writing_is_raised(error):
    with pytest.raises(type(error)) as raised:
        write_archive({"weights": torch.zeros(5000)}, FailingFile(error))
    assert raised.value is error


@pytest.fixture
def path(tmp_path):
    save(CONTENTS, tmp_path / "archive")
    return tmp_path / "archive"


def test_an_archive_is_read_by_load_and_by_torch(path):
    for found in (load(path), torch.load(path, weights_only=True)):
        assert torch.equal(found.pop("weights"), CONTENTS["weights"])
        assert found == {"numbers": [1, (2.5, None)], "text": "a"}


def test_a_file_that_has_changed_in_any_place_is_not_read(path):
    intact = path.read_bytes()
    for place in random.Random(0).sample(range(len(intact)), 200):
        changed = bytearray(intact)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        assert load(path) is None
    for size in (0, 1, 31, 32, 33, *range(40, len(intact), 97), len(intact) - 1):
        path.write_bytes(intact[:size])
        assert load(path) is None
    path.write_bytes(intact + b"0")
    assert load(path) is None


def with_digest(archive):
    """Return what a hostile writer, who knows the format, would put into the file."""
    return archive + hashlib.sha256(archive).digest()


def test_a_compressed_archive_is_not_unpacked(path):
    # Only compression makes an archive larger in memory than on disk.
    packed = io.BytesIO()
    parts = zipfile.ZipFile(io.BytesIO(path.read_bytes()[:-32]))
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in parts.infolist():
            archive.writestr(part.filename, parts.read(part) + bytes(10_000))
    path.write_bytes(with_digest(packed.getvalue()))
    assert load(path) is None


def test_a_tensor_that_is_larger_than_its_memory_is_not_read(path):
    nested = [torch.zeros(1).expand(10**12)]
    for _ in range(40):  # 2**40 lists, in 40 places
        nested = [nested, nested]
    save({"weights": nested}, path)
    assert load(path) is None


def test_a_file_that_cannot_be_written_leaves_the_old_one(path, tmp_path):
    resource = pytest.importorskip("resource")
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save({"weights": torch.zeros(50_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(TypeError):
        save({"weights": memoryview(b"")}, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["archive"]
    with pytest.raises(FileNotFoundError):
        save(CONTENTS, tmp_path / "missing" / "archive")
