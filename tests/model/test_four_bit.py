"""4-bit weights: the language model's matrices only, and an answer still comes; and which device a model runs on."""

import logging

import pytest
import torch

from mer_r1.errors import UserError
from mer_r1.model import omni as module
from mer_r1.model.omni import choose_device, load


def test_four_bit_weights_without_the_library_name_the_extra(taught_folder, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="extra 4bit"):
        load(taught_folder, four_bit=True)


def test_the_matrices_of_the_language_model_are_held_in_four_bits(taught_folder):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes (extra 4bit) is not installed")
    omni = load(taught_folder, four_bit=True)
    held = {name for name, layer in omni.model.named_modules() if type(layer).__name__ == "Linear4bit"}
    layers = omni.model.config.text_config.num_hidden_layers
    assert len(held) == 7 * layers, "queries, keys, values, output, and three of the feed-forward"
    assert all("language_model.layers" in name for name in held)
    assert omni.device == torch.device("cpu")


def test_the_device_is_said_and_one_that_is_not_there_is_refused(caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.INFO):
        assert choose_device() == "cpu"
        assert choose_device("cpu") == "cpu"
    assert [record.message.startswith("the model runs on cpu") for record in caplog.records] == [True, True]
    assert caplog.records[0].message.endswith("chosen by itself: see --device")
    for wrong in ("cuda:9", "gpu", "cu\nda"):
        with pytest.raises(UserError, match="--device") as told:
            choose_device(wrong)
        assert "\n" not in str(told.value)
