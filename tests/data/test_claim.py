"""Claims: whose results a folder holds, and what refuses to mix with them."""

import json
import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mer_r1.data import claim as module
from mer_r1.data.claim import CLAIM_FILE, check_claim, check_items, claim, clear, item_keys, weights_digest
from mer_r1.data.clip import Clip
from mer_r1.errors import UserError

FACTS = {"model": "a", "weights": None, "sampling": {"temperature": 0.0, "seed": 1}, "question": ["what?"]}


def test_a_folder_takes_its_own_results_and_names_what_differs(tmp_path):
    claim(tmp_path / "out", FACTS, ["r.jsonl"])
    (tmp_path / "out" / "r.jsonl").write_text("{}")
    claim(tmp_path / "out", FACTS, ["r.jsonl"])
    other = {**FACTS, "model": "b", "sampling": {"temperature": 1.0, "seed": 1}, "split": "val"}
    with pytest.raises(UserError) as caught:
        claim(tmp_path / "out", other, ["r.jsonl"])
    expected = "model: 'a', now 'b'; sampling.temperature: 0.0, now 1.0; split: None, now 'val'"
    assert f"was made with other settings ({expected}); choose another folder, or ask anew" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert json.loads((tmp_path / "out" / CLAIM_FILE).read_text()) == FACTS


def test_results_without_a_readable_claim_are_refused_and_a_folder_without_results_is_free(tmp_path):
    (tmp_path / "r.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"holds r\.jsonl and no claim\.json: unknown whose it is; choose another"):
        claim(tmp_path, FACTS, ["r.jsonl"])
    for broken in ("", "[1]", "{"):
        (tmp_path / CLAIM_FILE).write_text(broken)
        with pytest.raises(UserError, match=r"claim\.json.*--overwrite"):
            claim(tmp_path, FACTS, ["r.jsonl"])
    (tmp_path / "keep.txt").write_text("mine")
    clear(tmp_path, ["r.jsonl", "missing", "*/r.jsonl"])
    claim(tmp_path, FACTS, ["r.jsonl"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [CLAIM_FILE, "keep.txt"]
    (tmp_path / "r.jsonl").write_text("")  # opened, and killed before the first result
    claim(tmp_path, {"model": "b"}, ["r.jsonl"])
    assert json.loads((tmp_path / CLAIM_FILE).read_text()) == {"model": "b"}


def test_a_model_is_known_by_its_weights_and_a_model_without_by_its_name(tmp_path):
    check_claim(tmp_path, {"model": "a", "weights": "1"}, {"model": "b", "weights": "1"})
    with pytest.raises(UserError, match=r"\(weights: '1', now '2'\)"):
        check_claim(tmp_path, {"model": "a", "weights": "1"}, {"model": "a", "weights": "2"})
    with pytest.raises(UserError, match=r"\(model: 'a', now 'b'\)"):
        check_claim(tmp_path, {"model": "a", "weights": None}, {"model": "b", "weights": None})


values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from("xyz"), values), st.dictionaries(st.sampled_from("xyz"), values))
def test_facts_are_accepted_exactly_if_they_are_the_same(before, now):
    """A fact that is null is one that is not there: claims of a version without it stay valid."""
    old, new = ({name: fact for name, fact in module._flat(all_).items() if fact is not None} for all_ in (before, now))
    flat_same = old == new
    try:
        check_claim(module.Path("here"), before, now)
    except UserError:
        assert not flat_same
    else:
        assert flat_same
    check_claim(module.Path("here"), json.loads(json.dumps(now)), now)


# --- models -----------------------------------------------------------------------------------------------------------


@given(st.binary(min_size=1, max_size=40), st.integers(0, 39))
def test_any_byte_of_a_small_file_counts(tmp_path_factory, content, place):
    folder = tmp_path_factory.mktemp("model")
    (folder / "model.safetensors").write_bytes(content)
    before = weights_digest(folder)
    changed = bytearray(content)
    changed[place % len(content)] ^= 1
    (folder / "model.safetensors").write_bytes(changed)
    assert weights_digest(folder) != before


def test_of_a_large_file_blocks_at_equal_distances_count(tmp_path, monkeypatch):
    """Frozen towers at both ends of a file must not hide a retrained middle."""
    monkeypatch.setattr(module, "_BLOCK", 4)
    monkeypatch.setattr(module, "_BLOCKS", 8)
    file = tmp_path / "model-00001-of-00002.safetensors"
    file.write_bytes(bytes(800))
    before = weights_digest(tmp_path)
    file.write_bytes(bytes(400) + b"\x01" * 100 + bytes(300))
    assert weights_digest(tmp_path) != before
    file.write_bytes(bytes(801))
    assert weights_digest(tmp_path) != before


def test_settings_count_results_beside_the_model_do_not_and_a_copy_is_the_same(tmp_path):
    model, copy = tmp_path / "model", tmp_path / "copy"
    model.mkdir()
    for name in ("model.safetensors", "config.json", "mer_r1.json", "chat_template.jinja"):
        (model / name).write_text(name)
    shutil.copytree(model, copy)
    digest = weights_digest(model)
    assert weights_digest(copy) == digest
    (model / "think_auto.json").write_text("{}")
    claim(model, FACTS, ["none"])
    assert weights_digest(model) == digest
    (copy / "mer_r1.json").write_text("other")
    assert weights_digest(copy) != digest
    assert weights_digest("Qwen/Qwen2.5-Omni-7B") is None  # offline, and never loaded here


# --- clips ------------------------------------------------------------------------------------------------------------


def test_a_changed_clip_is_named_with_what_has_changed(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.wav").write_bytes(name.encode())
    clips = [Clip("1", audio=tmp_path / "a.wav", subtitle="Hello."), Clip("2", audio=tmp_path / "b.wav")]
    before = item_keys(clips)
    assert before == item_keys(clips)
    check_items(tmp_path, before.items(), before)
    said = item_keys([Clip("1", audio=tmp_path / "a.wav", subtitle="Bye."), clips[1]])
    with pytest.raises(UserError, match=r"1 of its clips have changed since \(first: the subtitle or question of 1\)"):
        check_items(tmp_path, before.items(), said)
    with pytest.raises(UserError, match=r"2 of its clips .*first: the subtitle or question of 1"):
        check_items(tmp_path, before.items(), item_keys(clips, lambda clip: "Which emotion?"))
    swapped = item_keys(clips, donors={"1": "2", "2": "1"})
    with pytest.raises(UserError, match=r"2 of its clips .*first: the media of 1"):
        check_items(tmp_path, before.items(), swapped)
    (tmp_path / "b.wav").write_bytes(b"c")
    os.utime(tmp_path / "b.wav", ns=(1, 1))
    with pytest.raises(UserError, match=r"1 of its clips .*first: the media of 2"):
        check_items(tmp_path, before.items(), item_keys(clips))
    with pytest.raises(UserError, match=r"2 of its clips"):  # what the first clip got from the second
        check_items(tmp_path, swapped.items(), item_keys(clips, donors={"1": "2", "2": "1"}))
    (tmp_path / "b.wav").write_bytes(b"")
    with pytest.raises(UserError, match=r"first: the media of 2"):
        check_items(tmp_path, before.items(), item_keys(clips))
    (tmp_path / "b.wav").unlink()
    check_items(tmp_path, before.items(), item_keys(clips))  # not here: scored elsewhere than it was asked
    check_items(tmp_path, [("1", ""), ("gone", "x-y")], before)  # unknown, and no clip any more
