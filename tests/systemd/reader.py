"""Reads a token over and over, each time on a new connection, until its file is removed; tells what it got as JSON.

reader.py SOCKET USER FILE PAUSE: `statuses` counts answers, `errors` what kept one from coming.
"""

import collections
import json
import os
import socket
import sys
import time

path, user, alive, pause = sys.argv[1:]
request = f"GET /v1/users/{user}/grants/example/token HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
statuses, errors = collections.Counter(), collections.Counter()
slowest = 0.0
open(alive, "w").close()
while os.path.exists(alive):
    began = time.monotonic()
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(90)
            client.connect(path)
            client.sendall(request)
            answer = b""
            while chunk := client.recv(65536):
                answer += chunk
        if answer:
            statuses[answer.split(b" ", 2)[1].decode()] += 1
        else:
            errors["closed without an answer"] += 1
    except OSError as error:
        errors[f"{type(error).__name__}: {error}"] += 1
    slowest = max(slowest, time.monotonic() - began)
    time.sleep(float(pause))
print(json.dumps({"statuses": statuses, "errors": errors, "slowest": round(slowest, 3)}))
