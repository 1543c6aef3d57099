"""Models that the package ships, each a folder here with its card (README.md): half-precision safetensors.

`tiny-base` is the base that SFT starts from, `tiny-mer-r1` the finished policy. Both were trained on generated scenes
only and know nothing of people. `lab.tiny.ship` writes them.
"""

from pathlib import Path

BASE, POLICY = "tiny-base", "tiny-mer-r1"
"""Names of the shipped models; they work wherever a model is named."""
NOTICE = (
    f"the built-in model {POLICY} answers: it knows generated faces and voices only, so its answers about people mean "
    "nothing; name a model of yours with --model"
)


def model_path(name: str | Path) -> str:
    """The folder of a shipped model; any other name or path unchanged.

    >>> model_path("Qwen/Qwen2.5-Omni-7B")
    'Qwen/Qwen2.5-Omni-7B'
    """
    shipped = Path(__file__).parent / str(name)
    return str(shipped) if str(name) in (BASE, POLICY) and not Path(name).exists() else str(name)
