"""The public API: every name resolves on first touch. tests/test_imports.py holds that importing it is light."""

import pytest

import dsv3


@pytest.mark.parametrize("name", dsv3.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(dsv3, name) is not None


def test_public_names_are_listed_and_others_refused() -> None:
    assert set(dsv3.__all__) <= set(dir(dsv3))
    with pytest.raises(AttributeError, match="no attribute 'Transfomer'"):
        dsv3.Transfomer  # noqa: B018
