"""Whether every table of an open HDF5 file is what docs/run-file.md says: asked before any table is touched.

A table is a dataset of the root group under a hard link, of the documented type and number of axes, stored in this file
in one piece or in chunks, through filters of a short list. External files, virtual datasets, soft and external links, a
group in place of a table, named types and unknown filters are refused: what they lead to is not part of the file.
Declared sizes are held against the size of the file, since memory is taken by what is declared.

Not covered: what HDF5 itself does with a file before it can be asked (`skeleton`, `trial`).
"""

from __future__ import annotations

import math
from typing import Any, Final

import h5py
import numpy as np
from h5py import h5a, h5d, h5l, h5o, h5s, h5t

from ..layout import COMMIT_COLUMNS, MAX_EIGENVALUES, table_shapes, tables_of
from .skeleton import FILTER_IDS, LARGEST_CHUNK, MOST_COLUMNS, Shapes

_COMMIT_WIDTHS: Final = (12, 14, len(COMMIT_COLUMNS))  # of versions 1 and 2, and of this one
_LONGEST_TEXT: Final = 8 << 20  # bytes of an attribute: the description of the largest models takes a hundredth of that
_ENTRY: Final = 8  # bytes that the index of chunks takes for each, at least
_ALWAYS: Final = 64 << 20  # bytes of a table that are never too many
_SHAPES: Final = table_shapes(1, 1)
_DENSEST: Final = 200  # times that a table of recorded numbers is longer than its compressed bytes, at most


class Broken(OSError):
    """A file that does not keep to the documented form; the message says where."""


def check_tables(file: h5py.File, size: int, seen: Shapes) -> None:
    """Raise `Broken` unless every table is as documented.

    Args:
        file: The open file, whose format name has been checked.
        size: Bytes of the file on the disk.
        seen: The shapes of its tables, where `skeleton` has seen that every table there is has the type, the storage
            and the filters that the writer gives it. Then only their widths are left to ask for, and HDF5 is not asked.
    """

    def shape_of(name: str) -> tuple[int, ...]:
        if seen and name not in seen:
            raise Broken(f"table {name} is missing")
        if not seen:
            return _check_table(file, name, size)
        _check_shape(name, seen[name])
        return seen[name]

    width = shape_of("commit")[1]
    if width not in _COMMIT_WIDTHS:
        raise Broken(f"rows of commit have {width} numbers")
    shapes = {name: shape_of(name) for name in tables_of(width)}
    columns, names = shapes["steps"][1], shapes["columns"][0]
    if columns != names:
        raise Broken(f"steps has {columns} columns and columns {names} names")
    eigenvalues = whole_number(file, "eigenvalues")
    if not 1 <= eigenvalues <= MAX_EIGENVALUES or shapes["spectra"][1] != 2 + 2 * eigenvalues:
        raise Broken("spectra has another width than the attribute eigenvalues says")


def check_compression(name: str, rows: int, row_bytes: int, stored: int) -> None:
    """Raise `Broken` where committed rows would take far more memory than numbers packed into so few bytes."""
    if rows * row_bytes > _ALWAYS + _DENSEST * stored:
        raise Broken(f"table {name} claims {rows} rows in {stored} bytes")


def text(file: h5py.File, name: str) -> str:
    """Return a root attribute that is a string."""
    attribute = _attribute(file, name)
    kind = attribute.get_type()
    if not isinstance(kind, h5t.TypeStringID):
        raise Broken(f"attribute {name} is no string")
    if not kind.is_variable_str() and kind.get_size() > _LONGEST_TEXT:
        raise Broken(f"attribute {name} is too long")
    value = np.empty((), kind.dtype)
    attribute.read(value)
    said: Any = value[()]
    words = said if isinstance(said, str) else bytes(said).decode("utf-8", "replace")
    if len(words) > _LONGEST_TEXT:
        raise Broken(f"attribute {name} is too long")
    return words


def whole_number(file: h5py.File, name: str) -> int:
    """Return a root attribute that is a whole number."""
    attribute = _attribute(file, name)
    if not isinstance(attribute.get_type(), h5t.TypeIntegerID):
        raise Broken(f"attribute {name} is no whole number")
    value = np.empty((), np.int64)
    attribute.read(value)
    return int(value)


def _attribute(file: h5py.File, name: str) -> Any:
    """Return a root attribute that is a single value, opened and not read."""
    if not h5a.exists(file.id, name.encode()):
        raise Broken(f"attribute {name} is missing")
    attribute = h5a.open(file.id, name.encode())
    if attribute.get_space().get_simple_extent_type() != h5s.SCALAR or attribute.get_type().committed():
        raise Broken(f"attribute {name} is no single value")
    return attribute


def _check_shape(name: str, shape: tuple[int, ...]) -> None:
    """Raise `Broken` unless a table has the axes and the width that are documented."""
    expected, _ = _SHAPES[name]
    if len(shape) != 1 + len(expected) or not all(0 < width <= MOST_COLUMNS for width in shape[1:]):
        raise Broken(f"table {name} has the shape {shape}")
    if name in ("loops", "probe", "probe_index", "variables", "variable_index") and shape[1:] != expected:
        raise Broken(f"table {name} has {shape[1]} columns")
    if name == "columns" and not 0 < shape[0] <= MOST_COLUMNS:
        raise Broken(f"table columns has {shape[0]} names")


def _check_table(file: h5py.File, name: str, size: int) -> tuple[int, ...]:
    """Return the shape of one table; raise `Broken` unless all else about it is as documented."""
    encoded = name.encode()
    if encoded not in file.id:
        raise Broken(f"table {name} is missing")
    if file.id.links.get_info(encoded).type != h5l.TYPE_HARD:
        raise Broken(f"table {name} is a link elsewhere")
    dataset = h5o.open(file.id, encoded)
    if not isinstance(dataset, h5d.DatasetID):
        raise Broken(f"table {name} is no dataset")
    creation = dataset.get_create_plist()
    layout = creation.get_layout()
    if creation.get_external_count() or layout not in (h5d.CONTIGUOUS, h5d.CHUNKED):
        raise Broken(f"table {name} is not stored in this file")
    filters = [creation.get_filter(i)[0] for i in range(creation.get_nfilters())]
    if not set(filters) <= set(FILTER_IDS) or len(set(filters)) != len(filters):
        raise Broken(f"table {name} goes through filters that no run file has")
    _, dtype = _SHAPES[name]
    kind = dataset.get_type()
    if kind.committed() or not _same(kind, dtype):
        raise Broken(f"table {name} is of another type")
    shape: tuple[int, ...] = dataset.shape
    _check_shape(name, shape)
    if layout == h5d.CONTIGUOUS:
        if math.prod(shape) * dtype.itemsize > size:
            raise Broken(f"table {name} claims {shape[0]} rows in a file of {size} bytes")
        return shape
    chunk = creation.get_chunk()
    blocks = math.prod(-(-n // c) for n, c in zip(shape, chunk, strict=True))
    if math.prod(chunk) * dtype.itemsize > LARGEST_CHUNK:
        raise Broken(f"table {name} has chunks of {math.prod(chunk) * dtype.itemsize} bytes")
    if blocks * _ENTRY > size and blocks > 1:
        raise Broken(f"table {name} claims {shape[0]} rows in a file of {size} bytes")
    return shape


def _same(kind: Any, dtype: np.dtype[Any]) -> bool:
    """Return whether HDF5's type is the one of a table; one that NumPy has no word for is not."""
    try:
        stored: np.dtype[Any] = kind.dtype
    except (TypeError, ValueError, RuntimeError, NotImplementedError, OverflowError, MemoryError):
        return False
    return stored == dtype and h5py.check_enum_dtype(stored) is None
