"""Packed matrices times few tokens: the layout in planes, the kernels against float64, and what they take of a card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from gpu.packed_matrices import FORMATS, error, numbers, packed
from gpu.triton_gate import SHARED_BYTES, assert_fits, launches, main, run_interpreted

from salalocal_kernels.gpu import packed_linear as gpu
from salalocal_kernels.ref import packed_linear as ref
from salalocal_kernels.ref.planes import Planes, plane_steps, plane_values, to_planes
from salalocal_quant import Int4Weight, Int8Weight


def test_words_of_4_bits_byte_by_byte() -> None:
    # Group of 64: code k % 16 at element k. Word 0 of the planes holds elements 0, 8, ..., 56: codes 0, 8, 0, 8, ...
    natural = torch.tensor([[0x76543210, -0x01234568] * 4], dtype=torch.int32)
    assert natural.view(torch.uint8)[0, :8].tolist() == [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]
    planes = to_planes(natural, torch.ones(1, 1, dtype=torch.bfloat16), None, 64)
    found = planes.words.view(torch.uint8)[0].tolist()
    assert found == [16 * (word + 8) + word for word in range(8) for _ in range(4)]


def test_words_of_8_bits_byte_by_byte() -> None:
    # Group of 64: word i holds elements i, 16 + i, 32 + i, 48 + i, each plus 128.
    natural = torch.arange(-32, 32, dtype=torch.int8)[None]
    planes = to_planes(natural, torch.ones(1, 1, dtype=torch.bfloat16), None, 64)
    found = planes.words.view(torch.uint8)[0].tolist()
    assert found == [96 + i + 16 * j for i in range(16) for j in range(4)]


@pytest.mark.parametrize("form", FORMATS)
def test_planes_hold_the_values_of_the_file(form: str) -> None:
    bits, group_size, has_zeros = FORMATS[form]
    matrix = numbers(5, 3 * group_size)
    weight: Int4Weight | Int8Weight
    if bits == 4:
        weight = Int4Weight.quantize(matrix, group_size, torch.float32, zero_point=has_zeros)
    else:
        weight = Int8Weight.quantize(matrix, group_size, torch.float32)
    planes = to_planes(weight.qweight, weight.scales, weight.zeros, group_size)
    assert planes.shape == weight.shape
    assert planes.nbytes == weight.nbytes
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(plane_values(planes, dtype).double(), weight.unpack().data.double())
    assert torch.equal(plane_values(planes, torch.bfloat16), weight.unpack().data.bfloat16())
    assert plane_steps(planes).abs().max() <= (127 if bits == 8 else 15)


def test_kernels_in_the_interpreter() -> None:
    run_interpreted(__file__)


def check_every_format_against_float64() -> None:
    cases = [(form, columns, torch.float32) for form, (_, group, _) in FORMATS.items() for columns in (group, 768)]
    cases += [("int4-128", 5120, torch.float32), ("int8-64", 2560, torch.float32)]
    cases += [(form, 768, torch.float16) for form in ("int4-64-zeros", "int4-128", "int8-128")]
    for form, columns, dtype in cases:
        matrix, x = packed(11, columns, form), numbers(2, columns, dtype=dtype)
        (found,) = gpu.packed_linear(x, (matrix,))
        (exact,) = ref.packed_linear(x.double(), (matrix,))
        limit = 1e-6 if dtype == torch.float32 else 4e-4
        assert found.dtype == dtype
        assert error(found, exact) < limit, (form, columns, dtype)


def check_matrices_of_different_formats_in_one_launch() -> None:
    for forms in (
        ("int8-128", "int4-128", "int8-128", "int4-128"),
        ("int4-128-zeros", "int8-128", "int4-128-zeros"),
        ("int8-64", "int4-64-zeros"),
        ("int4-64", "int4-64", "int4-64", "int4-64"),
        ("int8-128", "int8-128", "int8-128"),
    ):
        matrices = [packed(rows, 256, form, seed=rows) for rows, form in zip((9, 1, 8, 5), forms, strict=False)]
        for x in (numbers(256), numbers(2, 1, 512)[..., ::2], numbers(0, 256)):
            with mock.patch.object(gpu, "multiprocessors", return_value=3):
                found = gpu.packed_linear(x, matrices)
            exact = ref.packed_linear(x.double(), matrices)
            assert [part.shape for part in found] == [part.shape for part in exact]
            assert x.numel() == 0 or all(error(a, b) < 1e-6 for a, b in zip(found, exact, strict=True)), forms


def check_silu_mul() -> None:
    for gate_form, up_form in (("int4-128", "int4-128"), ("int8-64", "int4-64-zeros"), ("int8-128", "int8-128")):
        gate, up = packed(19, 384, gate_form, seed=1), packed(19, 384, up_form, seed=2)
        for x in (numbers(2, 384) / 50, numbers(0, 384)):
            found, exact = gpu.packed_silu_mul(x, gate, up), ref.packed_silu_mul(x.double(), gate, up)
            assert found.shape == exact.shape
            assert x.numel() == 0 or error(found, exact) < 2e-6, (gate_form, up_form)


def check_bfloat16_way_of_subtracting_the_zero_points() -> None:
    # The sums of a bfloat16 run before their rounding, which the result's own would hide: float32 x, EXACT off. An x of
    # 500 beside others of 1 meets every code, also the middle one, whose product should vanish.
    real = gpu._packed_linear_kernel

    class Inexact:
        def __getitem__(self, grid: tuple[int, ...]) -> object:
            return lambda *args, **kwargs: real[grid](*args, **{**kwargs, "EXACT": False})

    for form in FORMATS:
        matrix, x = packed(16, 768, form), numbers(1, 768)
        with mock.patch.object(gpu, "_packed_linear_kernel", Inexact()):
            (found,) = gpu.packed_linear(x, (matrix,))
            assert error(found, ref.packed_linear(x.double(), (matrix,))[0]) < 1e-5, form
            x[0, 77] = 500
            (found,) = gpu.packed_linear(x, (matrix,))
            assert error(found, ref.packed_linear(x.double(), (matrix,))[0]) < 1e-5, form


class Widened:
    """A kernel that stores float32, so that the rounding of the result does not hide that of its sums."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.out = torch.empty(0)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def run(x: torch.Tensor, out: torch.Tensor, *args: object, **kwargs: object) -> None:
            self.out = torch.full(out.shape, float("nan"))
            self.kernel[grid](x, self.out, *args, **kwargs)

        return run


def check_tensor_cores() -> None:
    # An x of 500 beside others of 1 meets every code, also the middle one, whose product should vanish.
    linear, silu_mul = Widened(gpu._packed_linear_kernel), Widened(gpu._packed_silu_mul_kernel)
    cases = [
        (form, columns, rows) for form in ("int4-128", "int4-128-zeros") for columns in (4096, 5120) for rows in (1, 16)
    ]
    cases += [("int4-128", 896, 11), ("int4-128", 4096, 6), ("int4-128", 8192, 3)]
    with (
        mock.patch.object(gpu, "_MMA", gpu.Mma()),
        mock.patch.object(gpu, "_is_timed", return_value=True),
        mock.patch.object(gpu, "_packed_linear_kernel", linear),
        mock.patch.object(gpu, "_packed_silu_mul_kernel", silu_mul),
    ):
        for form, columns, rows in cases:
            matrix, x = packed(rows, columns, form), numbers(2, columns, dtype=torch.bfloat16)
            x[1, 77] = 500
            gpu.packed_linear(x, (matrix,))
            (exact,) = ref.packed_linear(x.double(), (matrix,))
            assert error(linear.out[:1], exact[:1]) < 5e-6, (form, columns, rows)
            assert rows == 1 or error(linear.out[1:], exact[1:]) < 2e-5, (form, columns, rows)
        x = numbers(2, 4096, dtype=torch.bfloat16)
        mixed = [packed(9, 4096, form, seed=3) for form in ("int8-128", "int4-128", "int4-128")]
        gpu.packed_linear(x, mixed)
        assert error(linear.out, torch.cat(ref.packed_linear(x.double(), mixed), 1)) < 5e-6
        x /= 50
        for rows in (8, 19):
            gate, up = packed(rows, 4096, "int4-128", seed=1), packed(rows, 4096, "int4-128", seed=2)
            gpu.packed_silu_mul(x, gate, up)
            assert error(silu_mul.out, ref.packed_silu_mul(x.double(), gate, up)) < 1e-5, rows


def check_what_tensor_cores_are_not_for() -> None:
    with mock.patch.object(gpu, "_MMA", gpu.Mma()), mock.patch.object(gpu, "_is_timed", return_value=True):
        for form, dtype in (("int4-64", torch.bfloat16), ("int4-128", torch.float32), ("int8-128", torch.bfloat16)):
            assert gpu._mma(numbers(1, 4096, dtype=dtype), (packed(8, 4096, form),), 8) == {"MMA": None}
        assert gpu._mma(numbers(1, 512, dtype=torch.bfloat16), (packed(8, 512, "int4-128"),), 8) == {"MMA": None}
        gate, up = packed(9, 4096, "int4-128"), packed(9, 4096, "int8-128")
        x = numbers(1, 4096) / 50
        assert error(gpu.packed_silu_mul(x, gate, up), ref.packed_silu_mul(x.double(), gate, up)) < 2e-6


def models() -> dict[str, tuple[int, Sequence[Planes]]]:
    """Launches of a decode step by name: K, and the matrices that share an input."""

    def matrices(columns: int, *parts: tuple[int, str]) -> tuple[int, Sequence[Planes]]:
        return columns, [packed(rows, columns, form, "meta") for rows, form in parts]

    four, eight = "int4-128", "int8-128"
    return {
        "lightning": matrices(4096, *[(4096, four)] * 3, (4096, eight)),
        "sparse": matrices(4096, (4096, eight), (256, eight), (256, eight), (4096, eight)),
        "o": matrices(4096, (4096, four)),
        "o-64-zeros": matrices(4096, (4096, "int4-64-zeros")),
        "down": matrices(16384, (4096, four)),
        "head": matrices(4096, (73448, eight)),
        "embedded lightning": matrices(512, *[(512, "int4-64")] * 3, (512, "int8-64")),
        "embedded narrow": matrices(512, (64, "int4-64-zeros")),
        "embedded down": matrices(768, (512, four)),
    }


@pytest.mark.parametrize("name", models())
def test_compiles_for_every_card(name: str) -> None:
    columns, matrices = models()[name]
    with mock.patch.object(gpu, "multiprocessors", return_value=132):
        x = torch.empty(1, columns, dtype=torch.bfloat16, device="meta")
        (launch,) = launches(lambda: gpu.packed_linear(x, matrices))
    for capability in SHARED_BYTES if name in ("lightning", "down") else (86, 90):
        found = assert_fits(launch, capability)
        # Words and x are read as wide as the layout allows; a narrower read means that Triton chose other threads.
        if columns >= 4096:
            words = [line for line in found.ptx.splitlines() if "ld.global" in line and "evict_first" in line]
            assert words
            assert all(".v4.b32" in line for line in words)


def test_float32_and_the_feed_forward_compile() -> None:
    with mock.patch.object(gpu, "multiprocessors", return_value=132):
        x = torch.empty(1, 4096, dtype=torch.bfloat16, device="meta")
        gate = packed(16384, 4096, "int4-128", "meta")
        (feed_forward,) = launches(lambda: gpu.packed_silu_mul(x, gate, gate))
        (wide,) = launches(lambda: gpu.packed_linear(x.float(), (packed(4096, 4096, "int4-128", "meta"),)))
    for capability in (86, 90):
        assert_fits(feed_forward, capability)
        assert_fits(wide, capability)


TENSOR_CORES = {
    "plain": gpu.Mma(),
    "ahead": gpu.Mma(ahead=256, policy=""),
    "ahead of all": gpu.Mma(ahead=128, reach=3),
}


@pytest.mark.parametrize("name", TENSOR_CORES)
def test_tensor_cores_compile(name: str) -> None:
    x = torch.empty(1, 4096, dtype=torch.bfloat16, device="meta")
    gate = packed(16384, 4096, "int4-128", "meta")
    for capability in SHARED_BYTES if name == "ahead of all" else (86, 90):
        is_early = capability >= 90
        early = {"IS_EARLY": True, "launch_pdl": True} if is_early else {"IS_EARLY": False}
        with (
            mock.patch.object(gpu, "_MMA", TENSOR_CORES[name]),
            mock.patch.object(gpu, "_is_timed", return_value=True),
            mock.patch.object(gpu, "multiprocessors", return_value=132),
            mock.patch.object(gpu, "capability", return_value=capability),
            mock.patch.object(gpu, "overlapped", return_value=early),
        ):
            found = launches(lambda: gpu.packed_silu_mul(x, gate, gate))
            for launch in ("lightning", "o", "down"):
                columns, matrices = models()[launch]
                token = torch.empty(1, columns, dtype=torch.bfloat16, device="meta")
                found += launches(lambda token=token, matrices=matrices: gpu.packed_linear(token, matrices))
        for one in found:
            ptx = assert_fits(one, capability).ptx
            assert ptx.count("mma.sync") == 40
            assert ("cp.async.bulk.prefetch" in ptx) == (is_early and TENSOR_CORES[name].ahead > 0)


@pytest.mark.gpu
@pytest.mark.parametrize("zeros", ["", "-zeros"])
@pytest.mark.parametrize("name", TENSOR_CORES)
@pytest.mark.parametrize("shape", [(32768, 4096), (4096, 16384), (4096, 4096), (4099, 1024)], ids=str)
def test_tensor_cores_on_the_card(shape: tuple[int, int], name: str, zeros: str) -> None:
    matrix, x = packed(*shape, f"int4-128{zeros}", "cuda"), numbers(1, shape[1], dtype=torch.bfloat16, device="cuda")
    (exact,) = ref.packed_linear(x.double(), (matrix,))
    (usual,) = ref.packed_linear(x, (matrix,))
    with (
        mock.patch.object(gpu, "_MMA", TENSOR_CORES[name]),
        mock.patch.object(gpu, "_is_timed", return_value=True),
    ):
        (found,) = gpu.packed_linear(x, (matrix,))
        product = gpu.packed_silu_mul(x / 50, matrix, matrix)
    assert error(found, exact) <= 2 * error(usual, exact)
    exact, usual = ref.packed_silu_mul((x / 50).double(), matrix, matrix), ref.packed_silu_mul(x / 50, matrix, matrix)
    assert error(product, exact) <= 2 * error(usual, exact)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "shape", [(32768, 4096), (4096, 16384), (4096, 4096), (73448, 4096), (64, 512), (512, 768)], ids=str
)
def test_full_size(shape: tuple[int, int], form: str, dtype: torch.dtype) -> None:
    matrix, x = packed(*shape, form, "cuda"), numbers(1, shape[1], dtype=dtype, device="cuda")
    (exact,) = ref.packed_linear(x.double(), (matrix,))
    (usual,) = ref.packed_linear(x, (matrix,))
    (found,) = gpu.packed_linear(x, (matrix,))
    assert error(found, exact) <= 2 * error(usual, exact)


@pytest.mark.gpu
def test_merged_launches_on_the_card() -> None:
    x = numbers(1, 4096, dtype=torch.bfloat16, device="cuda")
    matrices = [
        packed(rows, 4096, form, "cuda", rows)
        for rows, form in ((4096, "int4-128"), (256, "int8-128"), (999, "int4-128"), (4096, "int8-128"))
    ]
    for found, exact, usual in zip(
        gpu.packed_linear(x, matrices),
        ref.packed_linear(x.double(), matrices),
        ref.packed_linear(x, matrices),
        strict=True,
    ):
        assert error(found, exact) <= 2 * error(usual, exact)
    gate, up = packed(16384, 4096, "int4-128", "cuda", 1), packed(16384, 4096, "int4-128", "cuda", 2)
    x = x / 100
    exact, usual = ref.packed_silu_mul(x.double(), gate, up), ref.packed_silu_mul(x, gate, up)
    assert error(gpu.packed_silu_mul(x, gate, up), exact) <= 2 * error(usual, exact)


@pytest.mark.gpu
def test_offsets_past_two_to_the_31() -> None:
    # 17 GB of words; the last rows count.
    rows, columns = (1 << 20) + 512, 16384
    form = "int8-128"
    words = torch.zeros(rows, columns // 4, dtype=torch.int32, device="cuda")
    scales = torch.ones(rows, columns // 128, dtype=torch.bfloat16, device="cuda")
    tail = packed(512, columns, form, "cuda")
    words[-512:], scales[-512:] = tail.words, tail.scales
    x = numbers(1, columns, dtype=torch.bfloat16, device="cuda")
    (found,) = gpu.packed_linear(x, (Planes(words, scales, None, 8, 128),))
    (exact,) = ref.packed_linear(x.double(), (tail,))
    assert error(found[:, -512:], exact) < 5e-3


if __name__ == "__main__":
    main(globals())
