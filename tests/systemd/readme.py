"""Does what README.md says, as one who reads it would: in a fresh Debian, each block of commands in its order.

readme.py BASE ROOT PACKAGE README: copies the image BASE to ROOT, boots it with PACKAGE in /root, and goes through
SECTIONS. A block marked `sh` is run as root by bash, in /root; blocks marked otherwise are only there to be read. Where a
block marked `text` follows, each of its lines must be among what was printed, in that order; `…` stands for anything,
and a point in time for any other. Where the paragraph before says "Wait", a block is tried again until that holds.
"""

import os
import re
import shutil
import sys
import time

from container import Container, Failed, within

SECTIONS = [
    "Ten minutes: a service and an app",
    "Shell",
    "A socket of its own",
    "When there is no token",
    "Needs authorization",
    "When it does not start",
    "Secrets",
    "Upgrading",
    "Metrics",
    "Instances",
    "Backing up",
    "Another key",
    "A recovery key",
    "Move to another host",
]
PATIENCE = 90


def sections(readme):
    """The text of each section, by its heading, at whatever level."""
    parts = re.split(r"^#{2,4} (.*)$", readme, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def blocks(section):
    """The commands of a section: the paragraph before, the commands, and the lines that they should print."""
    found, before, last = [], "", None
    for part in re.split(r"^(```\w+\n.*?^```)$", section, flags=re.MULTILINE | re.DOTALL):
        if not part.startswith("```"):
            before = part.strip().rsplit("\n\n", 1)[-1]
            last = last if not before else None
            continue
        language, _, body = part.removeprefix("```").removesuffix("```").partition("\n")
        if language == "sh":
            last = [before, body, []]
            found.append(last)
        elif language == "text" and last:
            last[2] = [line for line in body.splitlines() if line.strip()]
    return found


def pattern(line):
    """What a line that was printed looks like when it says this one."""
    stamp = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?Z?"
    words = re.sub(stamp, "\0", " ".join(line.split()))
    return re.escape(words).replace("\0", stamp).replace("…", ".*")


def missing(lines, printed):
    """The first line that was not printed after those before it; None if all were."""
    rest = iter(" ".join(line.split()) for line in printed.splitlines())
    for line in lines:
        wanted = re.compile(pattern(line))
        if not any(wanted.fullmatch(one) for one in rest):
            return line
    return None


def do(c, before, commands, lines):
    # Who reads takes longer than systemd's limit of five starts in 10 s.
    c.run("systemctl", "reset-failed", "freshd.service", check=False)
    end = time.monotonic() + (PATIENCE if "Wait" in before else 0)
    while True:
        done = c.run("bash", "-euo", "pipefail", "-c", f"cd /root\n{commands}", check=False)
        printed = done.stdout + done.stderr
        wrong = f"exit code {done.returncode}" if done.returncode else None
        line = missing(lines, printed)
        if line is not None:
            wrong = wrong or f"this was not printed: {line}"
        if wrong is None:
            return printed
        if time.monotonic() > end:
            raise Failed(f"{wrong}\n--- commands\n{commands}--- printed\n{printed}")
        time.sleep(1)


def main():
    base, root, package, path = sys.argv[1:]
    with open(path) as file:
        found = sections(file.read())
    c = Container(base, root)
    shutil.copy(package, root + "/root/")
    failed = False
    try:
        c.boot()
        for name in SECTIONS:
            began = time.monotonic()
            steps = blocks(found[name])
            for step in steps:
                printed = do(c, *step)
                if os.environ.get("SHOW"):
                    print("".join(f"# {line}\n" for line in step[1].splitlines()) + printed, flush=True)
            print(f"  ok   {time.monotonic() - began:5.1f} s  {name} ({len(steps)} blocks)", flush=True)
    except (Failed, KeyError) as error:
        failed = True
        print(f"  FAIL {name}: {error}", flush=True)
        print(c.run("journalctl", "--no-pager", "-n", "40", "-o", "short-monotonic", check=False).stdout, flush=True)
    finally:
        c.stop()
    print("tests/systemd: README.md FAILED" if failed else "tests/systemd: README.md does what it says")
    sys.exit(failed)


main()
