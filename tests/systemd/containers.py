"""Builds config/containers' image from the package, and runs compose.yaml's two containers by podman.

containers.py BASE WORK PACKAGE: the image BASE, a Debian's root directory, stands in for Debian's and Python's images. What
compose.yaml says is handed to podman, but for the health check's timer, which wants a systemd, and the networks, which
this machine may not make. Says in capitals that it was skipped where podman can't run here.
"""

import os
import re
import shutil
import subprocess
import sys

from container import Failed, within

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CONTAINERS = os.path.join(REPOSITORY, "config/containers")
CONFIG = """
[provider.hubspot]
profile = "hubspot"
client-id = "my-app"
client-secret = { credential = "hubspot" }
token-endpoint = "%s/oauth/2026-03/token"

[app.crm]
socket = true
providers = ["hubspot"]
may = ["read"]
"""


def skip(why):
    print(f"tests/systemd: SKIPPED: {why}\ntests/systemd: NOTHING ABOUT CONTAINER IMAGES WAS TESTED", flush=True)
    sys.exit(69 if os.environ.get("FRESHD_SYSTEMD_TESTS") == "require" else 0)


class Podman:
    def __init__(self, work):
        # Storage of its own: nothing of it stays among the machine's images.
        self.before = ["podman", "--root", work + "/storage", "--runroot", work + "/run", "--cgroup-manager=cgroupfs"]

    def __call__(self, *command, check=True, input=None, timeout=300):
        done = subprocess.run([*self.before, *command], text=True, input=input, capture_output=True, timeout=timeout)
        if check and done.returncode:
            raise Failed(f"podman {' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def logs(self, name):
        done = self("logs", name, check=False)
        return done.stdout + done.stderr


def limits():
    """Below what we have ourselves: podman's own limits are higher than a process in a container may set."""
    return ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000"]


def prepare(podman, base):
    """An image of BASE, and a podman that can run it; or the reason why there is none."""
    tar = subprocess.Popen(["tar", "-C", base, "-c", "."], stdout=subprocess.PIPE)
    done = subprocess.run([*podman.before, "import", "-q", "-", "localhost/base"], stdin=tar.stdout, capture_output=True, text=True)
    tar.wait()
    if done.returncode:
        return done.stderr.strip()
    for runtime in ("crun", "runc"):
        trial = [*podman.before, "--runtime", runtime]
        done = subprocess.run([*trial, "run", "--rm", "--network=host", *limits(), "localhost/base", "true"],
                              capture_output=True, text=True)
        if done.returncode == 0:
            podman.before = trial
            return None
    return done.stderr.strip()


def run(podman, name, compose, where, image, *more):
    """Starts a service as compose.yaml says it."""
    service = compose["services"][name]
    options = [f"--name={name}", "--detach", "--network=host", *limits()]
    options += ["--read-only"] if service.get("read_only") else []
    options += [f"--cap-drop={one}" for one in service.get("cap_drop", [])]
    options += [f"--security-opt={one.removesuffix(':true')}" for one in service.get("security_opt", [])]
    options += [f"--ulimit={key}={value}" for key, value in service.get("ulimits", {}).items()]
    options += [f"--user={service['user']}"] if "user" in service else []
    options += [f"--env={key}={value}" for key, value in service.get("environment", {}).items()]
    options += [f"--volume={os.path.join(where, one) if one.startswith('./') else one}" for one in service["volumes"]]
    for secret in service.get("secrets", []):
        file = os.path.join(where, compose["secrets"][secret["source"]]["file"])
        options.append(f"--volume={file}:{secret['target']}:ro")
    podman("run", *options, *more, image, *service.get("command", []))


def deploy(podman, where, provider):
    """The files beside compose.yaml, as README.md and its head say."""
    for name in ("etc", "secrets", "crm"):
        os.makedirs(f"{where}/{name}")
    with open(where + "/etc/freshd.toml", "w") as file:
        file.write(CONFIG % provider)
    shutil.copy(f"{REPOSITORY}/config/examples/freshd.py", where + "/crm/")
    with open(REPOSITORY + "/README.md") as readme, open(where + "/crm/crm.py", "w") as file:
        file.write(re.search(r"crm\.py <<'EOF'\n(.*?)^EOF", readme.read(), re.DOTALL | re.MULTILINE)[1])
    podman("run", "--rm", "--network=host", *limits(), "--user=0", f"--volume={where}/secrets:/secrets",
           "--entrypoint=freshctl", "freshd", "key", "generate", "/secrets/freshd.key")
    with open(where + "/secrets/hubspot", "w") as file:
        file.write("my-secret")
    for name in ("freshd.key", "hubspot"):
        os.chown(f"{where}/secrets/{name}", 990, 990)
        os.chmod(f"{where}/secrets/{name}", 0o400)


def check(podman, base, where, package, provider, compose):
    shutil.copy(package, where + "/package/")
    podman("build", "--isolation=chroot", "--build-arg=BASE=localhost/base", "--tag=freshd",
           f"--file={CONTAINERS}/Containerfile", where + "/package", timeout=600)
    deploy(podman, where, provider)
    for name, volume in compose["volumes"].items():
        options = [f"--opt={key}={value}" for key, value in (volume or {}).get("driver_opts", {}).items()]
        podman("volume", "create", *options, name)
    # The app first: it finds an empty directory, and goes on when there is a socket in it.
    run(podman, "crm", compose, where, "localhost/base", f"--env=API={provider}")
    run(podman, "freshd", compose, where, "freshd")
    within(30, "the app reaches freshd", lambda: "please connect HubSpot" in podman.logs("crm"))
    health = compose["services"]["freshd"]["healthcheck"]["test"]
    podman("exec", "freshd", *health[1:])
    login = subprocess.run(["curl", "-sS", "-X", "POST", provider + "/login"], capture_output=True, text=True, check=True)
    podman("exec", "-i", "freshd", "freshctl", "import", "42", "hubspot", input=login.stdout)
    within(30, "the app has a token", lambda: podman.logs("crm").rstrip().endswith('"Ada"}}]}'))
    seen = podman("exec", "crm", "ls", "/run/freshd").stdout.split()
    if seen != ["freshd.sock"]:
        raise Failed(f"the app sees {seen}")
    if podman("exec", "--user=1001:1001", "crm", "ls", "/run/freshd", check=False).returncode == 0:
        raise Failed("another user of the app's container gets at its socket")
    podman("kill", "--signal=HUP", "freshd")
    within(20, "a reload", lambda: "reloaded" in podman.logs("freshd"))
    podman("stop", f"--time={compose['services']['freshd']['stop_grace_period'].removesuffix('s')}", "freshd")
    code = podman("inspect", "--format={{.State.ExitCode}}", "freshd").stdout.strip()
    if code != "0" or " stopped" not in podman.logs("freshd"):
        raise Failed(f"stopped with {code}")
    within(60, "the app notices", lambda: podman.logs("crm").rstrip().splitlines()[-1].startswith("not now"))
    podman("start", "freshd")
    within(30, "the app goes on", lambda: podman.logs("crm").rstrip().endswith('"Ada"}}]}'))
    podman("stop", "freshd")
    os.remove(where + "/secrets/freshd.key")
    os.mkdir(where + "/secrets/freshd.key")    # what docker makes of a file that is not there
    podman("start", "freshd")
    code = podman("wait", "freshd").stdout.strip()
    if code != "78" or "freshd.key" not in podman.logs("freshd").splitlines()[-1]:
        raise Failed(f"without a key: {code}, {podman.logs('freshd').splitlines()[-1:]}")


def main():
    base, work, package = sys.argv[1:]
    if shutil.which("podman") is None:
        skip("there is no podman")
    try:
        import yaml
    except ImportError:
        skip("there is no python3-yaml")
    with open(CONTAINERS + "/compose.yaml") as file:
        compose = yaml.safe_load(file)
    shutil.rmtree(work, ignore_errors=True)
    os.makedirs(work + "/deploy/package")
    podman = Podman(work)
    failed, provider = False, None
    try:
        why = prepare(podman, base)
        if why:
            skip(f"podman can't run here: {why}")
        provider = subprocess.Popen([sys.executable, REPOSITORY + "/config/examples/stand-in.py", "0"], text=True,
                                    stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        check(podman, base, work + "/deploy", package, provider.stdout.readline().strip(), compose)
    except Failed as error:
        failed = True
        print(f"  FAIL containers: {error}\n--- freshd\n{podman.logs('freshd')}--- crm\n{podman.logs('crm')}", flush=True)
    finally:
        if provider:
            provider.terminate()
        podman("rm", "--all", "--force", "--time=2", check=False)
        podman("volume", "rm", "--all", "--force", check=False)
        podman("rmi", "--all", "--force", check=False)
        shutil.rmtree(work, ignore_errors=True)
    print("tests/systemd: config/containers FAILED" if failed else "tests/systemd: config/containers does what it says")
    sys.exit(failed)


main()
