"""Storage formats of safetensors files.

>>> DTYPES["BF16"].bytes, DTYPES["BF16"].floating
(2, True)
"""

from typing import NamedTuple


class DType(NamedTuple):
    """One storage format: its size, whether editkit can edit it, and its name in torch."""

    code: int
    bytes: int
    floating: bool
    torch: str


DTYPES: dict[str, DType] = {
    "F64": DType(0, 8, True, "float64"),
    "F32": DType(1, 4, True, "float32"),
    "F16": DType(2, 2, True, "float16"),
    "BF16": DType(3, 2, True, "bfloat16"),
    "F8_E4M3": DType(4, 1, True, "float8_e4m3fn"),
    "F8_E5M2": DType(5, 1, True, "float8_e5m2"),
    "I64": DType(10, 8, False, "int64"),
    "I32": DType(11, 4, False, "int32"),
    "I16": DType(12, 2, False, "int16"),
    "I8": DType(13, 1, False, "int8"),
    "U64": DType(14, 8, False, "uint64"),
    "U32": DType(15, 4, False, "uint32"),
    "U16": DType(16, 2, False, "uint16"),
    "U8": DType(17, 1, False, "uint8"),
    "BOOL": DType(18, 1, False, "bool"),
}
"""safetensors dtype -> format. A dtype outside this table is refused by name when a file is opened."""
