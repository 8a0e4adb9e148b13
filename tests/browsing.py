"""A browser without a window, where one is installed."""

import re
import shutil
import subprocess

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MAX_CODE_COLUMNS = 119
"""Longest line of code of the site, which fits a screen of 1280 pixels."""
FLAGS = (
    "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    "disable-component-update disable-sync hide-scrollbars dump-dom enable-logging=stderr"
)


def opened(address, profile, *flags, timeout=60):
    """The document that a browser makes of a page, and what its console says."""
    done = subprocess.run(
        [
            BROWSER,
            *(f"--{flag}" for flag in (*FLAGS.split(), *flags)),
            f"--user-data-dir={profile}",
            address,
        ],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=True,
    )
    assert "</html>" in done.stdout
    return done.stdout, re.findall(r'CONSOLE[^"]*"([^"]*)"', done.stderr)
