# SPDX-License-Identifier: BSD-3-Clause
"""The models keep the contract of a Device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.device_contract import CONTRACT
from vfio_user_bridge import models
from vfio_user_bridge.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vfio_user_bridge.device import Device


@pytest.fixture(params=list(models.MODELS))
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    made = models.create(request.param)
    assert made.name == request.param
    yield made
    made.close()


@pytest.mark.parametrize("clause", CONTRACT)
def test_contract(clause: Callable[[Device], None], device: Device) -> None:
    clause(device)


def test_unknown_model() -> None:
    with pytest.raises(UsageError, match="no model:abacus; there are: model:edu"):
        models.create("abacus")
