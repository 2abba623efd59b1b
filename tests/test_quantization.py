"""quantization_config: what is read, what is refused by name, and how the default recipe is chosen."""

from __future__ import annotations

from typing import Any

import pytest

from salalocal.errors import BadConfig, UnsupportedFormat
from salalocal.fields import Fields
from salalocal.quantization import KINDS, Quantization, best_group_size, recipe

COLUMNS = dict.fromkeys(KINDS, 4096) | {"mlp.down_proj": 16384}
GOOD: dict[str, Any] = recipe("int4", COLUMNS, 128, zero_point=False).as_json()


def parse(values: dict[str, Any], columns: dict[str, int] = COLUMNS) -> Quantization:
    fields = Fields({"quantization_config": values}, "x/config.json").section("quantization_config")
    assert fields is not None
    quantization = Quantization.parse(fields)
    quantization.check_fits(columns, fields)
    return quantization


@pytest.mark.parametrize("format", ["int4", "int8"])
@pytest.mark.parametrize("zero_point", [False, True])
def test_what_is_written_is_what_is_read(format: Any, zero_point: bool) -> None:
    written = recipe(format, COLUMNS, 64, zero_point)
    assert parse(written.as_json()) == written


def test_the_released_model_in_the_default_recipe() -> None:
    chosen = dict(recipe("int4", COLUMNS, 128, zero_point=False).formats)
    assert [kind for kind in KINDS if chosen[kind] == "int8"] == [
        *("embed_tokens", "sparse.q_proj", "sparse.k_proj", "sparse.v_proj", "sparse.o_gate"),
        *("lightning.z_proj", "lm_head"),
    ]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"quant_method": "gptq"}, "quant_method is 'gptq'; such weights are not read, use the bf16 checkpoint"),
        ({"quant_method": None}, "quant_method is None"),
        ({"version": 2}, "packed weights of version 2; this salalocal reads version 1"),
        ({"actorder": True}, "'quantization_config.actorder' is not known to version 1"),
        ({"modules": {**GOOD["modules"], "mlp.router": "int4"}}, "modules.mlp.router' is not known to version 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_formats_and_versions_are_not_guessed_at(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedFormat, match=said):
        parse({**GOOD, **values})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"version": "1"}, "version is a string"),
        ({"group_size": 32}, "group_size is 32; 64 and 128 are possible"),
        ({"group_size": None}, "group_size is missing"),
        ({"zero_point": "yes"}, "zero_point is a string"),
        ({"modules": None}, "modules is missing"),
        ({"modules": ["int4"]}, "modules is a list"),
        ({"modules": {**GOOD["modules"], "lm_head": "int2"}}, "modules.lm_head is 'int2', known are: int4, int8, bf16"),
        ({"modules": {"lm_head": "int8"}}, "modules gives no format for embed_tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_fields_out_of_range_are_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(BadConfig, match=rf"x/config\.json: field quantization_config\.{said}"):
        parse({**GOOD, **values})


def test_it_must_fit_the_model() -> None:
    with pytest.raises(BadConfig, match=r"group_size is 128, but rows of mlp\.down_proj have 192 values"):
        parse(GOOD, {**COLUMNS, "mlp.down_proj": 192})
    without_head = {kind: columns for kind, columns in COLUMNS.items() if kind != "lm_head"}
    with pytest.raises(BadConfig, match="modules names 'lm_head', which the model does not have"):
        parse(GOOD, without_head)
    dense = {**GOOD, "modules": {**GOOD["modules"], "mlp.down_proj": "bf16"}}
    assert parse(dense, {**COLUMNS, "mlp.down_proj": 192}).format_of("mlp.down_proj") == "bf16"


def test_the_recipe_leaves_what_does_not_divide() -> None:
    chosen = recipe("int8", {"embed_tokens": 576, "mlp.down_proj": 1536}, 128, zero_point=False)
    assert chosen.formats == (("embed_tokens", "bf16"), ("mlp.down_proj", "int8"))


@pytest.mark.parametrize(
    ("columns", "size"),
    [([4096, 16384], 128), ([576, 1536], 64), ([512, 192], 64), ([100, 256], 128), ([100], 128), ([], 128)],
)
def test_best_group_size(columns: list[int], size: int) -> None:
    assert best_group_size(columns) == size
