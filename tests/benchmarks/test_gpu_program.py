"""What is read off an optimised program's text, and that programs compile for a card."""

import json
import os
import pathlib
import sys

import pytest

from benchmarks import gpu_roofline

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Three turns of a loop around a product; a convolution and its two gradients; a large sum.
TEXT = """HloModule jit_f, is_scheduled=true

%fused_add (p.0: f32[1024,4096]) -> f32[1024,4096] {
  %p.0 = f32[1024,4096]{1,0} parameter(0)
  ROOT %add.1 = f32[1024,4096]{1,0} add(%p.0, %p.0)
}

%gemm_computation (a.0: bf16[8,16], b.0: bf16[16,4]) -> bf16[8,4] {
  %a.0 = bf16[8,16]{1,0} parameter(0)
  %b.0 = bf16[16,4]{1,0} parameter(1)
  ROOT %dot.1 = bf16[8,4]{1,0} dot(%a.0, %b.0), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (t.0: (s32[], bf16[8,16], bf16[16,4])) -> (s32[], bf16[8,16], bf16[16,4]) {
  %t.0 = (s32[], bf16[8,16]{1,0}, bf16[16,4]{1,0}) parameter(0)
  %a.1 = bf16[8,16]{1,0} get-tuple-element(%t.0), index=1
  %b.1 = bf16[16,4]{1,0} get-tuple-element(%t.0), index=2
  %gemm.1 = bf16[8,4]{1,0} fusion(%a.1, %b.1), kind=kCustom, calls=%gemm_computation, \
backend_config={"fusion_backend_config":{"kind":"__triton_nested_gemm_fusion"}}
  ROOT %out.1 = (s32[], bf16[8,16]{1,0}, bf16[16,4]{1,0}) tuple(%i.1, %a.1, %b.1)
}

ENTRY %main (x.1: bf16[2,6,6,3], k.1: bf16[5,3,3,3]) -> bf16[2,6,6,3] {
  %x.1 = bf16[2,6,6,3]{3,2,1,0} parameter(0)
  %k.1 = bf16[5,3,3,3]{3,2,1,0} parameter(1)
  %large.1 = f32[1024,4096]{1,0} parameter(2)
  %sum.1 = f32[1024,4096]{1,0} fusion(%large.1), kind=kLoop, calls=%fused_add
  %conv.1 = (bf16[2,6,6,5]{3,2,1,0}, u8[0]{0}) custom-call(%x.1, %k.1), \
window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convForward"
  %y.1 = bf16[2,6,6,5]{3,2,1,0} get-tuple-element(%conv.1), index=0
  %conv.2 = (bf16[2,6,6,3]{3,2,1,0}, u8[0]{0}) custom-call(%y.1, %k.1), \
window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convBackwardInput"
  %conv.3 = (bf16[5,3,3,3]{3,2,1,0}, u8[0]{0}) custom-call(%x.1, %y.1), \
window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convBackwardFilter"
  %start.1 = (s32[], bf16[8,16]{1,0}, bf16[16,4]{1,0}) tuple(%zero.1, %a.2, %b.2)
  %while.1 = (s32[], bf16[8,16]{1,0}, bf16[16,4]{1,0}) while(%start.1), condition=%less, \
body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %dx.1 = bf16[2,6,6,3]{3,2,1,0} get-tuple-element(%conv.2), index=0
}
"""
CONVOLUTION = 2 * (2 * 6 * 6 * 5) * (3 * 3 * 3)


def test_kernels_are_counted_with_their_operations_bytes_and_turns():
    rows = {row["kind"]: row for row in gpu_roofline.table(list(gpu_roofline.kernels(TEXT)))}
    for way in ("Forward", "BackwardInput", "BackwardFilter"):
        row = rows.pop(f"__cudnn$conv{way}")
        assert (row["runs"], row["operations"]) == (1, CONVOLUTION)
        assert row["bytes"] == 2 * (2 * 6 * 6 * 3 + 5 * 27 + 2 * 6 * 6 * 5)
        assert row["seconds_at_best"] == gpu_roofline.LAUNCH
    product = rows.pop("fusion of a matrix product")
    assert (product["runs"], product["operations"]) == (3, 3 * 2 * 8 * 16 * 4)
    assert product["bytes"] == 3 * 2 * (8 * 16 + 16 * 4 + 8 * 4)
    large = rows.pop("fusion, large")
    assert (large["runs"], large["operations"], large["bytes"]) == (1, 0, 2 * 4 * 1024 * 4096)
    assert large["seconds_at_best"] == large["bytes"] / gpu_roofline.BANDWIDTH
    assert not rows


def test_a_kernel_takes_the_longest_of_its_operations_its_bytes_and_a_launch():
    assert gpu_roofline.Kernel("a", 7, 10**12, 1).seconds == 10**12 / gpu_roofline.MATRIX_RATE
    assert gpu_roofline.Kernel("a", 7, 1, 10**9).seconds == 10**9 / gpu_roofline.BANDWIDTH
    assert gpu_roofline.seconds([gpu_roofline.Kernel("a", 7, 1, 1)]) == 7 * gpu_roofline.LAUNCH


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("window={size=3x3", "feature_group_count=4, window={size=3x3", "in 4 groups"),
        ("%x.1 = bf16", "%x.1 = f32", "a convolution of bf16, f32"),
        (
            "(bf16[2,6,6,5]{3,2,1,0}, u8[0]{0}) custom-call(%x.1, %k.1), window={size=3x3 "
            'pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"',
            "bf16[2,6,6,5]{3,2,1,0} convolution(%x.1, %k.1), dim_labels=b01f_o01i->b01f",
            "cuDNN does not compute",
        ),
    ],
)
def test_slow_convolutions_are_told_of(old, new, message):
    assert gpu_roofline.faults(TEXT, bfloat16=True) == []
    assert old in TEXT
    found = gpu_roofline.faults(TEXT.replace(old, new), bfloat16=True)
    assert found and all(message in line for line in found)
    if "f32" in message:
        assert gpu_roofline.faults(TEXT.replace(old, new), bfloat16=False) == []


@pytest.mark.parametrize("members", [1, 2])
def test_a_training_step_becomes_cudnn_s_convolutions_in_bfloat16(members, children, tmp_path):
    """Forward, and the gradients in inputs and kernels; at every other size it is the same."""
    pytest.importorskip("jax_cuda12_plugin", reason="needs the extra gpu-compile")
    flags = f"--members {members} --width 8 --batch-sizes 16 --attack-steps 2".split()
    output = tmp_path / "program.json"
    command = [sys.executable, "-m", "benchmarks.gpu_program", *flags, "--output", str(output)]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    result = children.run(command, cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stderr
    (case,) = json.loads(output.read_text())["cases"]
    kinds = {row["kind"]: row["runs"] for row in case["kinds"]}
    assert case["faults"] == [] and case["operations"] > 0
    for way in ("Forward", "BackwardInput", "BackwardFilter"):
        assert any(way in kind for kind in kinds), kinds
