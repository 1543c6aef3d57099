"""A real browser for tests: Debian's Chromium, driven by Playwright; `make browser` installs both."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--mute-audio"]  # without a sound device a film would stall
WIDE, PHONE = {"width": 1400, "height": 900}, {"width": 390, "height": 844}

# Texts whose contrast to what lies behind them is below WCAG's AA: 4.5, or 3 from 24 px (18.66 px bold) on. Colours are
# drawn on a canvas to read them in any notation; translucent grounds are laid on what is behind them.
CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const over = (top, below) => top.slice(0, 3).map((v, i) => v * top[3] + below[i] * (1 - top[3]));
  const ground = element => {
    if (!element) return [255, 255, 255];
    const style = getComputedStyle(element), own = rgba(style.backgroundColor);
    return own[3] === 1 ? own.slice(0, 3) : over(own, ground(element.parentElement));
  };
  const light = rgb => rgb.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const low = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    if (element.closest("script, style, [disabled], .hidden, title")) continue;
    const style = getComputedStyle(element), inDrawing = element.closest("svg");
    const behind = ground(element), shown = over(rgba(inDrawing ? style.fill : style.color), behind);
    const [a, b] = [light(shown), light(behind)].sort((x, y) => y - x), ratio = (a + 0.05) / (b + 0.05);
    const size = parseFloat(style.fontSize), large = size >= 24 || size >= 18.66 && style.fontWeight >= 700;
    if (ratio < (large ? 3 : 4.5)) low.push(`${ratio.toFixed(2)} ${node.data.trim().slice(0, 40)}`);
  }
  return low;
}"""


@contextmanager
def browser() -> Iterator[Any]:
    """A running Chromium; the test is skipped where it or Playwright is not installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: make browser")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("Chromium is not installed: make browser")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=program, args=FLAGS)
        try:
            yield running
        finally:
            running.close()


def low_contrast(page: Any) -> list[str]:
    """The page's texts with too little contrast, with their ratio in front."""
    return list(page.evaluate(CONTRAST))


def scrolls_sideways(page: Any) -> bool:
    """Whether the whole page can be moved sideways."""
    return bool(page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))
