"""A thinker without its towers: training reads cached features, so the towers need not be in memory.

A frozen tower whose outputs are all on disk is not used in training, so it is not read from the checkpoint: models are
built with an `AbsentTower` in place of each tower, which knows the checkpoint with the weights. They are read from it
in three cases: for the fingerprint of the feature cache (one weight at a time), for a clip that is not cached (the
towers are loaded after all), and for writing a checkpoint, which is always complete.

The files stay open, so that the weights can be read at the end of a run even if the checkpoint is deleted meanwhile.
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
    """Stand-in for a tower: the names of its weights without the weights, and lengths that need none.

    Args:
        tower: the tower that it replaces; may be on device "meta".
        name: "visual" or "audio_tower".
    """

    def __init__(self, tower: nn.Module, name: str) -> None:
        super().__init__()
        self.kind, self.name = type(tower), name
        self.weight_names = list(tower.state_dict())
        self.checkpoint: TowerWeights | None = None
        """Checkpoint with the weights; None until `bind` sets it."""

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Names (as in the tower's own state dict) and weights, read one by one."""
        if self.checkpoint is None:
            raise RuntimeError(f"the weights of {self.name} are nowhere: the model was made without them")
        for name in self.weight_names:
            yield name, self.checkpoint.read(f"{self.name}.{name}")

    def _get_feat_extract_output_lengths(self, lengths: Any) -> Any:
        # The number of audio tokens depends on the length alone.
        return self.kind._get_feat_extract_output_lengths(self, lengths)  # type: ignore[attr-defined]

    def forward(self, *_: Any, **__: Any) -> Any:
        """Refuse: without towers, every clip must have its features already."""
        raise RuntimeError(f"{self.name} is not in memory: call restore_towers first")


class TowerWeights:
    """The towers' weights in a checkpoint, its files open, nothing read yet.

    Args:
        source: folder or hub name of a thinker, or of a full Qwen2.5-Omni.
        dtype: dtype of the loaded model.

    Raises:
        UserError: it has no safetensors files.
    """

    def __init__(self, source: str | Path, dtype: torch.dtype) -> None:
        self.source, self.dtype = source, dtype
        self._places: dict[str, tuple[Any, str]] = {}
        try:
            for file in weight_files(source):
                handle = safe_open(file, framework="pt")
                for key in handle.keys():  # noqa: SIM118 (it is no mapping)
                    if match := _INNER.match(key):
                        self._places[match[1]] = (handle, key)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{source}: cannot open the weights: {' '.join(str(error).split())}") from error

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def read(self, name: str) -> Tensor:
        """Read one weight, such as "visual.merger.ln_q.weight"."""
        handle, key = self._places[name]
        value: Tensor = handle.get_tensor(key)
        return value.to(self.dtype) if value.is_floating_point() else value


def weight_files(source: str | Path) -> list[str]:
    """The safetensors files of a checkpoint, a folder or a hub name.

    Raises:
        UserError: it has none.
    """
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
    """Context in which every model of a class is built without towers; a checkpoint's tower weights are skipped.

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
    """Context in which models of this one's class are built the same way: with towers or without.

    TRL builds the KL reference from the checkpoint by itself, and a resumed run reads its checkpoint; neither may load
    towers that the policy lacks.
    """
    return without_towers(type(model)) if absent(model) else nullcontext()


def absent(model: Any) -> list[AbsentTower]:
    """The absent towers of a thinker."""
    found = (getattr(model.model, name) for name in TOWERS)
    return [tower for tower in found if isinstance(tower, AbsentTower)]


def take_towers(model: Any) -> None:
    """Put an `AbsentTower` in place of each tower, which frees its memory."""
    for name in TOWERS:
        tower = getattr(model.model, name)
        if not isinstance(tower, AbsentTower):
            setattr(model.model, name, AbsentTower(tower, name))


def bind(model: Any, checkpoint: TowerWeights) -> None:
    """Set the checkpoint of the absent towers.

    Raises:
        UserError: it lacks a weight.
    """
    for tower in absent(model):
        if missing := [name for name in tower.weight_names if f"{tower.name}.{name}" not in checkpoint]:
            raise UserError(f"{checkpoint.source}: {len(missing)} weights of {tower.name} are not in it ({missing[0]})")
        tower.checkpoint = checkpoint


def drop_towers(model: Any, source: str | Path) -> None:
    """Free the towers' memory; they can be restored from their checkpoint.

    Raises:
        UserError: the checkpoint lacks them.
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
    logger.info("the towers are freed: every clip has its features")


def restore_towers(model: Any) -> None:
    """Load the absent towers, frozen, as the library loads them; nothing happens if they are present.

    For a moment the whole checkpoint is in main memory.

    Raises:
        UserError: under ZeRO-3, which would shard the towers too.
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
    """A state dict that includes the absent towers.

    Args:
        model: the thinker.
        state: its state dict, if it was gathered from several processes.

    Returns:
        `state` itself if nothing is absent (None lets the library take the model's own).
    """
    missing: Sequence[AbsentTower] = absent(model)
    if not missing:
        return state
    towers = {f"model.{tower.name}.{name}": value for tower in missing for name, value in tower.weights()}
    return {**(model.state_dict() if state is None else state), **towers}
