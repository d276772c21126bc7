"""What must hold on a real systemd, one promise each, in an order in which each finds what it needs.

checks.py BASE ROOT PACKAGE: copies the image BASE to ROOT, boots it and installs PACKAGE. `ONLY=word,word` runs those
checks whose names have one of the words, after the first ones, which set things up.
"""

import json
import os
import subprocess
import sys
import time

from container import Container, Failed, within

HERE = os.path.dirname(os.path.abspath(__file__))
SHARED = "/run/freshd/shared/freshd.sock"
ADMIN = "/run/freshd/admin/freshd.sock"

CONFIG = """
[outbound]
ca-bundle = "/etc/freshd/ca.pem"

[provider.example]
token-endpoint = "https://auth.freshd.test/token"
client-id = "container"
client-secret = { credential = "example" }
rotation = "strict"
margin = "10s"

[app.crm]
unix-user = "crm"
providers = ["example"]
may = ["read", "import"]

[app.readers]
unix-group = "readers"
providers = ["example"]
may = ["read"]

[app.contained]
unix-uid = 100033
providers = ["example"]
may = ["read"]

[app.shop]
socket = true
providers = ["example"]
may = ["read"]

[app.news]
socket = true
namespace = "news"
providers = ["example"]
may = ["read"]
"""


def prepare(c):
    """Users, a server with a certificate of its own, and the files that freshd is told of."""
    c.sh("""
        useradd --uid 2001 --user-group crm; useradd --uid 2002 --user-group other
        groupadd readers; useradd --uid 2003 --user-group --groups readers nightly
        useradd --uid 2004 --user-group --create-home bob
        useradd --uid 2005 --user-group --groups freshd-admin keeper
        echo '127.0.0.1 auth.freshd.test' >>/etc/hosts
        mkdir -p /etc/provider && cd /etc/provider
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=ca -keyout ca.key -out ca.pem
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=auth.freshd.test -keyout key.pem -out csr.pem
        printf 'subjectAltName=DNS:auth.freshd.test' >ext
        openssl x509 -req -in csr.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile ext -out cert.pem
        cat cert.pem key.pem >server.pem
        install -m 0644 ca.pem /etc/freshd/ca.pem
        install -d -m 0700 /etc/freshd/secrets
        umask 077; echo hush >/etc/freshd/secrets/example
        umask 022; mkdir -p /etc/systemd/system/freshd.service.d
        printf '[Service]\\nLoadCredential=example:/etc/freshd/secrets/example\\n' >/etc/systemd/system/freshd.service.d/secrets.conf
    """)
    c.write("/etc/freshd/freshd.toml", CONFIG)
    c.write("/etc/systemd/system/provider.service", """[Unit]
Before=freshd.service
[Service]
ExecStart=python3 /opt/provider.py
[Install]
WantedBy=multi-user.target
""")
    c.sh("systemctl daemon-reload && systemctl enable --now provider")


def import_grant(c, user, lasts, namespace=None, refresh_token=None):
    body = {"access_token": f"at-{user}-1", "refresh_token": refresh_token or f"rt-{user}-1", "token_type": "Bearer",
            "expires_in": lasts}
    options = ["--namespace", namespace] if namespace else []
    c.run("freshctl", *options, "import", user, "example", input=json.dumps(body))


def grant(c, user):
    return json.loads(c.run("freshctl", "--json", "show", user, "example").stdout)


def generation(c, user, least):
    def look():
        found = grant(c, user)
        return found if found["generation"] >= least else None
    return within(60, f"generation {least} of {user}", look)


def status(c, as_whom, socket, user="alice"):
    """The HTTP status that a peer gets; the user and groups are those of `as_whom`, a prefix of a command."""
    url = f"http://localhost/v1/users/{user}/grants/example/token"
    done = c.run(*as_whom, "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "20", "--unix-socket",
                 socket, url, check=False)
    return done.stdout.strip() if done.returncode == 0 else f"curl: {done.returncode}"


def become(user):
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"]


def expect(what, seen, wanted):
    if seen != wanted:
        raise Failed(f"{what}: {seen!r}, expected {wanted!r}")


def journal(c, unit, since="-1h"):
    return c.run("journalctl", "--no-pager", "-o", "cat", "-u", unit, f"--since={since}").stdout


def now(c):
    return "@" + c.run("date", "+%s").stdout.strip()


class Reader:
    """A client that connects anew for each request, as fast as it is answered, until `end`."""

    def __init__(self, c, socket, pause="0.002", user="alice"):
        self.c, self.file = c, f"/tmp/reader-{time.monotonic_ns()}"
        self.process = c.start(*become("crm"), "python3", "/opt/reader.py", socket, user, self.file, pause)
        within(20, "the reader", lambda: os.path.exists(f"/proc/{c.pid}/root{self.file}"))

    def end(self):
        self.c.run("rm", self.file)
        out, error = self.process.communicate(timeout=120)
        if self.process.returncode:
            raise Failed(error)
        return json.loads(out)


# The checks.


def the_package_makes_user_groups_and_key_and_starts_service_and_sockets(c):
    c.run("dpkg", "--install", "/opt/freshd.deb")
    expect("key", c.run("stat", "-c", "%a %U", "/etc/freshd/key").stdout.strip(), "600 root")
    c.run("getent", "passwd", "freshd")
    c.run("getent", "group", "freshd-admin")
    for unit in ("freshd.service", "freshd.socket", "freshd-admin.socket"):
        expect(unit, c.run("systemctl", "is-enabled", unit).stdout.strip(), "enabled")
        expect(unit, c.run("systemctl", "is-active", unit, check=False).stdout.strip(), "active")
    c.run("freshctl", "status")


def installing_again_never_touches_the_key(c):
    key = c.run("sha256sum", "/etc/freshd/key").stdout
    c.run("dpkg", "--install", "/opt/freshd.deb")
    expect("key", c.run("sha256sum", "/etc/freshd/key").stdout, key)


def the_units_are_clean_and_closed(c):
    units = c.sh("ls /usr/lib/systemd/system/freshd*").stdout.split()
    expect("units", len(units), 7)
    done = c.run("systemd-analyze", "verify", *units)
    expect("systemd-analyze verify", done.stdout + done.stderr, "")
    done = c.run("systemd-analyze", "--user", "verify", "/usr/lib/systemd/user/freshd.service", check=False)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "freshd" in line]
    expect("systemd-analyze --user verify", ours, [])
    for unit in ("freshd.service", "freshd@x.service"):
        c.run("systemd-analyze", "security", "--no-pager", "--threshold=12", unit)
    for page in ("freshd.8", "freshctl.1", "freshd.toml.5"):
        done = c.run("man", "--warnings", page)
        expect(page, done.stderr, "")


def a_refresh_over_tls_works_in_the_sandbox_and_the_status_tells_it(c):
    prepare(c)
    c.run("systemctl", "restart", "freshd")
    import_grant(c, "alice", 3600)
    c.run("freshctl", "refresh", "alice", "example")
    expect("generation", grant(c, "alice")["generation"], 2)
    expect("mode", c.show("freshd", "MemoryDenyWriteExecute"), "yes")
    text = within(40, "STATUS=", lambda: (
        lambda text: text if text.startswith("1 fresh, next in ") else None)(c.show("freshd", "StatusText")))
    print(f"    STATUS={text}")
    pid = c.show("freshd", "MainPID")
    proc = c.run("cat", f"/proc/{pid}/status").stdout
    expect("seccomp", "Seccomp:\t2" in proc and "NoNewPrivs:\t1" in proc, True)
    limits = c.run("grep", "core", f"/proc/{pid}/limits").stdout.split()
    expect("core limit", limits[4:6], ["0", "0"])


def a_reload_is_told_and_the_status_comes_back(c):
    c.run("systemctl", "reload", "freshd")
    within(20, "reloaded", lambda: "reloaded" in journal(c, "freshd"))
    within(20, "active", lambda: c.run("systemctl", "is-active", "freshd", check=False).stdout.strip() == "active")


def peers_get_what_their_rules_say(c):
    shop, news = "/run/freshd/app/shop/freshd.sock", "/run/freshd/app/news/freshd.sock"
    for app in ("shop", "news"):
        c.write(f"/etc/systemd/system/freshd-app@{app}.socket.d/who.conf", "[Socket]\nSocketGroup=www-data\n")
    c.sh("systemctl daemon-reload && systemctl stop freshd && systemctl enable --now freshd-app@shop.socket "
         "freshd-app@news.socket && systemctl start freshd")
    import_grant(c, "carol", 3600, namespace="news")
    contained = ["setpriv", "--reuid=100033", "--regid=100033", "--clear-groups", "--"]
    dynamic = ["systemd-run", "--quiet", "--wait", "--pipe", "-p", "DynamicUser=yes"]
    cases = [
        ("an app by its uid", become("crm"), SHARED, "alice", "200"),
        ("a uid without a rule", become("other"), SHARED, "alice", "403"),
        ("a member of a group", become("nightly"), SHARED, "alice", "200"),
        ("a uid of a rootless container", contained, SHARED, "alice", "200"),
        ("uid 0", [], SHARED, "alice", "403"),
        ("www-data at the shared socket", become("www-data"), SHARED, "alice", "403"),
        ("www-data's one app", become("www-data"), shop, "alice", "200"),
        ("www-data's other app, in its own namespace", become("www-data"), news, "carol", "200"),
        ("www-data's other app, in the other's", become("www-data"), news, "alice", "404"),
        ("somebody else at an app's socket", become("crm"), shop, "alice", "curl: 7"),
        ("a DynamicUser service in a group", [*dynamic, "-p", "SupplementaryGroups=readers"], SHARED, "alice", "200"),
        ("a DynamicUser service", dynamic, SHARED, "alice", "403"),
        ("an app at the admin socket", become("crm"), ADMIN, "alice", "curl: 7"),
    ]
    for moment in ("before a restart", "after a restart"):
        for what, who, socket, user, wanted in cases:
            expect(f"{what} {moment}", status(c, who, socket, user), wanted)
        expect(f"freshctl of freshd-admin {moment}", c.run(*become("keeper"), "freshctl", "status", check=False).returncode, 0)
        checked = c.run(*become("keeper"), "env", "HOME=/nowhere", "freshctl", "check-config", check=False)
        expect(f"freshctl check-config of freshd-admin {moment}", (checked.returncode, checked.stdout.split()[:2]),
               (0, ["files", "/etc/freshd/freshd.toml"]))
        refused = c.run(*become("other"), "freshctl", "status", check=False)
        expect(f"freshctl of another {moment}", (refused.returncode, refused.stdout), (77, ""))
        if moment == "before a restart":
            c.run("systemctl", "restart", "freshd")


def nobody_is_refused_while_it_restarts_and_is_upgraded(c):
    readers = [Reader(c, SHARED) for _ in range(4)]
    for _ in range(3):
        c.run("systemctl", "restart", "freshd")
    began = time.monotonic()
    before = c.show("freshd", "MainPID")
    c.run("dpkg", "--install", "/opt/freshd.deb")
    print(f"    upgrade: {time.monotonic() - began:.1f} s")
    expect("a new process after the upgrade", c.show("freshd", "MainPID") != before, True)
    told = [reader.end() for reader in readers]
    for one in told:
        print(f"    {one}")
        expect("errors", one["errors"], {})
        expect("statuses", list(one["statuses"]), ["200"])


def another_version_takes_over_under_load_and_an_older_one_refuses_a_newer_store(c):
    c.sh("""
        dpkg-deb --raw-extract /opt/freshd.deb /root/next
        sed -i 's/^Version: .*/Version: 9.0.0-1/' /root/next/DEBIAN/control
        dpkg-deb -Znone --build /root/next /root/next.deb
    """)
    key = c.run("sha256sum", "/etc/freshd/key").stdout
    reader = Reader(c, SHARED)
    for package in ("/root/next.deb", "/opt/freshd.deb"):
        before = c.show("freshd", "MainPID")
        c.run("dpkg", "--force-downgrade", "--install", package)
        expect("a new process", c.show("freshd", "MainPID") != before, True)
    told = reader.end()
    print(f"    {told}")
    expect("errors", told["errors"], {})
    expect("statuses", list(told["statuses"]), ["200"])
    expect("key", c.run("sha256sum", "/etc/freshd/key").stdout, key)
    # A store that a newer version has migrated, and the way back.
    copy = "/var/lib/freshd/before-upgrade.backup"
    sockets = "systemctl stop 'freshd-app@*' freshd.socket freshd-admin.socket freshd"
    c.run("freshctl", "backup", copy)
    migrate = "import sqlite3; sqlite3.connect('/var/lib/freshd/freshd.db').execute('PRAGMA user_version = 99')"
    c.sh(f"{sockets}; python3 -c \"{migrate}\"; chown freshd: /var/lib/freshd/*")
    since = now(c)
    expect("a start", c.run("systemctl", "start", "freshd", check=False).returncode, 1)
    expect("how it ended", c.show("freshd", "ExecMainStatus"), "78")
    expect("why is told", "has version 99 but this freshd knows versions up to" in journal(c, "freshd", since), True)
    c.sh(f"{sockets}; freshctl restore {copy} --replace; systemctl reset-failed freshd; systemctl start freshd; "
         "freshctl release --provider example --all; rm -r /var/lib/freshd/replaced-* /root/next*")
    expect("a read", status(c, become("crm"), SHARED), "200")


def a_client_starts_it_by_the_socket(c):
    c.run("systemctl", "stop", "freshd")
    expect("freshd", c.run("systemctl", "is-active", "freshd", check=False).stdout.strip(), "inactive")
    expect("the first client", status(c, become("crm"), SHARED), "200")
    expect("freshd", c.run("systemctl", "is-active", "freshd").stdout.strip(), "active")


def a_stop_during_a_refresh_loses_nothing(c):
    import_grant(c, "stopped", 3600)
    c.sh("echo 3 >/run/provider/delay")
    asked = c.start("freshctl", "refresh", "stopped", "example")
    within(20, "the request", lambda: "refreshed stopped 1" in c.run("cat", "/var/lib/provider/log").stdout)
    began = time.monotonic()
    c.run("systemctl", "stop", "freshd")
    took = time.monotonic() - began
    c.run("rm", "/run/provider/delay")
    expect("it waited for the answer", took > 1, True)
    expect("how it ended", c.show("freshd", "Result"), "success")
    out, error = asked.communicate(timeout=60)
    expect("who asked was answered", (asked.returncode, error), (0, ""))
    c.run("systemctl", "start", "freshd")
    expect("generation", grant(c, "stopped")["generation"], 2)
    c.run("freshctl", "refresh", "stopped", "example")
    expect("generation", grant(c, "stopped")["generation"], 3)
    expect("refusals", "refused" in c.run("cat", "/var/lib/provider/log").stdout, False)


def after_a_reboot_without_clients_what_is_due_is_refreshed(c):
    import_grant(c, "shortlived", 30)
    first = grant(c, "shortlived")["generation"]
    c.reboot()
    began = time.monotonic()
    # Looked at from the outside: no client comes.
    log = c.root + "/var/lib/provider/log"
    def refreshed():
        with open(log) as file:
            return f"refreshed shortlived {first}" in file.read()
    within(60, "a refresh without a client", refreshed)
    print(f"    refreshed {time.monotonic() - began:.0f} s after the boot")
    expect("the first client", status(c, become("crm"), SHARED, "shortlived"), "200")
    expect("failed units", c.run("systemctl", "--failed", "--no-legend").stdout.strip(), "")


def the_watchdog_restarts_it_when_writer_or_scheduler_hang(c):
    """strace holds single threads at their next system call, while the others go on."""
    c.write("/etc/systemd/system/freshd.service.d/watchdog.conf", "[Service]\nWatchdogSec=6s\n")
    c.sh("systemctl daemon-reload && systemctl restart freshd")
    for thread in ("store-writer", "tokio-rt-worker"):
        pid = c.show("freshd", "MainPID")
        fed = int(c.show("freshd", "WatchdogTimestampMonotonic"))
        within(20, "a healthy daemon feeds it", lambda: int(c.show("freshd", "WatchdogTimestampMonotonic")) > fed)
        expect("the same process", c.show("freshd", "MainPID"), pid)
        since = now(c)
        threads = c.sh(f"grep -l '^{thread[:15]}$' /proc/{pid}/task/*/comm | cut -d/ -f5").stdout.split()
        expect(f"{thread} is there", bool(threads), True)
        attach = [word for tid in threads for word in ("-p", tid)]
        strace = "echo $$ >/tmp/strace; exec strace -q -o /dev/null -e inject=all:delay_enter=600000000 " + " ".join(attach)
        holder = c.start("sh", "-c", strace)
        began = time.monotonic()
        try:
            within(30, "the watchdog", lambda: "Watchdog timeout" in journal(c, "freshd", since))
            took = time.monotonic() - began
        finally:
            # A held thread can't end, and nor can its process.
            c.sh("kill -KILL $(cat /tmp/strace) || true")
            holder.communicate(timeout=30)
        within(30, "another process", lambda: c.show("freshd", "MainPID") not in (pid, "0"))
        print(f"    {thread} ({len(threads)}) held: the watchdog acted after {took:.0f} s")
        within(30, "reads", lambda: status(c, become("crm"), SHARED) == "200")
    c.sh("rm /etc/systemd/system/freshd.service.d/watchdog.conf && systemctl daemon-reload && systemctl restart freshd")


def the_key_and_a_secret_come_by_encrypted_credentials(c):
    c.sh("""
        mkdir -p /etc/credstore.encrypted
        systemd-creds encrypt --with-key=host --name=freshd.key /etc/freshd/key /etc/credstore.encrypted/freshd.key
        systemd-creds encrypt --with-key=host --name=example /etc/freshd/secrets/example /etc/credstore.encrypted/freshd.example
        mv /etc/freshd/key /root/key.elsewhere
        mv /etc/freshd/secrets /root/secrets.elsewhere
    """)
    c.write("/etc/systemd/system/freshd.service.d/zz-encrypted.conf", """[Service]
LoadCredential=
LoadCredentialEncrypted=freshd.key:/etc/credstore.encrypted/freshd.key
LoadCredentialEncrypted=example:/etc/credstore.encrypted/freshd.example
""")
    c.sh("systemctl daemon-reload && systemctl restart freshd")
    c.run("freshctl", "refresh", "alice", "example")
    expect("a read", status(c, become("crm"), SHARED), "200")
    c.run("dpkg", "--install", "/opt/freshd.deb")
    expect("no key beside an encrypted one", c.run("ls", "/etc/freshd/key", check=False).returncode, 2)
    c.sh("""
        mv /root/key.elsewhere /etc/freshd/key; mv /root/secrets.elsewhere /etc/freshd/secrets
        rm -r /etc/credstore.encrypted /etc/systemd/system/freshd.service.d/zz-encrypted.conf
        systemctl daemon-reload; systemctl restart freshd
    """)


INSTANCE = """
[daemon]
state-dir = "/var/lib/freshd-staging"
socket = "/run/freshd-staging/shared/freshd.sock"
admin-socket = "/run/freshd-staging/admin/freshd.sock"
app-socket-dir = "/run/freshd-staging/app"
"""


def an_instance_runs_beside_it(c):
    text = CONFIG.replace("/etc/freshd/", "/etc/freshd-staging/")
    for app in ("shop", "news"):
        text = text.split(f"[app.{app}]")[0]
    c.write("/etc/freshd-staging/freshd.toml", INSTANCE + text)
    c.write("/etc/systemd/system/freshd@staging.service.d/secrets.conf",
            "[Service]\nLoadCredential=example:/etc/freshd-staging/secrets/example\n")
    c.sh("""
        cp /etc/freshd/ca.pem /etc/freshd-staging/; cp -r /etc/freshd/secrets /etc/freshd-staging/
        freshctl key generate /etc/freshd-staging/key
        systemctl daemon-reload
        systemctl enable --now freshd@staging.socket freshd-admin@staging.socket freshd@staging.service
    """)
    config = ("--config", "/etc/freshd-staging/freshd.toml")
    body = json.dumps({"refresh_token": "rt-staged-1"})
    c.run("freshctl", *config, "import", "staged", "example", input=body)
    socket = "/run/freshd-staging/shared/freshd.sock"
    expect("the instance's grant", status(c, become("crm"), socket, "staged"), "200")
    expect("the other's grant", status(c, become("crm"), socket, "alice"), "404")
    expect("the instance's grant at the other", status(c, become("crm"), SHARED, "staged"), "404")
    pid = c.show("freshd@staging", "MainPID")
    seen = c.run("nsenter", "--target", pid, "--mount", "ls", "/var/lib").stdout.split()
    expect("what it sees of /var/lib", seen, ["freshd-staging"])


def wrong_and_missing_keys_make_no_storm_and_one_command_repairs(c):
    """The service has no key, the instance a wrong one; clients try for 60 s, 20 times in a second."""
    staging = "/run/freshd-staging/shared/freshd.sock"
    c.sh("""
        mv /etc/freshd/key /root/key; mv /etc/freshd-staging/key /root/staging-key
        freshctl key generate /etc/freshd-staging/key
        systemctl stop freshd freshd@staging
    """)
    since = now(c)
    units = {"freshd": SHARED, "freshd@staging": staging}
    readers = [Reader(c, socket, "0.05") for socket in units.values()]
    end = time.monotonic() + 60
    time.sleep(max(0, end - time.monotonic()))
    for reader in readers:
        print(f"    {reader.end()}")
    for unit, reason in (("freshd", "/etc/freshd/key"), ("freshd@staging", "key")):
        log = c.run("journalctl", "--no-pager", "-o", "json", "-u", unit, f"--since={since}").stdout.splitlines()
        messages = [json.loads(line) for line in log]
        starts = [m for m in messages if str(m.get("MESSAGE", "")).startswith("Starting ")]
        reasons = [m for m in messages if m.get("FRESHD_EVENT") == "not-started"]
        print(f"    {unit}: {len(starts)} starts; {[r.get('FRESHD_ERROR') for r in reasons[:1]]}")
        expect(f"{unit}: starts", 1 <= len(starts) <= 8, True)
        expect(f"{unit}: the reason is a line", any(reason in str(r.get("FRESHD_ERROR", r)) for r in reasons), True)
    c.sh("mv /root/key /etc/freshd/key; mv -f /root/staging-key /etc/freshd-staging/key; "
         "systemctl restart freshd; systemctl restart freshd@staging")
    expect("a read after the repair", status(c, become("crm"), SHARED), "200")
    expect("an app's socket after the repair", status(c, become("www-data"), "/run/freshd/app/shop/freshd.sock"), "200")
    expect("a read of the instance", status(c, become("crm"), staging, "staged"), "200")


def a_crash_loop_with_clients_is_survived(c):
    """Killed again and again, it comes back each time, however many clients call meanwhile."""
    reader = Reader(c, SHARED, "0.05")
    for _ in range(4):
        pid = within(30, "a process", lambda: (lambda p: p if p != "0" else None)(c.show("freshd", "MainPID")))
        c.sh(f"kill -KILL {pid}")
        within(30, "another process", lambda: c.show("freshd", "MainPID") not in (pid, "0"))
    within(30, "reads", lambda: status(c, become("crm"), SHARED) == "200")
    told = reader.end()
    print(f"    {told}")
    refused = [error for error in told["errors"] if "Refused" in error]
    expect("refused", refused, [])


def a_user_runs_it_without_root(c):
    c.run("loginctl", "enable-linger", "bob")
    within(30, "bob's manager", lambda: os.path.exists(f"/proc/{c.pid}/root/run/user/2004/systemd/private"))
    bob = [*become("bob"), "env", "HOME=/home/bob", "XDG_RUNTIME_DIR=/run/user/2004"]
    c.run(*bob, "sh", "-euc", "mkdir -p ~/.config/freshd && : >~/.config/freshd/freshd.toml")
    c.run(*bob, "systemctl", "--user", "enable", "--now", "freshd.service")
    c.run(*bob, "freshctl", "status")
    c.run(*bob, "systemctl", "--user", "disable", "--now", "freshd.service")
    c.run("loginctl", "disable-linger", "bob")


def a_purge_leaves_what_it_says(c):
    c.sh("systemctl disable --now freshd@staging.service freshd@staging.socket freshd-admin@staging.socket")
    c.run("dpkg", "--remove", "freshd")
    expect("the key stays at a removal", c.run("ls", "/etc/freshd/key").returncode, 0)
    expect("the store too", c.run("ls", "/var/lib/freshd").stdout != "", True)
    expect("the sockets don't", c.run("ls", SHARED, check=False).returncode, 2)
    said = c.run("dpkg", "--purge", "freshd").stdout
    left = c.sh("find / -xdev \\( -path /proc -o -path /sys -o -path /opt \\) -prune -o -name '*freshd*' -print").stdout.split()
    # What others keep: the user's own files, the journal, man's cache.
    found = [path for path in left if not path.startswith(("/home/bob/", "/var/log/journal/", "/var/cache/man/"))]
    told = {line.removeprefix("freshd: left ") for line in said.splitlines() if line.startswith("freshd: left /")}
    unsaid = [path for path in found if not any(
        above in told for above in (path, os.path.dirname(path), os.path.dirname(os.path.dirname(path))))]
    print("    " + said.replace("\n", "\n    ").strip())
    expect("left and not told", unsaid, [])
    expect("told and not left", [path for path in told if not os.path.lexists(c.root + path)], [])
    expect("a unit's link is told", [path for path in told if ".wants/freshd-app@" in path] != [], True)
    c.run("getent", "passwd", "freshd")


CHECKS = [
    the_package_makes_user_groups_and_key_and_starts_service_and_sockets,
    installing_again_never_touches_the_key,
    the_units_are_clean_and_closed,
    a_refresh_over_tls_works_in_the_sandbox_and_the_status_tells_it,
    a_reload_is_told_and_the_status_comes_back,
    peers_get_what_their_rules_say,
    nobody_is_refused_while_it_restarts_and_is_upgraded,
    another_version_takes_over_under_load_and_an_older_one_refuses_a_newer_store,
    a_client_starts_it_by_the_socket,
    a_stop_during_a_refresh_loses_nothing,
    the_watchdog_restarts_it_when_writer_or_scheduler_hang,
    the_key_and_a_secret_come_by_encrypted_credentials,
    a_user_runs_it_without_root,
    an_instance_runs_beside_it,
    a_crash_loop_with_clients_is_survived,
    wrong_and_missing_keys_make_no_storm_and_one_command_repairs,
    after_a_reboot_without_clients_what_is_due_is_refreshed,
    a_purge_leaves_what_it_says,
]


def main():
    base, root, package = sys.argv[1:]
    c = Container(base, root)
    for name in ("provider.py", "reader.py"):
        with open(os.path.join(HERE, name)) as file:
            c.write(f"/opt/{name}", file.read())
    with open(package, "rb") as source, open(root + "/opt/freshd.deb", "wb") as target:
        target.write(source.read())
    failed, done = [], 0
    try:
        c.boot()
        only = os.environ.get("ONLY", "").split(",")
        for check in CHECKS:
            if check not in CHECKS[:4] and not any(word in check.__name__ for word in only):
                continue
            done += 1
            began = time.monotonic()
            name = check.__name__.replace("_", " ")
            try:
                check(c)
                print(f"  ok   {time.monotonic() - began:5.1f} s  {name}", flush=True)
            except (Failed, OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
                failed.append(name)
                print(f"  FAIL {time.monotonic() - began:5.1f} s  {name}\n{error}", flush=True)
                print(c.run("journalctl", "--no-pager", "-n", "40", "-o", "short-monotonic", check=False).stdout, flush=True)
                if os.environ.get("FAIL_FAST") or len(failed) > 3:
                    break
    finally:
        c.stop()
    print(f"tests/systemd: {len(failed)} of {done} failed" if failed else f"tests/systemd: {done} of {len(CHECKS)} checks ran and passed")
    sys.exit(1 if failed else 0)


main()
