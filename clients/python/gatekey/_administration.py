"""The administration, as both clients offer it. What each call takes and answers is in `_requests`."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, Unpack

from google.protobuf.message import Message

from gatekey import _requests as requests
from gatekey._calls import Call, Listing
from gatekey._requests import Options, Scope
from gatekey.v1.api_key_service_pb2 import ApiKey

P = ParamSpec("P")
R = TypeVar("R", bound=Message)
Item = TypeVar("Item")


class _Caller(Protocol):
    def _make(self, call: Call[R]) -> R: ...

    def _list(self, listing: Listing[Any, Item]) -> Iterator[Item]: ...


class _AsyncCaller(Protocol):
    async def _make(self, call: Call[R]) -> R: ...

    def _list(self, listing: Listing[Any, Item]) -> AsyncIterator[Item]: ...


class _Part:
    def __init__(self, client: _Caller, scope: Scope) -> None:
        self._client = client
        self._scope = scope


class _AsyncPart:
    def __init__(self, client: _AsyncCaller, scope: Scope) -> None:
        self._client = client
        self._scope = scope


def _method(build: Callable[Concatenate[Scope, P], Call[R]]) -> Callable[Concatenate[_Part, P], R]:
    @functools.wraps(build)
    def method(self: _Part, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._client._make(build(self._scope, *args, **kwargs))

    return method


def _async_method(
    build: Callable[Concatenate[Scope, P], Call[R]],
) -> Callable[Concatenate[_AsyncPart, P], Coroutine[Any, Any, R]]:
    @functools.wraps(build)
    async def method(self: _AsyncPart, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await self._client._make(build(self._scope, *args, **kwargs))

    return method


def _list(
    build: Callable[Concatenate[Scope, P], Listing[Any, Item]],
) -> Callable[Concatenate[_Part, P], Iterator[Item]]:
    @functools.wraps(build)
    def method(self: _Part, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[Item]:
        return self._client._list(build(self._scope, *args, **kwargs))  # noqa: SLF001 - parts of one class

    return method


def _async_list(
    build: Callable[Concatenate[Scope, P], Listing[Any, Item]],
) -> Callable[Concatenate[_AsyncPart, P], AsyncIterator[Item]]:
    @functools.wraps(build)
    def method(self: _AsyncPart, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[Item]:
        return self._client._list(build(self._scope, *args, **kwargs))  # noqa: SLF001 - parts of one class

    return method


def _scope(product: str, tenant: str | None = None, *, actor: str) -> Scope:
    name = Scope().within("products", product)
    return Scope(name if tenant is None else Scope(name).within("tenants", tenant), actor)


# ---------------------------------------------------------------- for threads


class Products(_Part):
    """The products of the service."""

    apply = _method(requests.apply_product)
    get = _method(requests.get_product)
    list = _list(requests.list_products)
    delete = _method(requests.delete_product)


class Tenants(_Part):
    """The tenants of a product."""

    create = _method(requests.create_tenant)
    get = _method(requests.get_tenant)
    list = _list(requests.list_tenants)
    update = _method(requests.update_tenant)
    suspend = _method(requests.suspend_tenant)
    resume = _method(requests.resume_tenant)
    delete = _method(requests.delete_tenant)
    undelete = _method(requests.undelete_tenant)


class Members(_Part):
    """The members of a tenant. They are listed with its people."""

    add = _method(requests.add_member)
    get = _method(requests.get_member)
    update = _method(requests.update_member)
    remove = _method(requests.remove_member)


class People(_Part):
    """The members and machine users of a tenant."""

    list = _list(requests.list_people)
    page = _method(requests.page_of_people)


class MachineUsers(_Part):
    """The machine users of a tenant."""

    create = _method(requests.create_machine_user)
    get = _method(requests.get_machine_user)
    list = _list(requests.list_machine_users)
    update = _method(requests.update_machine_user)
    delete = _method(requests.delete_machine_user)


class ApiKeys(_Part):
    """The keys of a tenant."""

    create = _method(requests.create_key)
    get = _method(requests.get_key)
    list = _list(requests.list_keys)
    update = _method(requests.update_key)
    disable = _method(requests.disable_key)
    enable = _method(requests.enable_key)
    revoke = _method(requests.revoke_key)
    rotate = _method(requests.rotate_key)
    delete = _method(requests.delete_key)


class AuditEvents(_Part):
    """What happened to a product itself, or in a tenant."""

    list = _list(requests.list_audit_events)


class AuditChains(_Part):
    """The chains of events, also of what is gone."""

    list = _list(requests.list_audit_chains)


class Tenant(_Part):
    """What belongs to one tenant."""

    def __init__(self, client: _Caller, scope: Scope) -> None:
        super().__init__(client, scope)
        self.keys = ApiKeys(client, scope)
        self.members = Members(client, scope)
        self.machine_users = MachineUsers(client, scope)
        self.people = People(client, scope)
        self.audit_events = AuditEvents(client, scope)


class Product(_Part):
    """What belongs to one product."""

    def __init__(self, client: _Caller, scope: Scope) -> None:
        super().__init__(client, scope)
        self.tenants = Tenants(client, scope)
        self.audit_events = AuditEvents(client, scope)
        self.audit_chains = AuditChains(client, scope)


class Administration:
    """What a client administers. Ids can be given as they are, or as full resource names."""

    @property
    def products(self) -> Products:
        """The products."""
        return Products(self, Scope())

    @property
    def audit_chains(self) -> AuditChains:
        """The chains of events of all products."""
        return AuditChains(self, Scope())

    def product(self, product: str, *, actor: str = "") -> Product:
        """What belongs to one product; `actor` is the resource name of the principal on whose behalf."""
        return Product(self, _scope(product, actor=actor))

    def tenant(self, product: str, tenant: str, *, actor: str = "") -> Tenant:
        """What belongs to one tenant; `actor` is the resource name of the principal on whose behalf."""
        return Tenant(self, _scope(product, tenant, actor=actor))

    def identify(self, secret: str, **options: Unpack[Options]) -> ApiKey:
        """Tell which key a secret belongs to, in whatever state the key is."""
        return self._make(requests.identify_secret(Scope(), secret, **options))

    def _make(self, call: Call[R]) -> R:
        raise NotImplementedError

    def _list(self, listing: Listing[Any, Item]) -> Iterator[Item]:
        raise NotImplementedError


# ---------------------------------------------------------------- for event loops


class AsyncProducts(_AsyncPart):
    """The products of the service."""

    apply = _async_method(requests.apply_product)
    get = _async_method(requests.get_product)
    list = _async_list(requests.list_products)
    delete = _async_method(requests.delete_product)


class AsyncTenants(_AsyncPart):
    """The tenants of a product."""

    create = _async_method(requests.create_tenant)
    get = _async_method(requests.get_tenant)
    list = _async_list(requests.list_tenants)
    update = _async_method(requests.update_tenant)
    suspend = _async_method(requests.suspend_tenant)
    resume = _async_method(requests.resume_tenant)
    delete = _async_method(requests.delete_tenant)
    undelete = _async_method(requests.undelete_tenant)


class AsyncMembers(_AsyncPart):
    """The members of a tenant. They are listed with its people."""

    add = _async_method(requests.add_member)
    get = _async_method(requests.get_member)
    update = _async_method(requests.update_member)
    remove = _async_method(requests.remove_member)


class AsyncPeople(_AsyncPart):
    """The members and machine users of a tenant."""

    list = _async_list(requests.list_people)
    page = _async_method(requests.page_of_people)


class AsyncMachineUsers(_AsyncPart):
    """The machine users of a tenant."""

    create = _async_method(requests.create_machine_user)
    get = _async_method(requests.get_machine_user)
    list = _async_list(requests.list_machine_users)
    update = _async_method(requests.update_machine_user)
    delete = _async_method(requests.delete_machine_user)


class AsyncApiKeys(_AsyncPart):
    """The keys of a tenant."""

    create = _async_method(requests.create_key)
    get = _async_method(requests.get_key)
    list = _async_list(requests.list_keys)
    update = _async_method(requests.update_key)
    disable = _async_method(requests.disable_key)
    enable = _async_method(requests.enable_key)
    revoke = _async_method(requests.revoke_key)
    rotate = _async_method(requests.rotate_key)
    delete = _async_method(requests.delete_key)


class AsyncAuditEvents(_AsyncPart):
    """What happened to a product itself, or in a tenant."""

    list = _async_list(requests.list_audit_events)


class AsyncAuditChains(_AsyncPart):
    """The chains of events, also of what is gone."""

    list = _async_list(requests.list_audit_chains)


class AsyncTenant(_AsyncPart):
    """What belongs to one tenant."""

    def __init__(self, client: _AsyncCaller, scope: Scope) -> None:
        super().__init__(client, scope)
        self.keys = AsyncApiKeys(client, scope)
        self.members = AsyncMembers(client, scope)
        self.machine_users = AsyncMachineUsers(client, scope)
        self.people = AsyncPeople(client, scope)
        self.audit_events = AsyncAuditEvents(client, scope)


class AsyncProduct(_AsyncPart):
    """What belongs to one product."""

    def __init__(self, client: _AsyncCaller, scope: Scope) -> None:
        super().__init__(client, scope)
        self.tenants = AsyncTenants(client, scope)
        self.audit_events = AsyncAuditEvents(client, scope)
        self.audit_chains = AsyncAuditChains(client, scope)


class AsyncAdministration:
    """What a client administers. Ids can be given as they are, or as full resource names."""

    @property
    def products(self) -> AsyncProducts:
        """The products."""
        return AsyncProducts(self, Scope())

    @property
    def audit_chains(self) -> AsyncAuditChains:
        """The chains of events of all products."""
        return AsyncAuditChains(self, Scope())

    def product(self, product: str, *, actor: str = "") -> AsyncProduct:
        """What belongs to one product; `actor` is the resource name of the principal on whose behalf."""
        return AsyncProduct(self, _scope(product, actor=actor))

    def tenant(self, product: str, tenant: str, *, actor: str = "") -> AsyncTenant:
        """What belongs to one tenant; `actor` is the resource name of the principal on whose behalf."""
        return AsyncTenant(self, _scope(product, tenant, actor=actor))

    async def identify(self, secret: str, **options: Unpack[Options]) -> ApiKey:
        """Tell which key a secret belongs to, in whatever state the key is."""
        return await self._make(requests.identify_secret(Scope(), secret, **options))

    async def _make(self, call: Call[R]) -> R:
        raise NotImplementedError

    def _list(self, listing: Listing[Any, Item]) -> AsyncIterator[Item]:
        raise NotImplementedError
