"""A thinker without its towers: training reads cached features, so the towers need not be in memory.

A frozen tower whose outputs are all on disk takes part in nothing. It is never read from the checkpoint then: models
are made with an `AbsentTower` in each one's place, which knows the checkpoint where the weights are. Three things still
need them, and get them from there: the fingerprint of the feature cache (one weight at a time), a clip that turns out
not to be cached (the towers are loaded after all), and a checkpoint to be written, which is always whole.

The files stay open, so that the weights can be read at the end of a run even if the checkpoint was deleted meanwhile.
"""

import gc
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.integrations import is_deepspeed_zero3_enabled

from mer_r1.errors import UserError

logger = logging.getLogger(__name__)

TOWERS = ("visual", "audio_tower")
"""Attributes of `model.model` that hold the vision and the audio tower."""
_INNER = re.compile(r"^(?:thinker\.)?(?:model\.)?((?:visual|audio_tower)\..+)$")


class AbsentTower(nn.Module):
    """What stands where a tower would: no weights, but their names, and lengths that need no weights.

    Args:
        tower: the one that it replaces; may be without memory (device "meta").
        name: "visual" or "audio_tower".
    """

    def __init__(self, tower: nn.Module, name: str) -> None:
        super().__init__()
        self.kind, self.name = type(tower), name
        self.weight_names = list(tower.state_dict())
        self.checkpoint: TowerWeights | None = None
        """Where the weights are; None until it is known (`bind`)."""

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Names (as in the tower's own state dict) and weights, read one by one."""
        if self.checkpoint is None:
            raise RuntimeError(f"the weights of {self.name} are nowhere: the model was made without them")
        for name in self.weight_names:
            yield name, self.checkpoint.read(f"{self.name}.{name}")

    def _get_feat_extract_output_lengths(self, lengths: Any) -> Any:
        # How many tokens a sound becomes depends on its length alone.
        return self.kind._get_feat_extract_output_lengths(self, lengths)  # type: ignore[attr-defined]

    def forward(self, *_: Any, **__: Any) -> Any:
        """Refuse: whoever trains without towers has every clip's features already."""
        raise RuntimeError(f"{self.name} is not in memory: call restore_towers first")


class TowerWeights:
    """The towers' weights in a checkpoint, its files open, nothing read yet.

    Args:
        source: folder or hub name of a thinker, or of a full Qwen2.5-Omni.
        dtype: what the model was loaded as.

    Raises:
        UserError: if it has no safetensors files.
    """

    def __init__(self, source: str | Path, dtype: torch.dtype) -> None:
        self.source, self.dtype = source, dtype
        self._places: dict[str, tuple[Any, str]] = {}
        try:
            for file in _weight_files(source):
                handle = safe_open(file, framework="pt")
                for key in handle.keys():  # noqa: SIM118 (it is no mapping)
                    if match := _INNER.match(key):
                        self._places[match[1]] = (handle, key)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{source}: cannot open the weights: {' '.join(str(error).split())}") from error

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def read(self, name: str) -> Tensor:
        """One weight, such as "visual.merger.ln_q.weight"."""
        handle, key = self._places[name]
        value: Tensor = handle.get_tensor(key)
        return value.to(self.dtype) if value.is_floating_point() else value


def _weight_files(source: str | Path) -> list[str]:
    from transformers.utils.hub import cached_file, get_checkpoint_shard_files

    index = cached_file(source, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False)
    if index:
        return list(get_checkpoint_shard_files(source, index)[0])
    file = cached_file(source, "model.safetensors", _raise_exceptions_for_missing_entries=False)
    if not file:
        raise UserError(f"{source}: no model.safetensors and no model.safetensors.index.json")
    return [file]


@contextmanager
def without_towers(kind: type) -> Iterator[None]:
    """Within, models of a class are made without towers, by whoever makes them; a checkpoint's are passed over.

    Args:
        kind: the thinker's class.
    """
    made, ignored = kind.__init__, kind._keys_to_ignore_on_load_unexpected  # type: ignore[misc, attr-defined]

    @wraps(made)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        take_towers(self)

    kind.__init__ = init  # type: ignore[misc]
    kind._keys_to_ignore_on_load_unexpected = [*(ignored or ()), *TOWERS]  # type: ignore[attr-defined]
    try:
        yield
    finally:
        kind.__init__, kind._keys_to_ignore_on_load_unexpected = made, ignored  # type: ignore[misc, attr-defined]


def same_towers_as(model: Any) -> Any:
    """A context in which models of this one's class are made as it is: with towers or without.

    TRL makes the KL reference from the checkpoint by itself, and a resumed run reads its checkpoint; neither shall load
    what the policy does without.
    """
    return without_towers(type(model)) if absent(model) else nullcontext()


def absent(model: Any) -> list[AbsentTower]:
    """The towers that a thinker is without."""
    found = (getattr(model.model, name) for name in TOWERS)
    return [tower for tower in found if isinstance(tower, AbsentTower)]


def take_towers(model: Any) -> None:
    """Put an `AbsentTower` in place of each tower, which frees its memory."""
    for name in TOWERS:
        tower = getattr(model.model, name)
        if not isinstance(tower, AbsentTower):
            setattr(model.model, name, AbsentTower(tower, name))


def bind(model: Any, checkpoint: TowerWeights) -> None:
    """Tell the absent towers where their weights are.

    Raises:
        UserError: if a weight is not there.
    """
    for tower in absent(model):
        if missing := [name for name in tower.weight_names if f"{tower.name}.{name}" not in checkpoint]:
            raise UserError(f"{checkpoint.source}: {len(missing)} weights of {tower.name} are not in it ({missing[0]})")
        tower.checkpoint = checkpoint


def drop_towers(model: Any, source: str | Path) -> None:
    """Free the towers' memory; they can be had again from the checkpoint they came from.

    Raises:
        UserError: if they are not there.
    """
    if len(absent(model)) == len(TOWERS):
        return
    checkpoint = TowerWeights(source, next(model.model.visual.parameters()).dtype)
    kept = {name: getattr(model.model, name) for name in TOWERS}
    take_towers(model)
    try:
        bind(model, checkpoint)
    except UserError:
        for name, tower in kept.items():
            setattr(model.model, name, tower)
        raise
    logger.info("the towers left memory: every clip has its features")


def restore_towers(model: Any) -> None:
    """Load the towers that are absent, frozen, as the library loads them; nothing happens if they are there.

    For a moment the whole checkpoint is in main memory.

    Raises:
        UserError: under ZeRO-3, which would take the towers apart too.
    """
    missing = absent(model)
    if not missing or missing[0].checkpoint is None:
        return
    if is_deepspeed_zero3_enabled():
        raise UserError("some clips have no features, and under ZeRO-3 none can be made: run `mer-r1 features` first")
    checkpoint = missing[0].checkpoint
    whole = type(model).from_pretrained(checkpoint.source, dtype=checkpoint.dtype)
    for tower in missing:
        found = getattr(whole.model, tower.name).requires_grad_(False).to(model.device)
        setattr(model.model, tower.name, found.train(model.training))
    del whole
    gc.collect()
    logger.info("the towers were loaded: some clips have no features yet")


def whole_state(model: Any, state: dict[str, Tensor] | None = None) -> dict[str, Tensor] | None:
    """A state dict that has the absent towers too.

    Args:
        model: the thinker.
        state: its state dict, where it had to be gathered from several processes.

    Returns:
        `state` itself if nothing is absent (None lets the library take the model's own).
    """
    missing: Sequence[AbsentTower] = absent(model)
    if not missing:
        return state
    towers = {f"model.{tower.name}.{name}": value for tower in missing for name, value in tower.weights()}
    return {**(model.state_dict() if state is None else state), **towers}
