"""The precision in which inner layers are multiplied."""

from typing import Literal

import torch
from torch import Tensor

InnerPrecision = Literal["auto", "float32", "bfloat16"]


def inner_dtype(precision: InnerPrecision, like: Tensor) -> torch.dtype:
    """The type that one of `InnerPrecision` means for tensors such as `like`; only float32 is ever shortened."""
    if like.dtype is not torch.float32 or precision == "float32":
        return like.dtype
    if precision == "bfloat16":
        return torch.bfloat16
    return torch.bfloat16 if multiplies_bfloat16(like.device.type) else torch.float32


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch gives it no types
def multiplies_bfloat16(device_type: str) -> bool:
    """Whether the hardware has instructions for products in bfloat16; elsewhere they are slower than float32."""
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device_type == "cpu":
        capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # not in the oldest torch
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False
