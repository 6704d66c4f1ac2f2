"""Chromium without a window and without a network, and a static file server; Node with transformers.js."""

import contextlib
import functools
import http.server
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

# Where `npm install --ignore-scripts @huggingface/transformers` was run; `.ci/packages` does it.
ASSETS = Path(os.environ.get("ALGPT2_NODE_PACKAGES", Path.home() / ".cache" / "algpt2" / "node"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
TRANSFORMERS_JS = ASSETS / "node_modules" / "@huggingface" / "transformers"


@contextlib.contextmanager
def chromium(width=1000, height=900, dark=False):
    """A selenium driver of a browser that reaches this machine alone; skips the test where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    if binary is None or shutil.which("chromedriver") is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        yield driver
    finally:
        driver.quit()


def wait(driver, condition, seconds=60):
    """Wait until a function without arguments is true; returns its value."""
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(driver, seconds, poll_frequency=0.05).until(lambda _: condition())


@contextlib.contextmanager
def static_server(directory):
    """The address of a server of files alone, and the list of the paths that were asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *arguments):
            asked.append(self.path)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(directory)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def require_npm_packages():
    """Skip the test where transformers.js is not installed."""
    if not TRANSFORMERS_JS.is_dir():
        pytest.skip(f"transformers.js is not in {ASSETS}, as ALGPT2_NODE_PACKAGES names it")


def node(code, *arguments):
    """What JavaScript prints that imports packages of npm; skips the test where Node or they are missing."""
    require_npm_packages()
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    command = ["node", "--input-type=module", "--eval", code, "--", *map(str, arguments)]
    result = subprocess.run(command, cwd=ASSETS, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout
