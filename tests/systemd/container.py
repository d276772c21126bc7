"""A Debian with systemd of its own in a container, and commands in it."""

import os
import shutil
import signal
import subprocess
import time
import uuid


class Failed(Exception):
    pass


def within(seconds, what, look):
    """Looks again and again until there is something to see, and returns it."""
    end = time.monotonic() + seconds
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > end:
            raise Failed(f"waited {seconds} s for {what}")
        time.sleep(0.2)


class Container:
    def __init__(self, base, root):
        self.root = root
        self.nspawn = None
        shutil.rmtree(root, ignore_errors=True)
        subprocess.run(["cp", "-a", "--reflink=auto", base, root], check=True)
        self.write("/etc/hostname", "freshd-test\n")
        # There from the beginning: this is no first boot, which would ask questions and enable services.
        self.write("/etc/machine-id", uuid.uuid4().hex + "\n")
        # There is nothing to wait for but loopback.
        os.symlink("/dev/null", root + "/etc/systemd/system/systemd-networkd-wait-online.service")

    def write(self, path, text, mode=0o644):
        """Writes a file below the root; /run and /tmp have file systems of their own from the boot on."""
        full = self.root + path
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "w") as file:
            file.write(text)
        os.chmod(full, mode)

    def boot(self):
        self.console = open(self.root + ".console", "ab")
        # Without --register and with --keep-unit it needs no machined and no systemd outside. Without a network but
        # loopback, ports are its own.
        self.nspawn = subprocess.Popen(
            ["systemd-nspawn", "--quiet", "--directory", self.root, "--register=no", "--keep-unit", "--private-network",
             "--boot", "--console=pipe", "--kill-signal=SIGRTMIN+3"],
            stdin=subprocess.DEVNULL, stdout=self.console, stderr=self.console, start_new_session=True)
        self.pid = within(30, "the container's first process", self.first_process)
        within(60, "the boot", self.booted)

    def first_process(self):
        if self.nspawn.poll() is not None:
            with open(self.root + ".console", errors="replace") as console:
                raise Failed("the container ended at its start: " + console.read()[-2000:])
        with open(f"/proc/{self.nspawn.pid}/task/{self.nspawn.pid}/children") as children:
            pids = children.read().split()
        for pid in pids:
            # nspawn's helper becomes systemd by exec; before that its namespaces are not whole.
            with open(f"/proc/{pid}/comm") as comm:
                if comm.read().strip() == "systemd":
                    return int(pid)

    def booted(self):
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded")

    def run(self, *command, check=True, input=None, timeout=120):
        done = subprocess.run(
            ["nsenter", "--target", str(self.pid), "--all", "--wdns=/", *command], text=True, input=input,
            capture_output=True, timeout=timeout,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"})
        if check and done.returncode:
            raise Failed(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def sh(self, script, **options):
        return self.run("sh", "-euc", script, **options)

    def start(self, *command):
        """A command that goes on meanwhile."""
        return subprocess.Popen(
            ["nsenter", "--target", str(self.pid), "--all", "--wdns=/", *command], text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE)

    def show(self, unit, name):
        return self.run("systemctl", "show", "--value", "-p", name, unit).stdout.strip()

    def stop(self):
        """Shuts down as a machine does; whatever is left is ended by its process id."""
        if self.nspawn is None or self.nspawn.poll() is not None:
            return
        self.run("systemctl", "poweroff", check=False)
        try:
            self.nspawn.wait(timeout=120)
        except subprocess.TimeoutExpired:
            self.nspawn.send_signal(signal.SIGKILL)
            self.nspawn.wait()

    def reboot(self):
        self.stop()
        self.boot()
