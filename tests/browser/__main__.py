"""Open every notebook in JupyterLab in headless Chromium, run all cells, and print what a person would see.

    python -m pip install selenium; python tests/browser [NOTEBOOK ...]

Needs Debian's chromium and chromium-driver. The notebooks run in place, as a user runs them, so use a fresh clone. For
each one a row: code cells, cells with an error, pictures, pictures that the page shows, seconds. Exit status 1 where
there is an error or a picture is missing. Screenshots go to a temporary folder that is named at the end.
"""

import argparse
import json
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

ROOT = Path(__file__).parents[2]
PORT = 8899
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000", "--no-first-run")
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic")
RUN = """
const path = arguments[0], app = window.jupyterapp;
window.failed = null;  // until all cells have run: the browser's own calls end after two minutes
app.commands.execute('docmanager:open', {path: path}).then(async widget => {
  await widget.context.ready; await widget.sessionContext.ready;
  await app.commands.execute('notebook:run-all-cells');
  await app.commands.execute('docmanager:save');
  window.failed = '';
}).catch(error => { window.failed = String(error); });
"""
SHOWN = """
const images = [...document.querySelectorAll('.jp-OutputArea-output img')];
return images.filter(image => image.complete && image.naturalWidth > 0).map(image => image.src);
"""
SCROLL = (
    "document.querySelectorAll('.jp-WindowedPanel-outer').forEach(e => e.scrollTop = e.scrollHeight * arguments[0])"
)
CLOSE = "window.jupyterapp.commands.execute('application:close-all').finally(() => arguments[0]())"
LAB = ("lab", "notebooks", "--no-browser", "--allow-root", "--expose-app-in-browser", "--LabApp.news_url=None")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
    parser.add_argument("notebooks", nargs="*", default=names)
    notebooks = parser.parse_args().notebooks
    token, folder = secrets.token_hex(8), Path(tempfile.mkdtemp(prefix="notebooks-"))
    lab = [sys.executable, "-m", "jupyter", *LAB, f"--port={PORT}", f"--IdentityProvider.token={token}"]
    server = subprocess.Popen(lab, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        driver = open_lab(token)
        rows = [look_at(driver, name, folder) for name in notebooks]
        driver.quit()
    finally:
        server.terminate()
    print(f"screenshots: {folder}")
    return int(any(errors or shown < pictures for errors, pictures, shown in rows))


def open_lab(token: str) -> webdriver.Chrome:
    """Return a browser in which JupyterLab is ready."""
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, *QUIET, f"--user-data-dir={tempfile.mkdtemp()}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, Service("/usr/bin/chromedriver"))
    for _ in range(60):
        try:
            driver.get(f"http://localhost:{PORT}/lab?token={token}&reset")
            if driver.execute_script("return Boolean(window.jupyterapp && window.jupyterapp.restored)"):
                driver.execute_async_script("window.jupyterapp.restored.then(() => arguments[0]())")
                return driver
        except Exception as error:  # the server is not up yet
            reason = error
        time.sleep(2)
    raise RuntimeError(f"JupyterLab does not come up: {reason}")


def look_at(driver: webdriver.Chrome, name: str, folder: Path) -> tuple[int, int, int]:
    """Run a notebook in the browser, print its row, and return its errors, its pictures and those that are shown."""
    start = time.monotonic()
    driver.execute_script(RUN, name)
    while (failed := driver.execute_script("return window.failed")) is None:
        time.sleep(1)
    seconds = time.monotonic() - start
    cells = [c for c in json.loads((ROOT / "notebooks" / name).read_text())["cells"] if c["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    errors = sum(output["output_type"] == "error" for output in outputs) + bool(failed)
    pictures = len({output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})})
    shown, places = set(), max(2 * len(cells), 1)
    for place in range(places + 1):  # the page holds what is near the window alone
        driver.execute_script(SCROLL, place / places)
        time.sleep(0.3)
        shown |= set(driver.execute_script(SHOWN))
        if place in (0, places // 2, places):
            driver.save_screenshot(str(folder / f"{Path(name).stem}-{place}.png"))
    found = f"{errors:2} errors {pictures:3} pictures {len(shown):3} shown"
    print(f"{name:24} {len(cells):3} cells {found} {seconds:6.0f} s {failed}", flush=True)
    driver.execute_async_script(CLOSE)
    return errors, pictures, len(shown)


if __name__ == "__main__":
    sys.exit(main())
