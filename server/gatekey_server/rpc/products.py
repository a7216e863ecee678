"""`ProductService` on the wire."""

from gatekey.v1 import product_service_pb2 as pb

from gatekey_server.commands import products
from gatekey_server.domain.entities import Deleted, Product
from gatekey_server.domain.errors import InvalidRequest, Violation
from gatekey_server.domain.names import ProductName
from gatekey_server.rpc import paging
from gatekey_server.rpc.edge import Call
from gatekey_server.rpc.specs import read_spec, write_spec
from gatekey_server.rpc.values import write_deleted, write_time
from gatekey_server.store.database import Database

# ruff: noqa: N802 - methods are named and described by the protocol definition


class ProductServicer:
    """Manages products."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ApplyProduct(self, request: pb.ApplyProductRequest, call: Call) -> pb.Product:
        if not request.HasField("spec"):
            raise InvalidRequest.at("spec", "SPEC_REQUIRED", "a spec is required")
        violations: list[Violation] = []
        spec = read_spec(request.spec, violations)
        try:
            product = await products.apply_product(
                self._database,
                call.mutation(request, _write),
                spec,
                request.etag,
                force=request.force,
                violations=violations,
            )
        except InvalidRequest as error:
            raise InvalidRequest.all(error.reason, [v.below("spec") for v in error.violations]) from None
        return _write(product)

    async def GetProduct(self, request: pb.GetProductRequest, call: Call) -> pb.Product:
        name = ProductName.parse(request.name, "name")
        return _write(await products.get_product(self._database, call.caller, name))

    async def ListProducts(self, request: pb.ListProductsRequest, call: Call) -> pb.ListProductsResponse:
        size = paging.read_size(request.page_size)
        after = paging.read_token(request, request.page_token) or ""
        page = await products.list_products(self._database, call.caller, after, size)
        return pb.ListProductsResponse(
            products=[_write(product) for product in page.items],
            next_page_token=paging.write_token(request, page.next_cursor),
        )

    async def DeleteProduct(self, request: pb.DeleteProductRequest, call: Call) -> pb.DeleteProductResponse:
        name = ProductName.parse(request.name, "name")
        mutation = call.mutation(request, _write_deleted)
        deleted = await products.delete_product(self._database, mutation, name, request.etag, force=request.force)
        return _write_deleted(deleted)


def _write_deleted(deleted: Deleted) -> pb.DeleteProductResponse:
    return pb.DeleteProductResponse(deleted=write_deleted(deleted))


def _write(product: Product) -> pb.Product:
    return pb.Product(
        name=str(product.name),
        spec=write_spec(product.policy.spec),
        spec_version=product.spec_version,
        create_time=write_time(product.create_time),
        update_time=write_time(product.update_time),
        etag=product.etag,
    )
