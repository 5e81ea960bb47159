"""Every test of these modules is a promise of the contract, whatever the engine."""

from __future__ import annotations

import pytest

from tests.contract.test_clients import *  # noqa: F403
from tests.contract.test_ends import *  # noqa: F403
from tests.contract.test_inputs import *  # noqa: F403
from tests.contract.test_outputs import *  # noqa: F403
from tests.contract.test_peer_clients import *  # noqa: F403

pytestmark = pytest.mark.server
