"""The administration, described once for both clients. What each call takes and returns is in `_requests`.

A part, such as `ApiKeys`, serves `Client` and `AsyncClient` alike. Its type parameter is the kind of client: a method
returns a response for one kind and a coroutine for the other, a list an iterator or an asynchronous iterator.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar, cast, overload

from google.protobuf.message import Message

from gatekey import _requests as requests
from gatekey._calls import Call, Listing
from gatekey._requests import Scope

P = ParamSpec("P")
R = TypeVar("R", bound=Message)
Item = TypeVar("Item")


class Caller(Protocol):
    """A client for threads."""

    def _make(self, call: Call[R]) -> R: ...

    def _list(self, listing: Listing[Any, Item]) -> Iterator[Item]: ...


class AsyncCaller(Protocol):
    """A client for an event loop."""

    async def _make(self, call: Call[R]) -> R: ...

    def _list(self, listing: Listing[Any, Item]) -> AsyncIterator[Item]: ...


C_co = TypeVar("C_co", bound=Caller | AsyncCaller, covariant=True)


class _Bound(Protocol[C_co]):
    """What methods are of: a part, or a client itself."""

    @property
    def _caller(self) -> C_co: ...

    @property
    def _scope(self) -> Scope: ...


class _Method(Generic[P, R]):
    """A method that makes the call that `build` describes. Raises what `build` raises, and `ApiError`."""

    def __init__(self, build: Callable[Concatenate[Scope, P], Call[R]]) -> None:
        @functools.wraps(build)
        def method(self: _Bound[Caller], /, *args: P.args, **kwargs: P.kwargs) -> R:
            return self._caller._make(build(self._scope, *args, **kwargs))

        @functools.wraps(build)
        async def async_method(self: _Bound[AsyncCaller], /, *args: P.args, **kwargs: P.kwargs) -> R:
            return await self._caller._make(build(self._scope, *args, **kwargs))

        self.__doc__ = build.__doc__
        self._method = method
        self._async_method = async_method

    @overload
    def __get__(self, bound: None, owner: type) -> Self: ...

    @overload
    def __get__(self, bound: _Bound[Caller], owner: type) -> Callable[P, R]: ...

    @overload
    def __get__(self, bound: _Bound[AsyncCaller], owner: type) -> Callable[P, Coroutine[Any, Any, R]]: ...

    def __get__(self, bound: _Bound[Caller] | _Bound[AsyncCaller] | None, owner: type) -> Any:
        if bound is None:
            return self
        is_async = inspect.iscoroutinefunction(bound._caller._make)  # noqa: SLF001 - parts of one class
        return MethodType(self._async_method if is_async else self._method, bound)


class _List(Generic[P, Item]):
    """A method that lists what `build` describes, page after page. Reading the items raises `ApiError`."""

    def __init__(self, build: Callable[Concatenate[Scope, P], Listing[Any, Item]]) -> None:
        @functools.wraps(build)
        def method(self: _Bound[Any], /, *args: P.args, **kwargs: P.kwargs) -> Any:
            return self._caller._list(build(self._scope, *args, **kwargs))  # noqa: SLF001 - parts of one class

        self.__doc__ = build.__doc__
        self._method = method

    @overload
    def __get__(self, bound: None, owner: type) -> Self: ...

    @overload
    def __get__(self, bound: _Bound[Caller], owner: type) -> Callable[P, Iterator[Item]]: ...

    @overload
    def __get__(self, bound: _Bound[AsyncCaller], owner: type) -> Callable[P, AsyncIterator[Item]]: ...

    def __get__(self, bound: _Bound[Caller] | _Bound[AsyncCaller] | None, owner: type) -> Any:
        return self if bound is None else MethodType(self._method, bound)


class _Part(Generic[C_co]):
    def __init__(self, caller: C_co, scope: Scope) -> None:
        self._caller = caller
        self._scope = scope


class Products(_Part[C_co]):
    """The products of the service."""

    apply = _Method(requests.apply_product)
    get = _Method(requests.get_product)
    list = _List(requests.list_products)
    delete = _Method(requests.delete_product)


class Tenants(_Part[C_co]):
    """The tenants of a product."""

    create = _Method(requests.create_tenant)
    get = _Method(requests.get_tenant)
    list = _List(requests.list_tenants)
    update = _Method(requests.update_tenant)
    suspend = _Method(requests.suspend_tenant)
    resume = _Method(requests.resume_tenant)
    delete = _Method(requests.delete_tenant)
    undelete = _Method(requests.undelete_tenant)


class Members(_Part[C_co]):
    """The members of a tenant. They are listed with its people."""

    add = _Method(requests.add_member)
    get = _Method(requests.get_member)
    update = _Method(requests.update_member)
    remove = _Method(requests.remove_member)


class People(_Part[C_co]):
    """The members and machine users of a tenant."""

    list = _List(requests.list_people)
    page = _Method(requests.page_of_people)


class MachineUsers(_Part[C_co]):
    """The machine users of a tenant."""

    create = _Method(requests.create_machine_user)
    get = _Method(requests.get_machine_user)
    list = _List(requests.list_machine_users)
    update = _Method(requests.update_machine_user)
    delete = _Method(requests.delete_machine_user)


class ApiKeys(_Part[C_co]):
    """The keys of a tenant."""

    create = _Method(requests.create_key)
    get = _Method(requests.get_key)
    list = _List(requests.list_keys)
    update = _Method(requests.update_key)
    disable = _Method(requests.disable_key)
    enable = _Method(requests.enable_key)
    revoke = _Method(requests.revoke_key)
    rotate = _Method(requests.rotate_key)
    delete = _Method(requests.delete_key)


class AuditEvents(_Part[C_co]):
    """The events of a product itself, or of a tenant."""

    list = _List(requests.list_audit_events)


class AuditChains(_Part[C_co]):
    """The chains of events, also those of deleted products and tenants."""

    list = _List(requests.list_audit_chains)


class Tenant(_Part[C_co]):
    """What belongs to one tenant."""

    def __init__(self, caller: C_co, scope: Scope) -> None:
        super().__init__(caller, scope)
        self.keys = ApiKeys(caller, scope)
        self.members = Members(caller, scope)
        self.machine_users = MachineUsers(caller, scope)
        self.people = People(caller, scope)
        self.audit_events = AuditEvents(caller, scope)


class Product(_Part[C_co]):
    """What belongs to one product."""

    def __init__(self, caller: C_co, scope: Scope) -> None:
        super().__init__(caller, scope)
        self.tenants = Tenants(caller, scope)
        self.audit_events = AuditEvents(caller, scope)
        self.audit_chains = AuditChains(caller, scope)


class Administration(Generic[C_co]):
    """What a client administers. Ids can be given as they are, or as full resource names."""

    _scope = Scope()

    identify = _Method(requests.identify_secret)

    @property
    def products(self) -> Products[C_co]:
        """The products."""
        return Products(self._caller, Scope())

    @property
    def audit_chains(self) -> AuditChains[C_co]:
        """The chains of events of all products."""
        return AuditChains(self._caller, Scope())

    def product(self, product: str, *, actor: str = "") -> Product[C_co]:
        """What belongs to one product; `actor` is the resource name of the principal on whose behalf."""
        return Product(self._caller, _scope(product, actor=actor))

    def tenant(self, product: str, tenant: str, *, actor: str = "") -> Tenant[C_co]:
        """What belongs to one tenant; `actor` is the resource name of the principal on whose behalf."""
        return Tenant(self._caller, _scope(product, tenant, actor=actor))

    @property
    def _caller(self) -> C_co:
        # Every subclass is the client that it names as its parameter.
        return cast("C_co", self)


def _scope(product: str, tenant: str | None = None, *, actor: str) -> Scope:
    name = Scope().within("products", product)
    return Scope(name if tenant is None else Scope(name).within("tenants", tenant), actor)
