#!/usr/bin/env python3
"""Stands in for HubSpot at http://127.0.0.1:8180, to try freshd without an account there. Python 3.7, nothing else.

POST /login                      what your app gets once the user has said yes: a token response
POST /oauth/2026-03/token        refreshes: grant_type, refresh_token, client_id and client_secret in a form
POST /oauth/2026-03/token/revoke
POST /uninstall                  the user takes it back: from now on no refresh token works
GET  /crm/v3/objects/contacts    the API: 200 with a living access token, else 401

Its argument is another port. An access token lives for a minute. A refresh token works once; the client is my-app, its secret my-secret.
"""

import http.server
import json
import secrets
import sys
import time
import urllib.parse

LIFETIME = 60
CLIENT = {"client_id": "my-app", "client_secret": "my-secret"}
refresh_tokens, access_tokens = set(), {}    # each access token's end


def token_set():
    access_token, refresh_token = secrets.token_urlsafe(), secrets.token_urlsafe()
    access_tokens[access_token] = time.time() + LIFETIME
    refresh_tokens.add(refresh_token)
    return {"access_token": access_token, "token_type": "bearer", "expires_in": LIFETIME,
            "refresh_token": refresh_token}


class HubSpot(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        form = dict(urllib.parse.parse_qsl(self.rfile.read(length).decode()))
        if self.path == "/login":
            return self.answer(200, token_set())
        if self.path == "/uninstall":
            refresh_tokens.clear()
            return self.answer(200, {})
        if any(form.get(name) != value for name, value in CLIENT.items()):
            return self.answer(401, {"error": "invalid_client"})
        if self.path == "/oauth/2026-03/token/revoke":
            refresh_tokens.discard(form.get("token"))
            return self.answer(200, {})
        if form.get("refresh_token") not in refresh_tokens:
            return self.answer(400, {"status": "BAD_REFRESH_TOKEN"})
        refresh_tokens.remove(form["refresh_token"])
        self.answer(200, token_set())

    def do_GET(self):
        token = self.headers.get("Authorization", "").partition("Bearer ")[2]
        if access_tokens.get(token, 0) < time.time():
            return self.answer(401, {"status": "error", "category": "EXPIRED_AUTHENTICATION"})
        self.answer(200, {"results": [{"id": "1", "properties": {"firstname": "Ada"}}]})

    def answer(self, status, body):
        body = (json.dumps(body) + "\n").encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


port = int(sys.argv[1]) if len(sys.argv) > 1 else 8180
server = http.server.ThreadingHTTPServer(("127.0.0.1", port), HubSpot)
print(f"http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
