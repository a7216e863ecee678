"""`ProductService` on the wire."""

from gatekey.core.entities import Deleted, Product, UnreadableProduct
from gatekey.core.errors import InvalidRequest, Violation
from gatekey.core.names import ProductName
from gatekey.v1 import product_service_pb2 as pb
from gatekey.wire.conversions import write_deleted, write_time
from gatekey.wire.specs import read_spec, refuse_too_large, write_spec

from gatekey_server.commands import products
from gatekey_server.rpc.context import Call
from gatekey_server.rpc.wire import paging
from gatekey_server.store import pauses
from gatekey_server.store.database import Database

_UNCHANGED = "gatekey-unchanged"

# ruff: noqa: N802 - methods are named and described by the protocol definition


class ProductServicer:
    """Manages products."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ApplyProduct(self, request: pb.ApplyProductRequest, call: Call) -> pb.Product:
        if not request.HasField("spec"):
            raise InvalidRequest.at("spec", "SPEC_REQUIRED", "a spec is required")
        try:
            products.authorise_application(call.caller, request.spec.product)
            # Each of these steps takes some milliseconds for a large spec.
            refuse_too_large(request.spec)
            violations: list[Violation] = []
            await pauses.pause()
            spec = read_spec(request.spec, violations)
            await pauses.pause()
            product = await products.apply_product(
                self._database,
                call.mutation(request, _write),
                spec,
                request.etag,
                force=request.force,
                violations=violations,
            )
        except InvalidRequest as error:
            raise error.below("spec") from None
        await pauses.pause()
        if product.unchanged:
            call.trailers.append((_UNCHANGED, "true"))
        return _write(product)

    async def GetProduct(self, request: pb.GetProductRequest, call: Call) -> pb.Product:
        name = ProductName.parse(request.name, "name")
        return _write(await products.get_product(self._database, call.caller, name))

    async def ListProducts(self, request: pb.ListProductsRequest, call: Call) -> pb.ListProductsResponse:
        after = paging.read_token(request, request.page_token) or ""
        response = pb.ListProductsResponse()
        page = paging.PageWriter(response.products, _write, request.page_size)
        following = await products.list_products(self._database, call.caller, after, page)
        response.next_page_token = paging.write_token(request, following)
        return response

    async def DeleteProduct(self, request: pb.DeleteProductRequest, call: Call) -> pb.DeleteProductResponse:
        name = ProductName.parse(request.name, "name")
        mutation = call.mutation(request, _write_deleted)
        deleted = await products.delete_product(self._database, mutation, name, request.etag, force=request.force)
        return _write_deleted(deleted)


def _write_deleted(deleted: Deleted) -> pb.DeleteProductResponse:
    return pb.DeleteProductResponse(deleted=write_deleted(deleted))


def _write(product: Product | UnreadableProduct) -> pb.Product:
    return pb.Product(
        name=str(product.name),
        # A product whose spec cannot be read has none here, so that a list can still be returned.
        spec=write_spec(product.compiled.spec) if isinstance(product, Product) else None,
        spec_version=product.spec_version,
        create_time=write_time(product.create_time),
        update_time=write_time(product.update_time),
        etag=product.etag,
    )
