"""Where a server listens."""

import socket

import pytest

from kandinsky5.errors import RequestError
from kandinsky5.server.running import serve
from kandinsky5.server.settings import Settings
from kandinsky5.service import Limits


class ToldError(Exception):
    """Ends a server at the moment it tells its address, before anything of it runs."""


def opened() -> dict:
    raise AssertionError("the model is not loaded before the address is told")


def run(port: int, say) -> None:
    serve(opened, Settings(model="any"), Limits(), host="127.0.0.1", port=port, say=say)


def test_a_server_that_tells_its_address_can_be_connected_to() -> None:
    def connect(address: str) -> None:
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=5):
            raise ToldError

    with pytest.raises(ToldError):
        run(0, connect)


def test_an_address_in_use_is_refused_before_it_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(RequestError, match="another --port"):
        run(taken.getsockname()[1], lambda address: pytest.fail(f"told {address}"))
