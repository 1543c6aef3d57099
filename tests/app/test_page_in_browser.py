"""The page in a real browser: ask about a built-in scene, a broken file, by keyboard, on a phone."""

import json
import urllib.request

import pytest
from browser import PHONE, WIDE, browser, low_contrast, scrolls_sideways

from mer_r1.app import page, serve
from mer_r1.app.ask import InProcess
from mer_r1.data.media.speech import Transcriber
from mer_r1.emotions.wheels import builtin
from mer_r1.model.generation import Sampling
from mer_r1.weights import NOTICE, POLICY

PATIENCE = 300_000  # milliseconds; a busy machine may be slow
SUBTITLE = "We used to swim by the lake every summer."


@pytest.fixture(scope="module")
def chromium():
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def address(chromium):  # which skips before the model is loaded
    pytest.importorskip("gradio", reason="Gradio is not installed: the extra app")
    with serve.without_traces() as folder:
        source = InProcess(POLICY, builtin(), Sampling(96, 0.0, seed=0), None, {})
        ear = Transcriber("ear 1", lambda _: SUBTITLE)
        settings = page.Settings(source, builtin(), folder, NOTICE, transcriber=ear, segment="1")
        with serve.served(settings, most_megabytes=1) as found:
            yield found


@pytest.fixture
def opened(address, chromium, request):
    """A fresh page of the wanted size; it asks no other machine for anything, and logs no error."""
    view = getattr(request, "param", WIDE)
    context = chromium.new_context(viewport=view, accept_downloads=True)
    context.set_default_timeout(PATIENCE)
    shown = context.new_page()
    asked, errors = [], []
    shown.on("request", lambda sent: asked.append(sent.url))
    shown.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    shown.goto(address)
    shown.locator("#ask").wait_for()
    yield shown
    elsewhere = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    context.close()
    assert elsewhere == []
    assert errors == []


def ask(shown) -> None:
    shown.locator("#ask").click()
    shown.get_by_role("heading", name="On the wheels").wait_for()


@pytest.mark.parametrize("opened", [WIDE, PHONE], indirect=True, ids=["wide", "phone"])
def test_an_uploaded_scene_gets_both_answers_while_they_are_written(opened, tmp_path):
    assert "knows generated faces and voices only" in opened.locator("#head").inner_text()
    opened.locator("#video input[type=file]").first.set_input_files(page.SCENES / "test-000004.mp4")
    opened.locator("#video video").wait_for()
    opened.get_by_label("Words spoken in the clip").fill(SUBTITLE)
    opened.evaluate(
        """() => { window.seen = []; new MutationObserver(() => {
          const reasoning = document.querySelector("#answers .slow .reasoning");
          if (reasoning) window.seen.push(reasoning.textContent.length);
        }).observe(document.querySelector("#answers"), {childList: true, subtree: true, characterData: true}); }"""
    )
    ask(opened)
    answers = opened.locator("#answers")
    for mode in ("Fast", "Slow"):
        panel = answers.get_by_role("region", name=f"{mode} thinking")
        assert panel.locator(".chip").count() >= 1
        assert "answer confidence" in panel.inner_text()
    assert len(set(opened.evaluate("window.seen"))) > 2  # it grows
    assert opened.locator("#wheels svg.wheel").count() == len(builtin().wheels)
    assert opened.locator("#wheels table").count() == len(builtin().wheels)
    assert not scrolls_sideways(opened)
    assert low_contrast(opened) == []
    with opened.expect_download() as started:
        opened.locator("#record").click()
    started.value.save_as(tmp_path / "record.json")
    content = json.loads((tmp_path / "record.json").read_text())
    assert [found["mode"] for found in content["records"]] == ["fast", "slow"]
    assert set(content["effect"]) == {wheel.name for wheel in builtin().wheels}


def test_a_built_in_scene_fills_the_page_by_keyboard_alone(opened):
    opened.locator("#scene input").focus()
    for key in ("ArrowDown", "ArrowDown", "Enter"):
        opened.keyboard.press(key)
    opened.locator("#video video").wait_for()
    words = opened.get_by_label("Words spoken in the clip")
    assert words.input_value() in {clip.subtitle for clip in page.scenes().values()}
    words.focus()
    for _ in range(5):
        opened.keyboard.press("Tab")
        if opened.evaluate("document.activeElement.id || document.activeElement.textContent").strip() in ("ask", "Ask"):
            break
    opened.keyboard.press("Enter")
    opened.get_by_role("heading", name="On the wheels").wait_for()
    assert "Gold labels of this scene" in opened.locator("#answers").inner_text()


@pytest.mark.parametrize("opened", [WIDE, PHONE], indirect=True, ids=["wide", "phone"])
def test_words_are_written_down_and_a_recording_becomes_a_timeline(opened):
    opened.locator("#video input[type=file]").first.set_input_files(page.SCENES / "test-000004.mp4")
    opened.locator("#video video").wait_for()
    opened.get_by_role("button", name="Write the words down").click()
    opened.wait_for_function("document.querySelector('#words textarea').value !== ''")
    assert opened.get_by_label("Words spoken in the clip").input_value() == SUBTITLE
    ask(opened)
    assert "words by ear 1, not checked" in opened.locator("#answers").inner_text()
    opened.get_by_role("button", name="Timeline of the whole recording").click()
    rows = opened.locator("#timeline tbody tr")
    rows.nth(1).wait_for()
    assert "0:00–0:01" in rows.first.inner_text()
    assert SUBTITLE in rows.first.inner_text()
    opened.get_by_text("words by ear 1, not checked").nth(1).wait_for()
    opened.get_by_text("mer-r1-timeline").first.wait_for()
    assert opened.locator("#timeline [role=alert]").count() == 0
    assert not scrolls_sideways(opened)
    assert low_contrast(opened) == []


def test_a_broken_file_gets_a_readable_message(opened, tmp_path):
    file = tmp_path / "holiday.mp4"
    file.write_bytes(b"this is no film" * 50)
    opened.locator("#video input[type=file]").first.set_input_files(file)
    opened.get_by_text("holiday").or_(opened.locator("#video video")).first.wait_for(state="attached")
    opened.locator("#ask").click()
    problem = opened.locator("#answers [role=alert]")
    problem.wait_for()
    assert problem.inner_text().startswith("holiday.mp4: no readable video or sound in it")
    assert low_contrast(opened) == []


def test_nothing_to_ask_about_is_said(opened):
    opened.locator("#ask").click()
    problem = opened.locator("#answers [role=alert]")
    problem.wait_for()
    assert "nothing to ask about" in problem.inner_text()


def test_a_dark_page_can_be_read(address, chromium):
    context = chromium.new_context(viewport=WIDE, color_scheme="dark")
    context.set_default_timeout(PATIENCE)
    shown = context.new_page()
    shown.goto(address)
    shown.get_by_label("Words spoken in the clip").fill(SUBTITLE)
    ask(shown)
    assert low_contrast(shown) == []
    context.close()


def test_the_page_is_bound_to_this_machine_and_forbids_what_is_elsewhere(address):
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(address) as reply:
        assert reply.headers["content-security-policy"] == serve.POLICY
        assert b'analytics_enabled":false' in reply.read().replace(b" ", b"")
