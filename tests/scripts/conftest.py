# SPDX-License-Identifier: Apache-2.0
"""A KFP API to ask: its double, and with KFLOOP_TEST_KFP_HOST a real one, too."""

import os

import pytest
from doubles.kfp_api import KfpApi

REAL = os.environ.get("KFLOOP_TEST_KFP_HOST", "")


@pytest.fixture
def api():
    with KfpApi() as api:
        yield api


@pytest.fixture(params=["double", *(["real"] if REAL else [])])
def host(request, api):
    return REAL if request.param == "real" else api.url
