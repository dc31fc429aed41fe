"""Small pipelines saved by the reference, one of SD 1 and one of SD 2, for the tests of loading."""

import pytest
from support.saved_models import Saved, save_oracle


@pytest.fixture(scope="session")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return save_oracle(tmp_path_factory.mktemp("sd1"), sd2=False)


@pytest.fixture(scope="session")
def sd2(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return save_oracle(tmp_path_factory.mktemp("sd2"), sd2=True)


@pytest.fixture(params=["sd1", "sd2"])
def saved(request: pytest.FixtureRequest) -> Saved:
    return request.getfixturevalue(request.param)
