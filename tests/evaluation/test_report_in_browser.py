"""The run report in a real browser: it plays, filters, fits a phone, and can be read."""

import pytest
from browser import PHONE, WIDE, browser, low_contrast, scrolls_sideways
from synthetic_run import write_run

from mer_r1.evaluation.report import write_report

PATIENCE = 300_000  # milliseconds; a busy machine may be slow


@pytest.fixture(scope="module")
def chromium():
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def report(chromium, tmp_path_factory):  # which skips before the page is written
    return write_report(write_run(tmp_path_factory.mktemp("run"), clips=60))


@pytest.fixture
def opened(report, chromium, request):
    view, scheme = getattr(request, "param", (WIDE, "light"))
    context = chromium.new_context(viewport=view, color_scheme=scheme)
    context.set_default_timeout(PATIENCE)
    shown, asked, said = context.new_page(), [], []
    shown.on("request", lambda sent: asked.append(sent.url))
    shown.on("console", lambda message: said.append(message.text))
    shown.goto(report.as_uri())
    yield shown
    context.close()
    assert [url for url in asked if not url.startswith(("data:", report.as_uri()))] == []
    assert said == []


def until(shown, condition: str) -> None:
    """Wait for a condition, in JavaScript; Playwright's own waiting evaluates text, which the page's policy forbids."""
    for _ in range(PATIENCE // 100):
        if shown.evaluate(condition):
            return
        shown.wait_for_timeout(100)
    raise AssertionError(condition)


LOOKS = [(WIDE, "light"), (WIDE, "dark"), (PHONE, "light"), (PHONE, "dark")]


@pytest.mark.parametrize("opened", LOOKS, indirect=True, ids=["wide", "wide dark", "phone", "phone dark"])
def test_it_can_be_read_and_does_not_scroll_sideways(opened):
    assert not scrolls_sideways(opened)
    assert low_contrast(opened) == []


def test_the_example_plays(opened):
    until(opened, "document.querySelector('video').currentTime > 0.1")
    assert opened.locator("#example video").evaluate("film => film.muted && film.videoWidth > 0")


def test_the_contents_lead_to_their_sections(opened):
    opened.get_by_role("navigation", name="Contents").get_by_role("link", name="All records").focus()
    opened.keyboard.press("Enter")
    until(opened, "location.hash === '#records' && scrollY > 500")


def test_the_filters_hide_all_other_records(opened):
    records = opened.locator(".rec:visible")
    assert records.count() == 60 * 4
    opened.locator("#by-mode").select_option("slow")
    assert records.count() == 60 * 2
    opened.locator("#by-stage").select_option("MER-R1")
    assert records.count() == 60
    opened.locator("#by-right").select_option("F1 is 1")
    right = records.count()
    assert 0 < right < 60
    assert all("F1 1.00" in text for text in records.all_inner_texts())
    opened.locator("#by-right").select_option("")
    word = opened.locator("#by-word option").nth(1).inner_text()
    opened.locator("#by-word").select_option(word)
    assert 0 < records.count() < 60
    assert all(word in text.split("gold ")[1] for text in records.all_inner_texts())
