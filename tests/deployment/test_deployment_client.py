# SPDX-License-Identifier: Apache-2.0
"""Requests that nobody answers."""

import socket

from kfloop.components.deployment.client import NO_ANSWER, ServiceClient


def test_a_host_that_is_not_known_is_told_with_the_remedy(monkeypatch) -> None:
    url = "http://flights-ml.models.invalid"
    monkeypatch.delenv("KFLOOP_INGRESS_URL", raising=False)
    with ServiceClient(url, "flights") as client:
        for answer in (client.predict([{}]), client.state()):
            assert answer.status == NO_ANSWER
            assert f"{url} is not known here" in answer.error
            assert "name the gateway's in KFLOOP_INGRESS_URL" in answer.error


def test_an_address_where_nobody_listens_is_no_matter_of_names() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with ServiceClient(url, "flights") as client:
        answer = client.state()
    assert answer.status == NO_ANSWER and answer.error.startswith("ConnectError: ")
    assert "KFLOOP_INGRESS_URL" not in answer.error
