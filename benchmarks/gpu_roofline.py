"""What an optimised program for a GPU does, read off its text: kernels, operations, bytes, time.

One instruction outside of a fusion is one kernel. Its time at best is the longest of three: its
operations at the rate of matrix products, its arguments and results through the memory, and a
launch. No kernel is that fast; a program that takes twice as long at best is slower all the same.
"""

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

MATRIX_RATE = 600e12  # bfloat16 operations per second that large products reach on an H100
BANDWIDTH = 3.0e12  # bytes per second
LAUNCH = 2e-6  # seconds
LARGE = 4e6  # bytes that a large kernel moves

_SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_SIZES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_NO_KERNEL = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
_INSTRUCTION = re.compile(r"(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
_ARRAY = re.compile(r"\b(" + "|".join(_SIZES) + r")\[([\d,]*)\]")


class Array(NamedTuple):
    """Type and shape of an array."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """What it takes of the memory."""
        return _SIZES[self.dtype] * math.prod(self.shape)


class Instruction(NamedTuple):
    """One line of a program.

    Attributes:
      name: its own.
      kind: operation code.
      results: arrays that it makes.
      arguments: names of the instructions whose results it reads.
      line: what stands behind these, attributes and settings.
    """

    name: str
    kind: str
    results: tuple[Array, ...]
    arguments: tuple[str, ...]
    line: str

    def attribute(self, pattern: str) -> str | None:
        """The first group of a pattern in the line."""
        found = re.search(pattern, self.line)
        return found[1] if found else None


class Kernel(NamedTuple):
    """One kernel and how often it runs.

    Attributes:
      kind: what sort of kernel it is.
      runs: how often, the turns of the loops around it counted.
      operations: of multiplications and additions in products and convolutions, of one run.
      num_bytes: of arguments and results, of one run.
    """

    kind: str
    runs: int
    operations: int
    num_bytes: int

    @property
    def seconds(self) -> float:
        """Of one run, at best."""
        return max(self.operations / MATRIX_RATE, self.num_bytes / BANDWIDTH, LAUNCH)


Program = dict[str, dict[str, Instruction]]


def parse(text: str) -> tuple[Program, str]:
    """Computations of an optimised program by name, instructions by name; and the entry's name."""
    found, entry, current = {}, "", None
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current = found.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (match := _INSTRUCTION.match(line.strip())):
            name, result, kind, rest = match.groups()
            arguments, _, behind = rest.partition(")")
            names = tuple(re.findall(r"%([\w.\-]+)", arguments))
            current[name] = Instruction(name, kind, _arrays(result), names, behind)
    return found, entry


def kernels(text: str) -> Iterator[Kernel]:
    """Every kernel of an optimised program."""
    program, entry = parse(text)
    yield from _kernels(program, entry, 1)


def _kernels(program, name, runs):
    computation = program[name]
    for each in computation.values():
        inner = each.attribute(r"(?:body|to_apply|calls)=%?([\w.\-]+)")
        if each.kind == "while":
            turns = each.attribute(r'known_trip_count":\{"n":"(\d+)"')
            yield from _kernels(program, inner, runs * int(turns or 1))
        elif each.kind == "call":
            yield from _kernels(program, inner, runs)
        elif each.kind == "conditional":
            # Of several branches one runs; the dearest is what it takes at best to be sure.
            branches = [list(_kernels(program, branch, runs)) for branch in _branches(each)]
            yield from max(branches, key=seconds, default=[])
        elif each.kind not in _NO_KERNEL:
            arrays = [
                array
                for a in each.arguments
                if a in computation
                for array in computation[a].results
            ]
            moved = sum(array.num_bytes for array in (*each.results, *arrays))
            yield Kernel(_sort(each, moved), runs, _operations(program, computation, each), moved)


def seconds(of: list[Kernel]) -> float:
    """Time of all kernels at best."""
    return sum(each.runs * each.seconds for each in of)


def faults(text: str, *, bfloat16: bool) -> list[str]:
    """Convolutions that no fast kernel computes, one line each.

    Those in groups, those that cuDNN does not get, and with `bfloat16` those in another type.
    """
    program, _ = parse(text)
    found = []
    for computation in program.values():
        for each in computation.values():
            target = each.attribute(r'custom_call_target="([^"]+)"') or ""
            is_cudnn = each.kind == "custom-call" and "conv" in target.lower()
            if not (is_cudnn or each.kind == "convolution"):
                continue
            groups = int(each.attribute(r"(?:feature|batch)_group_count=(\d+)") or 1)
            types = {array.dtype for a in each.arguments for array in computation[a].results[:1]}
            if groups > 1:
                found.append(f"{each.name}: a convolution in {groups} groups")
            if not is_cudnn:
                found.append(f"{each.name}: a convolution that cuDNN does not compute")
            if bfloat16 and not types <= {"bf16"}:
                found.append(f"{each.name}: a convolution of {', '.join(sorted(types))}")
    return found


def table(of: list[Kernel]) -> list[dict]:
    """One row for each kind of kernel, the dearest first."""
    rows = collections.defaultdict(list)
    for each in of:
        rows[each.kind].append(each)
    return [
        {
            "kind": kind,
            "runs": sum(each.runs for each in some),
            "operations": sum(each.runs * each.operations for each in some),
            "bytes": sum(each.runs * each.num_bytes for each in some),
            "seconds_at_best": seconds(some),
        }
        for kind, some in sorted(rows.items(), key=lambda item: -seconds(item[1]))
    ]


def _arrays(text):
    return tuple(
        Array(dtype, tuple(int(size) for size in shape.split(",") if size))
        for dtype, shape in _ARRAY.findall(text)
    )


def _branches(instruction):
    listed = instruction.attribute(r"branch_computations=\{([^}]*)\}")
    if listed is not None:
        return re.findall(r"%?([\w.\-]+)", listed)
    return re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", instruction.line)


def _sort(instruction, moved):
    if instruction.kind == "custom-call":
        return instruction.attribute(r'custom_call_target="([^"]+)"') or "custom-call"
    if instruction.kind != "fusion":
        return instruction.kind
    if "gemm" in (instruction.attribute(r'"fusion_backend_config":\{"kind":"([^"]+)"') or ""):
        return "fusion of a matrix product"
    return "fusion, large" if moved > LARGE else "fusion, small"


def _operations(program, computation, instruction):
    """Of products and convolutions, those in a fusion included."""
    if instruction.kind == "fusion":
        inner = program[instruction.attribute(r"calls=%?([\w.\-]+)")]
        return sum(_operations(program, inner, each) for each in inner.values())
    if instruction.kind == "dot":
        return _of_product(computation, instruction)
    target = instruction.attribute(r'custom_call_target="([^"]+)"') or instruction.kind
    if "conv" in target and instruction.attribute(r"dim_labels=(\S+)"):
        return _of_convolution(computation, instruction, target)
    return _of_gemm(computation, instruction) if "gemm" in target else 0


def _of_product(computation, instruction):
    left = computation[instruction.arguments[0]].results[0]
    contracted = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
    length = math.prod(left.shape[int(axis)] for axis in contracted.split(",") if axis)
    return 2 * math.prod(instruction.results[0].shape) * length


def _of_gemm(computation, instruction):
    """Of cuBLAS, which names its axes in its settings."""
    left = computation[instruction.arguments[0]].results[0]
    contracted = instruction.attribute(r'lhs_contracting_dimensions":\[([^\]]*)\]') or ""
    length = math.prod(left.shape[int(axis)] for axis in re.findall(r"\d+", contracted))
    return 2 * math.prod(instruction.results[0].shape) * length


def _of_convolution(computation, instruction, target):
    """Every output pixel takes the whole kernel: `2 (outputs / features) (elements of kernel)`."""
    first, second = (computation[name].results[0] for name in instruction.arguments[:2])
    result = instruction.results[0]
    outputs, kernel = result, second
    if target.endswith("BackwardInput"):
        outputs, kernel = first, second
    elif target.endswith("BackwardFilter"):
        outputs, kernel = second, result
    of_kernel = (instruction.attribute(r"dim_labels=\w+?_(\w+)->") or "").index("o")
    return 2 * math.prod(outputs.shape) // kernel.shape[of_kernel] * math.prod(kernel.shape)
