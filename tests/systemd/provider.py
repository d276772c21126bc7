"""An authorization server on loopback, over TLS, for the container: strict rotation, and a memory on disk.

The refresh token of user U is `rt-U-N`; each use makes it N + 1 and is written down before the answer. Another
N than the current one is `invalid_grant`. /run/provider/delay has the seconds that an answer takes.
"""

import http.server
import json
import os
import ssl
import sys
import time
import urllib.parse

STATE = "/var/lib/provider/current.json"
LOG = "/var/lib/provider/log"
DELAY = "/run/provider/delay"


class Provider(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        form = dict(urllib.parse.parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
        _, user, number = form["refresh_token"].split("-")
        with open(STATE) as file:
            current = json.load(file)
        if int(number) != current.get(user, 1):
            note(f"refused {user} {number}")
            return self.answer(400, {"error": "invalid_grant"})
        current[user] = int(number) + 1
        with open(STATE + ".new", "w") as file:
            json.dump(current, file)
            os.fsync(file.fileno())
        os.rename(STATE + ".new", STATE)
        note(f"refreshed {user} {number}")
        if os.path.exists(DELAY):
            with open(DELAY) as file:
                time.sleep(float(file.read()))
        self.answer(200, {
            "access_token": f"at-{user}-{current[user]}", "token_type": "Bearer",
            "expires_in": 30 if user.startswith("short") else 3600,
            "refresh_token": f"rt-{user}-{current[user]}",
        })

    def answer(self, status, body):
        body = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def note(text):
    with open(LOG, "a") as file:
        file.write(text + "\n")


os.makedirs("/var/lib/provider", exist_ok=True)
os.makedirs("/run/provider", exist_ok=True)
if not os.path.exists(STATE):
    with open(STATE, "w") as file:
        file.write("{}")
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/etc/provider/server.pem")
server = http.server.ThreadingHTTPServer(("127.0.0.1", 443), Provider)
server.socket = context.wrap_socket(server.socket, server_side=True)
print("ready", file=sys.stderr, flush=True)
server.serve_forever()
