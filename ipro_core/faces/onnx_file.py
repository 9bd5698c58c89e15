"""Reads an .onnx file: a protobuf message of nodes, weights, inputs and outputs. No `onnx` package needed.

Nothing is allocated on a file's word: a tensor's declared shape must match the bytes that lie there. Field
numbers are those of onnx.proto3.
"""

import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import sha256

# TensorProto.DataType → torch.
DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}


@dataclass(frozen=True)
class Node:
    """One operator of the graph."""

    operator: str
    name: str
    inputs: tuple[str, ...]
    """Names of values; "" where an optional input is left out."""
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Port:
    """An input or output of the graph as the file declares it."""

    name: str
    shape: tuple[int | None, ...]
    """None where the file leaves the size open."""
    dtype: torch.dtype | None


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """What an .onnx file says; weights stay on the disk until `tensor` reads them."""

    path: Path
    sha256: str
    nodes: tuple[Node, ...]
    weights: dict[str, memoryview]
    inputs: tuple[Port, ...]
    """Without those that merely repeat a weight."""
    outputs: tuple[Port, ...]


def read_onnx(path: Path | str) -> OnnxFile:
    """Read the structure of an .onnx file.

    Raises:
        ValueError: the file is missing, empty, damaged or no ONNX.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            # Copy on write: torch wants writable memory, the file stays as it is.
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        graph = _fields(_one(_fields(view), 7))
        weights = {_text(_one(_fields(tensor), 8)): tensor for tensor in graph.get(5, [])}
        ports = [_port(port) for port in graph.get(11, [])]
        return OnnxFile(
            path,
            sha256(path),
            tuple(_node(node) for node in graph.get(1, [])),
            weights,
            tuple(port for port in ports if port.name not in weights),
            tuple(_port(port) for port in graph.get(12, [])),
        )
    except FileNotFoundError:
        raise ValueError(
            f"There is no network at {path}: give an .onnx file of an InsightFace pack."
        ) from None
    # TypeError: a number where the format has a text, or the other way round.
    except (ValueError, TypeError, OSError) as error:
        raise damaged(path, str(error)) from None


def damaged(path: Path, reason: str) -> ValueError:
    """The one sentence for a file that cannot be used."""
    return ValueError(f"{path} cannot be read as an ONNX network ({reason}): copy it again from its pack.")


def tensor(message: memoryview) -> Tensor:
    """A TensorProto as a tensor of its own memory; floats of any width become float32.

    Raises:
        ValueError: the declared shape does not match the bytes, or the bytes lie in another file.
    """
    fields = _fields(message)
    shape = _integers(fields.get(1, []))
    kind = _one(fields, 2)
    if kind not in DTYPES:
        raise ValueError(f"a tensor of the unknown kind {kind}")
    if fields.get(14, [0])[-1] == 1:
        raise ValueError("its weights lie in another file")
    dtype, count = DTYPES[kind], math.prod(shape)
    if any(side < 0 for side in shape):
        raise ValueError(f"a tensor of the shape {shape}")
    if 9 in fields:
        flat = _from_bytes([fields[9][-1]], dtype)
    elif 4 in fields or 10 in fields:
        flat = _from_bytes(fields.get(4, fields.get(10, [])), dtype)
    else:
        flat = torch.tensor(_integers(fields.get(5, fields.get(7, []))), dtype=torch.int64).to(dtype)
    if len(flat) != count:
        raise ValueError(f"a tensor of the shape {shape} with {len(flat)} numbers")
    return (flat.float() if flat.is_floating_point() else flat).reshape(shape)


def _from_bytes(parts: list[memoryview], dtype: torch.dtype) -> Tensor:
    size = sum(len(part) for part in parts)
    if size % dtype.itemsize:
        raise ValueError(f"{size} bytes of {dtype}")
    # bytearray copies: what lies in the file is neither aligned nor ours.
    return torch.frombuffer(bytearray().join(parts), dtype=dtype) if size else torch.empty(0, dtype=dtype)


def _node(message: memoryview) -> Node:
    fields = _fields(message)
    domain = _text(fields.get(7, [b""])[-1])
    operator = _text(_one(fields, 4))
    return Node(
        operator if domain in ("", "ai.onnx") else f"{domain}.{operator}",
        _text(fields.get(3, [b""])[-1]),
        tuple(_text(name) for name in fields.get(1, [])),
        tuple(_text(name) for name in fields.get(2, [])),
        dict(_attribute(attribute) for attribute in fields.get(5, [])),
    )


def _attribute(message: memoryview) -> tuple[str, Any]:
    """Floats and texts, whole numbers, tensors, and lists of them. Graphs within attributes are left out."""
    fields = _fields(message)
    value: Any = None
    if 2 in fields:
        value = _from_bytes([fields[2][-1]], torch.float32).item()
    elif 3 in fields:
        value = _integers(fields[3])[-1]
    elif 4 in fields:
        value = _text(fields[4][-1])
    elif 5 in fields:
        value = tensor(fields[5][-1])
    elif 7 in fields:
        value = _from_bytes(fields[7], torch.float32).tolist()
    elif 8 in fields:
        value = _integers(fields[8])
    else:  # a writer may leave out what equals the kind's default
        value = {1: 0.0, 2: 0, 3: "", 6: [], 7: []}.get(fields.get(20, [0])[-1])
    return _text(_one(fields, 1)), value


def _port(message: memoryview) -> Port:
    fields = _fields(message)
    kind = _fields(_one(_fields(_one(fields, 2)), 1))
    sides = [_fields(side) for shape in kind.get(2, []) for side in _fields(shape).get(1, [])]
    sizes = [_integers(side.get(1, [0]))[-1] for side in sides]
    dtype = DTYPES.get(kind.get(1, [0])[-1])
    return Port(_text(_one(fields, 1)), tuple(size if size > 0 else None for size in sizes), dtype)


def _fields(message: memoryview) -> dict[int, list[Any]]:
    """A protobuf message by field number: ints for varints, memory for all else, in the order of the file."""
    found: dict[int, list[Any]] = {}
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        value, wire = None, key & 7
        if wire == 0:
            value, position = _varint(message, position)
        elif wire in (1, 2, 5):
            size = {1: 8, 5: 4}.get(wire)
            if size is None:
                size, position = _varint(message, position)
            if size > len(message) - position:
                raise ValueError("it ends too early")
            value, position = message[position : position + size], position + size
        else:
            raise ValueError("it does not follow the format")
        found.setdefault(key >> 3, []).append(value)
    return found


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise ValueError("it ends too early")
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (1 << 64) - 1, position
    raise ValueError("it does not follow the format")


def _integers(values: list[Any]) -> list[int]:
    """Repeated int64: one varint per field, or many packed into one."""
    numbers: list[int] = []
    for value in values:
        if isinstance(value, int):
            numbers.append(value)
            continue
        position = 0
        while position < len(value):
            number, position = _varint(value, position)
            numbers.append(number)
    return [number - (1 << 64) if number >= 1 << 63 else number for number in numbers]


def _one(fields: dict[int, list[Any]], number: int) -> Any:
    if number not in fields:
        raise ValueError("a part is missing")
    return fields[number][-1]


def _text(value: Any) -> str:
    return bytes(memoryview(value)).decode()
