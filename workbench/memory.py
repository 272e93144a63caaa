"""Memory that is free where tensors would go."""

import psutil
import torch


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
