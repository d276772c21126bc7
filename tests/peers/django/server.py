"""django-oauth-toolkit, a real OAuth 2.0 authorization server, on loopback, told by the environment:

    ACCESS_TOKEN_TTL   lifetime of an access token in seconds (default 12)
    GRACE              seconds for which a used refresh token brings the identical new set (default 0)

Prints one line of JSON when it listens, and ends when its standard input does. Users log in with the
password grant (RFC 6749 §4.3), each with its own name as the password.

GET /control/counters is for the test that runs it: what the server has seen.
"""

import io
import json
import os
import sys
import tempfile
import threading

import django
from django.conf import settings

CLIENT_ID = "freshd-test"
# Characters that RFC 6749 §2.3.1 wants form-encoded before they go into the Basic header.
CLIENT_SECRET = "a secret with +%: and more"

directory = tempfile.TemporaryDirectory(prefix="freshd-django-")
settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    # Nothing of it lasts, and nobody else reaches it.
    SECRET_KEY="loopback only",
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "oauth2_provider"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": os.path.join(directory.name, "db.sqlite3"),
            # SQLite locks the whole database; a deferred transaction that wants to write would fail at once.
            "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE"},
        }
    },
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    # Slow hashes are for secrets that are worth a guess.
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    # Tells each answer's length.
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    ROOT_URLCONF=__name__,
    USE_TZ=True,
    OAUTH2_PROVIDER={
        "ACCESS_TOKEN_EXPIRE_SECONDS": int(os.environ.get("ACCESS_TOKEN_TTL", "12")),
        "REFRESH_TOKEN_GRACE_PERIOD_SECONDS": int(os.environ.get("GRACE", "0")),
        "REFRESH_TOKEN_REUSE_PROTECTION": True,
        "ROTATE_REFRESH_TOKEN": True,
        "SCOPES": {"read": "reading"},
    },
)
django.setup()

from django.contrib.auth.models import User  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.http import JsonResponse  # noqa: E402
from django.urls import include, path  # noqa: E402
from oauth2_provider.models import Application  # noqa: E402

seen = {"refreshes": 0, "refused": 0}
lock = threading.Lock()


def counters(_request):
    with lock:
        return JsonResponse(seen)


urlpatterns = [
    path("o/", include("oauth2_provider.urls", namespace="oauth2_provider")),
    path("control/counters", counters),
]


def counted(application):
    """Counts token requests with a refresh token by whether they were granted."""

    def count(environ, start_response):
        refreshes = False
        if environ["PATH_INFO"] == "/o/token/":
            length = int(environ.get("CONTENT_LENGTH") or 0)
            body = environ["wsgi.input"].read(length)
            environ["wsgi.input"] = io.BytesIO(body)
            refreshes = b"grant_type=refresh_token" in body

        def started(status, headers, exc_info=None):
            if refreshes:
                with lock:
                    seen["refreshes" if status.startswith("200") else "refused"] += 1
            return start_response(status, headers, exc_info)

        return application(environ, started)

    return count


class Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        pass


def main():
    call_command("migrate", verbosity=0)
    Application.objects.create(
        name="freshd",
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
        hash_client_secret=False,
        client_type=Application.CLIENT_CONFIDENTIAL,
        authorization_grant_type=Application.GRANT_PASSWORD,
    )
    for name in sys.argv[1:]:
        User.objects.create_user(name, password=name)
    server = ThreadedWSGIServer(("127.0.0.1", 0), Quiet)
    server.daemon_threads = True
    server.set_app(counted(get_wsgi_application()))
    origin = f"http://127.0.0.1:{server.server_port}"
    about = {
        "issuer": origin,
        "token_endpoint": f"{origin}/o/token/",
        "introspection_endpoint": f"{origin}/o/introspect/",
        "revocation_endpoint": f"{origin}/o/revoke_token/",
        "client_id": CLIENT_ID,
        "client_secret": CLIENT_SECRET,
    }
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps(about), flush=True)
    sys.stdin.read()
    server.shutdown()


main()
