"""Which Chromium or Chrome this machine has. `python3 tests/e2e/browser.py` prints it, or why there is none."""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ELSEWHERE = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)


class NoBrowserError(Exception):
    """There is none; the message says where was looked, and what to do."""


def find_browser(environ: Mapping[str, str] = os.environ) -> str:
    """Return the browser that CHROME names, else the first that is installed.

    Raises:
        NoBrowserError: CHROME names none, or none is installed.
    """
    if chosen := environ.get("CHROME"):
        if found := shutil.which(chosen, path=environ.get("PATH")):
            return found
        raise NoBrowserError(f"CHROME={chosen} is no program. The UIs were not tested. Name a Chromium or Chrome, or unset CHROME.")
    installed = [shutil.which(name, path=environ.get("PATH")) for name in NAMES]
    installed += [path for path in ELSEWHERE if Path(path).exists()]
    for found in installed:
        if found:
            return found
    raise NoBrowserError(
        f"No Chromium or Chrome: none of {', '.join(NAMES)} is on PATH, and CHROME names none. The UIs were not tested. "
        "On Debian: apt-get install -y chromium."
    )


if __name__ == "__main__":
    try:
        print(find_browser())
    except NoBrowserError as error:
        sys.exit(str(error))
