"""What tests of training share: places for checkpoints, and rows for the loop."""

import pytest
from pyarrow import fs

from nanochat.data.dataset import TokenDataset
from tests.training.places import Place, s3_place, s3_server
from tests.training.stages import make_dataset


@pytest.fixture(scope="module", autouse=True)
def credentials():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="module")
def server(credentials):
    with s3_server() as server:
        yield server


@pytest.fixture(params=["path", "plain text", "file uri", "s3"])
def place(request, tmp_path) -> Place:
    if request.param == "s3":
        return s3_place(request.getfixturevalue("server"), f"runs/{tmp_path.name}")
    location = {"path": tmp_path / "c", "plain text": f"{tmp_path}/c", "file uri": f"file://{tmp_path}/c"}[
        request.param
    ]
    return Place(location, fs.LocalFileSystem(), f"{tmp_path}/c")


@pytest.fixture
def s3(server, tmp_path) -> Place:
    return s3_place(server, f"only/{tmp_path.name}")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> TokenDataset:
    return make_dataset(tmp_path_factory.mktemp("loop"))
