"""Where the browser for the browser tests is. As a script: says in a clear word whether they will run."""

import os
import shutil
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def executable() -> str | None:
    """Path of the first browser found."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


if __name__ == "__main__":
    if chromium := executable():
        print(f"browser tests run in {chromium}")
    elif os.environ.get("LOOPSCOPE_REQUIRE_BROWSER"):
        sys.exit(f"no browser found ({', '.join(NAMES)}) although this run requires the browser tests")
    else:
        print("SKIPPING THE BROWSER TESTS: no browser found; install chromium to run them")
