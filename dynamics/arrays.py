"""Bringing matrices of any origin to float64 numpy arrays, with one checker for what is wrong with them.

Not covered: sharded tensors (gather them first) and complex matrices (the loops of this package are real).
"""

import sys
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

ROUNDING: Final = 2.0**-53


def as_numpy(matrix: object) -> NDArray[Any]:
    """View an array, a torch tensor or nested lists as a numpy array, copying only what is not on the CPU."""
    # torch is looked up, never imported: whoever hands over a tensor has imported it already.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(matrix, torch.Tensor):
        tensor = matrix.detach()
        if tensor.dtype in (torch.bfloat16, torch.float16):
            tensor = tensor.float()
        return np.asarray(tensor.resolve_conj().cpu().numpy())
    return np.asarray(matrix)


def as_float64(matrix: object, name: str) -> NDArray[np.float64]:
    """Copy a real, finite matrix, vector or scalar to float64, or say what is wrong with it."""
    array = as_numpy(matrix)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must hold real numbers; found dtype {array.dtype}")
    if array.ndim > 2:
        raise ValueError(f"{name} must have at most 2 dimensions; found shape {array.shape}")
    result = array.astype(np.float64)
    require_finite(result, name)
    return result


def require_finite(array: NDArray[Any], name: str) -> None:
    """Raise with the count and the first place of NaN or infinite entries."""
    # The sum is finite only if every entry is, and costs one pass; overflow of finite entries is told apart below.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(array.sum()):
            return
    bad = ~np.isfinite(array)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name} must be finite; found {int(bad.sum())} NaN or infinite entries, the first at index {first}"
        )


def require_square(array: NDArray[Any], name: str) -> None:
    """Raise unless the array is a square matrix with at least one row."""
    if array.ndim != 2 or array.shape[0] != array.shape[1] or array.shape[0] == 0:
        raise ValueError(f"{name} must be a square matrix; found shape {array.shape}")
