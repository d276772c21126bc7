"""Access tokens from freshd, for apps in Python 3.9 or newer; nothing but the standard library."""

import http.client
import json
import os
import socket
import time
from urllib.parse import quote

SOCKET = os.environ.get("FRESHD_SOCKET", "/run/freshd/shared/freshd.sock")
LONGEST_CALL = 30    # seconds that a call of the API may take: a kept token is not used when less is left
kept = {}            # the last token of each grant and its end, in memory only


class Connect(Exception):
    """Only the user can help: they never connected this provider, or must connect it again. Show that page."""


class Later(Exception):
    """No token just now: freshd restarts, the provider is down, or an admin paused it. Try after .seconds."""

    def __init__(self, detail, seconds):
        super().__init__(detail)
        self.seconds = seconds


class Connection(http.client.HTTPConnection):
    def connect(self):
        end = time.monotonic() + 5
        while True:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(30)
            try:
                return self.sock.connect(SOCKET)
            except BlockingIOError:    # the socket's queue is full, as in a storm of others' connections
                self.sock.close()
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)


def ask(method, user, provider, verb, body=None):
    path = f"/v1/users/{quote(user, safe='')}/grants/{quote(provider, safe=':')}/{verb}"
    connection = Connection("localhost")
    try:
        connection.request(method, path, body and json.dumps(body))
        answer = connection.getresponse()
        value = json.load(answer)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Later(f"freshd does not answer: {error}", 2) from error
    finally:
        connection.close()
    if answer.status == 200:
        return value
    problem = value["type"].removeprefix("urn:freshd:")
    if problem in ("no-such-grant", "needs-authorization"):
        raise Connect(value["detail"])
    if answer.status in (429, 503) or problem == "paused":
        raise Later(value["detail"], value.get("retry_after", 5))
    raise RuntimeError(f"{problem}: {value['detail']}")    # 403, 507 …: for your admin; asking again is no use


def token(user, provider, patience=0):
    """Returns the grant's token. Waits up to `patience` seconds for a freshd or a provider that is away."""
    end = time.monotonic() + patience
    while True:
        try:
            new = ask("GET", user, provider, "token")
            kept[user, provider] = new, time.monotonic() + new.get("expires_in", 0) - LONGEST_CALL
            return new
        except Later as later:
            old, usable_until = kept.get((user, provider), (None, 0))
            if time.monotonic() < usable_until:
                return old
            if time.monotonic() + later.seconds > end:
                raise
            time.sleep(later.seconds)


def call(user, provider, request, patience=0):
    """Returns request(access_token), which has a `status`; after a 401 once more, if there is a newer token."""
    old = token(user, provider, patience)
    answer = request(old["access_token"])
    if answer.status != 401:
        return answer
    new = ask("POST", user, provider, "refresh", {"generation": old["generation"]})
    return request(new["access_token"]) if new["generation"] > old["generation"] else answer
