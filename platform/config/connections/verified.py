"""TLS 1.3 to Redis for redis-py and for Celery's transport.

redis-py's own context trusts the system's authorities beside the one it is given. Ours trusts that one alone. The
files are read for each new connection, so that renewed ones are used without a restart.
"""

from __future__ import annotations

import socket
import ssl

from kombu.transport import redis as transport
from redis import SSLConnection

from config.connections.certificates import client_context


class Connection(SSLConnection):
    """redis-py's connection with a context that can't be talked into less."""

    def _wrap_socket_with_ssl(self, sock: socket.socket) -> ssl.SSLSocket:
        context = client_context(self.certfile or "", self.keyfile or "")
        context.load_verify_locations(cafile=self.ca_certs)
        return context.wrap_socket(sock, server_hostname=self.host)


class Channel(transport.Channel):
    """Where kombu looks for the class of a connection with TLS."""

    connection_class_ssl = Connection


class Transport(transport.Transport):
    """Celery's `broker_transport`."""

    Channel = Channel
