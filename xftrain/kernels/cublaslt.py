"""Matmuls by cuBLASLt, called through the library that torch has loaded.

torch asks the heuristic of cuBLASLt for one algorithm. Here each proposed algorithm can be timed,
and GELU or its derivative can run in the epilogue of the matmul. Names and numbers are from
`cublasLt.h` of CUDA 12 and 13: https://docs.nvidia.com/cuda/cublas/#using-the-cublaslt-api
"""

from __future__ import annotations

import ctypes
import logging
from ctypes import (
    byref,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
)
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from xftrain.errors import first_line
from xftrain.utils.device_memory import is_out_of_memory

log = logging.getLogger(__name__)

_TYPES = {torch.float16: 2, torch.bfloat16: 14}  # CUDA_R_16F, CUDA_R_16BF
_FLOAT32, _COMPUTE_32F = 0, 68
_TRANSA, _TRANSB, _EPILOGUE, _AUX_POINTER, _AUX_LD, _AUX_TYPE = 3, 4, 7, 11, 12, 22
# CUBLASLT_ALGO_CONFIG_ID, TILE_ID, SPLITK_NUM, REDUCTION_SCHEME, CTA_SWIZZLING, CUSTOM_OPTION,
# STAGES_ID, INNER_SHAPE_ID, CLUSTER_SHAPE_ID
_CONFIG: list[Any] = [*[c_uint32] * 7, *[c_uint16] * 2]
_PREFERRED_WORKSPACE = 1
_WORKSPACE_BYTES = 32 << 20
_NUM_ALGORITHMS = 16
_ALIGNMENT = 256  # bytes; the heuristic assumes this alignment
_ALPHA, _BETA = c_float(1.0), c_float(0.0)  # read from the host at each launch


class Epilogue(IntEnum):
    """The function that the kernel applies to the result of a matmul before storing it."""

    NONE = 1
    GELU = 32 | 128  # tanh form; the second output receives the result before GELU
    GELU_GRADIENT = 64 | 128  # multiplied by the derivative of GELU at the second input


class CublasError(RuntimeError):
    """cuBLASLt has refused a call."""


class _Algorithm(ctypes.Structure):
    _fields_ = (("data", c_uint64 * 8),)


class _Proposal(ctypes.Structure):
    _fields_ = (
        ("algorithm", _Algorithm),
        ("workspace_bytes", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


_POINTER = c_void_p
_SIGNATURES: dict[str, list[Any]] = {
    "cublasLtCreate": [_POINTER],
    "cublasLtMatmulDescCreate": [_POINTER, c_int, c_int],
    "cublasLtMatmulDescSetAttribute": [_POINTER, c_int, _POINTER, c_size_t],
    "cublasLtMatmulDescDestroy": [_POINTER],
    "cublasLtMatrixLayoutCreate": [_POINTER, c_int, c_uint64, c_uint64, c_int64],
    "cublasLtMatrixLayoutDestroy": [_POINTER],
    "cublasLtMatmulPreferenceCreate": [_POINTER],
    "cublasLtMatmulPreferenceSetAttribute": [_POINTER, c_int, _POINTER, c_size_t],
    "cublasLtMatmulPreferenceDestroy": [_POINTER],
    "cublasLtMatmulAlgoGetHeuristic": [*[_POINTER] * 7, c_int, _POINTER, _POINTER],
    "cublasLtMatmulAlgoConfigGetAttribute": [_POINTER, c_int, _POINTER, c_size_t, _POINTER],
    "cublasLtMatmul": [*[_POINTER] * 13, _POINTER, c_size_t, _POINTER],
}


@cache
def library() -> Any:
    """The cuBLASLt library that torch has loaded.

    Raises:
        OSError: torch has loaded no libcublasLt.
        AttributeError: the library lacks a function.
    """
    maps = Path("/proc/self/maps")
    lines = maps.read_text(encoding="utf-8").splitlines() if maps.exists() else []
    loaded = [line[line.index("/") :] for line in lines if "/libcublasLt.so" in line]
    if not loaded:
        raise OSError("torch has loaded no libcublasLt")
    found = ctypes.CDLL(loaded[0])
    for name, arguments in _SIGNATURES.items():
        getattr(found, name).argtypes = arguments
        getattr(found, name).restype = c_int
    return found


@cache
def has_cublaslt() -> bool:
    """Whether there is a GPU and cuBLASLt can be called."""
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return False
    try:
        with _disable_current_modes():  # the memory prediction may call this under fake tensors
            ones = torch.ones(8, 8, device="cuda", dtype=torch.float16)
            ones.mm(ones)  # makes torch load cuBLASLt
            library()
    except (OSError, AttributeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        log.warning(
            "matmul: cuBLASLt was not found, so torch chooses the algorithms: %s", first_line(error)
        )
        return False
    return True


def _call(name: str, *arguments: Any) -> None:
    if status := getattr(library(), name)(*arguments):
        raise CublasError(f"{name}: status {status}")


@cache
def _handle(device: int) -> c_void_p:
    """The cuBLASLt handle of a device, created once and never destroyed."""
    handle = c_void_p()
    with torch.cuda.device(device):
        _call("cublasLtCreate", byref(handle))
    return handle


class Plan:
    """A matmul of matrices with given layouts, and the algorithms that cuBLASLt proposes for it.

    Row-major `out = a b` is column-major `out^T = b^T a^T`, so the A of cuBLASLt is b here.

    Args:
        a: [M, K], row-major or the transpose of such a matrix.
        b: [K, N], likewise.
        epilogue: what is applied to the result.

    Raises:
        CublasError: cuBLASLt proposes no algorithm.
    """

    def __init__(self, a: Tensor, b: Tensor, epilogue: Epilogue) -> None:
        self._owned: list[tuple[str, c_void_p]] = []
        self._handle, self._type = _handle(a.device.index), _TYPES[a.dtype]
        sizes_a, op_a = _stored(b)
        sizes_b, op_b = _stored(a)
        num_columns = b.shape[1]
        self._a, self._b = self._layout(*sizes_a), self._layout(*sizes_b)
        self._out = self._layout(num_columns, a.shape[0], num_columns)
        self._descriptor = self._make("cublasLtMatmulDesc", c_int(_COMPUTE_32F), c_int(_FLOAT32))
        self._set(_TRANSA, c_int32(op_a))
        self._set(_TRANSB, c_int32(op_b))
        self._set(_EPILOGUE, c_uint32(epilogue))
        if epilogue != Epilogue.NONE:
            self._set(_AUX_LD, c_int64(num_columns))
            self._set(_AUX_TYPE, c_int32(self._type))
            self._set(_AUX_POINTER, c_void_p(_ALIGNMENT))  # the heuristic reads its alignment
        self.proposals = self._query_heuristic()

    def __del__(self) -> None:
        for kind, descriptor in self._owned:
            getattr(library(), f"{kind}Destroy")(descriptor)

    def name(self, index: int) -> str:
        """The name of a proposed algorithm, which is the same in every process.

        It consists of the fields of the configuration. The raw 64 bytes are unsuitable, since
        some are uninitialized (seen on an H200 with cuBLASLt 13).

        Args:
            index: index of the proposal.
        """
        algorithm, values = self.proposals[index].algorithm, []
        for field, kind in enumerate(_CONFIG):
            value, written = kind(0), c_size_t(0)
            name = "cublasLtMatmulAlgoConfigGetAttribute"
            size = ctypes.sizeof(value)
            _call(name, byref(algorithm), field, byref(value), size, byref(written))
            values.append(str(value.value))
        return "-".join(values)

    def launch(self, index: int, a: Tensor, b: Tensor, out: Tensor, second: Tensor | None) -> None:
        """Launches an algorithm on the current stream.

        Args:
            index: index of the proposal.
            a: [M, K], laid out as the `a` that the plan was made for.
            b: [K, N], likewise.
            out: [M, N], contiguous.
            second: [M, N], contiguous; the epilogue's second output or input, if it has one.
        """
        if second is not None:
            self._set(_AUX_POINTER, c_void_p(second.data_ptr()))  # set on the host
        proposal = self.proposals[index]
        num_bytes = int(proposal.workspace_bytes)
        workspace = torch.empty(num_bytes, dtype=torch.uint8, device=a.device)
        _call(
            "cublasLtMatmul",
            *(self._handle, self._descriptor, byref(_ALPHA)),
            *(b.data_ptr(), self._a, a.data_ptr(), self._b, byref(_BETA)),
            *(out.data_ptr(), self._out, out.data_ptr(), self._out),
            *(byref(proposal.algorithm), workspace.data_ptr(), num_bytes),
            torch.cuda.current_stream(a.device).cuda_stream,
        )

    def _query_heuristic(self) -> list[_Proposal]:
        preference = self._make("cublasLtMatmulPreference")
        limit = c_uint64(_WORKSPACE_BYTES)
        size = ctypes.sizeof(limit)
        name = "cublasLtMatmulPreferenceSetAttribute"
        _call(name, preference, _PREFERRED_WORKSPACE, byref(limit), size)
        found, count = (_Proposal * _NUM_ALGORITHMS)(), c_int(0)
        _call(
            "cublasLtMatmulAlgoGetHeuristic",
            *(self._handle, self._descriptor, self._a, self._b, self._out, self._out),
            *(preference, _NUM_ALGORITHMS, byref(found), byref(count)),
        )
        proposals = [proposal for proposal in found[: count.value] if proposal.state == 0]
        if not proposals:
            raise CublasError("cublasLtMatmulAlgoGetHeuristic: no algorithm")
        return proposals

    def _layout(self, rows: int, columns: int, leading: int) -> c_void_p:
        return self._make("cublasLtMatrixLayout", c_int(self._type), rows, columns, leading)

    def _make(self, kind: str, *arguments: Any) -> c_void_p:
        descriptor = c_void_p()
        _call(f"{kind}Create", byref(descriptor), *arguments)
        self._owned.append((kind, descriptor))
        return descriptor

    def _set(self, attribute: int, value: Any) -> None:
        size = ctypes.sizeof(value)
        name = "cublasLtMatmulDescSetAttribute"
        _call(name, self._descriptor, attribute, byref(value), size)


def is_supported(*matrices: Tensor) -> bool:
    """Whether dtype, layout and alignment of the matrices allow a plan."""
    return all(
        matrix.is_cuda
        and matrix.dtype in _TYPES
        and matrix.dtype == matrices[0].dtype
        and matrix.data_ptr() % _ALIGNMENT == 0
        and 1 in matrix.stride()
        and max(matrix.stride()) % 8 == 0
        for matrix in matrices
    )


def _stored(matrix: Tensor) -> tuple[tuple[int, int, int], int]:
    """Rows, columns and leading dimension in column-major order, and whether to transpose.

    cuBLASLt needs the transpose, and a row-major matrix read as column-major is its transpose.
    """
    rows, columns = matrix.shape
    if matrix.stride(1) == 1:
        return (columns, rows, matrix.stride(0)), 0
    return (rows, columns, matrix.stride(1)), 1
