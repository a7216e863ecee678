"""What a service learns at its start of the product whose keys it checks."""

import grpc
import pytest
from gatekey.v1 import check_service_pb2

from tests.support.server import PRODUCTS, Client, problem_of, read_example


async def get(client: Client, product: str) -> check_service_pb2.CheckConfig:
    """The check config of a product."""
    request = check_service_pb2.GetCheckConfigRequest(name=f"products/{product}/checkConfig")
    config: check_service_pb2.CheckConfig = await client.checks.GetCheckConfig(request, timeout=10)
    return config


@pytest.mark.parametrize("product", PRODUCTS)
async def test_a_token_that_may_only_check_reads_how_keys_are_presented(root: Client, product: str) -> None:
    spec = read_example(product)
    client = root.with_token(await root.create_token({f"products/{product}/checks": ["create"]}))
    try:
        config = await get(client, product)
        assert config.name == f"products/{product}/checkConfig"
        assert (config.credential, config.tenant_noun) == (spec.credential, spec.tenant_noun)
        assert list(config.collections) == list(spec.collections)
        assert await get(client, "-") == config
    finally:
        await client.close()


async def test_a_token_for_no_product_or_for_another_is_told_so(root: Client) -> None:
    client = root.with_token(await root.create_token({"products/heyoo/checks": ["create"]}))
    try:
        for product in ("tally", "parcle"):
            with pytest.raises(grpc.RpcError) as raised:
                await get(client, product)
            assert problem_of(raised.value).reason == "PRODUCT_NOT_FOUND"
    finally:
        await client.close()
    client = root.with_token(await root.create_token({"products/heyoo/tenants": ["*"]}))
    try:
        for product in ("heyoo", "-"):
            with pytest.raises(grpc.RpcError) as raised:
                await get(client, product)
            assert problem_of(raised.value).reason == "PERMISSION_MISSING"
    finally:
        await client.close()


@pytest.mark.parametrize(
    "grants",
    [
        {"products": ["create"]},
        {"products/*/checks": ["create"]},
        {"products/heyoo/checks": ["create"], "products/tally": ["*"]},
    ],
    ids=str,
)
async def test_a_token_for_several_products_names_one(root: Client, grants: dict[str, list[str]]) -> None:
    client = root.with_token(await root.create_token(grants))
    try:
        with pytest.raises(grpc.RpcError) as raised:
            await get(client, "-")
        assert problem_of(raised.value).fields == {"name": "PRODUCT_REQUIRED"}
        assert (await get(client, "heyoo")).name == "products/heyoo/checkConfig"
    finally:
        await client.close()


@pytest.mark.parametrize(
    "name", ["", "products/heyoo", "products/heyoo/checkConfigs", "products//checkConfig", "x/heyoo/checkConfig"]
)
async def test_other_names_are_refused(root: Client, name: str) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        await root.checks.GetCheckConfig(check_service_pb2.GetCheckConfigRequest(name=name))
    assert list(problem_of(raised.value).fields) == ["name"]
