"""What vLLM's CPU build lacks to stand in for its GPU build: linear layers whose weights can be loaded again.

On a CPU vLLM packs the weights of linear layers after loading and drops them, so that every later load fails; on GPUs
it leaves them alone. Here each is an ordinary linear layer. Import `vllm` through this file.
"""

import os
from typing import Any

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; otherwise 90 % of the memory
    "VLLM_CPU_CI_ENV": "1",  # no compilation
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}

import torch
from vllm.model_executor.layers import utils


def _plain(layer: Any, remove_weight: bool) -> None:
    layer.cpu_linear = torch.nn.functional.linear


utils.dispatch_cpu_unquantized_gemm = _plain
