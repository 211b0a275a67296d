"""Makes figures/browser.jpg, the page while it plays the bundled clip.

pip install selenium
python docs/vendor.py
python docs/make_screenshot.py
"""

import base64
import functools
import http.server
import shutil
import threading
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,1000")
SIZE = {"x": 0, "y": 0, "width": 1280, "height": 800, "scale": 1}  # Pixels; the text below is left out.


def main():
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=ROOT / "docs")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in FLAGS:
        options.add_argument(flag)
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))) as driver:
        driver.get(f"http://127.0.0.1:{server.server_port}/index.html")
        driver.find_element(By.ID, "clip").click()
        faces = driver.find_element(By.ID, "faces")
        WebDriverWait(driver, 60, poll_frequency=0.1).until(lambda driver: "Face 2" in faces.text)
        options = {"format": "jpeg", "quality": 88, "clip": SIZE}
        image = driver.execute_cdp_cmd("Page.captureScreenshot", options)["data"]
    (ROOT / "figures" / "browser.jpg").write_bytes(base64.b64decode(image))


if __name__ == "__main__":
    main()
