"""The composition of the gRPC server: its services and their dependencies."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from gatekey.core.secrets import Keyring
from gatekey.v1 import (
    api_key_service_pb2,
    audit_service_pb2,
    cache_service_pb2,
    check_service_pb2,
    machine_user_service_pb2,
    member_service_pb2,
    product_service_pb2,
    tenant_service_pb2,
)
from google.protobuf.descriptor import ServiceDescriptor

from gatekey_server.background.propagation_recorder import PropagationRecorder
from gatekey_server.background.uses import UsageRecorder
from gatekey_server.commands.cache import ClientCaches
from gatekey_server.freshness.change_log import ChangeLog
from gatekey_server.freshness.lease import PrimaryLease
from gatekey_server.freshness.snapshot_source import SnapshotSource
from gatekey_server.rpc.authentication import Authenticator
from gatekey_server.rpc.context import Clock
from gatekey_server.rpc.dispatcher import Dispatcher, Endpoint, MethodAtOnce
from gatekey_server.rpc.health import Health
from gatekey_server.rpc.services.api_keys import ApiKeyServicer
from gatekey_server.rpc.services.audit import AuditServicer
from gatekey_server.rpc.services.cache import CacheServicer
from gatekey_server.rpc.services.checks import CheckServicer
from gatekey_server.rpc.services.machine_users import MachineUserServicer
from gatekey_server.rpc.services.members import MemberServicer
from gatekey_server.rpc.services.products import ProductServicer
from gatekey_server.rpc.services.tenants import TenantServicer
from gatekey_server.rpc.tls import ServerTls
from gatekey_server.rpc.transport import GrpcServer
from gatekey_server.store.database import Database

SERVICES: dict[str, ServiceDescriptor] = {
    descriptor.full_name: descriptor
    for module in (
        check_service_pb2,
        cache_service_pb2,
        product_service_pb2,
        tenant_service_pb2,
        member_service_pb2,
        machine_user_service_pb2,
        api_key_service_pb2,
        audit_service_pb2,
    )
    for descriptor in module.DESCRIPTOR.services_by_name.values()
}
"""Gatekey's own services, by their full name."""


@dataclass(frozen=True, slots=True)
class Server:
    """A gRPC server that is ready to listen, and its health."""

    grpc: GrpcServer
    health: Health
    endpoints: Mapping[str, Endpoint]
    """Its endpoints, by path."""


@dataclass(frozen=True, slots=True)
class ServerDependencies:
    """The dependencies of the services."""

    database: Database
    snapshots: SnapshotSource
    log: ChangeLog
    lease: PrimaryLease
    keyring: Keyring
    clock: Clock
    usage: UsageRecorder
    recorder: PropagationRecorder
    tenant_retention: timedelta
    tls: ServerTls | None
    shares_port: bool = False
    """Whether other processes serve on the same port."""


def build_server(dependencies: ServerDependencies) -> Server:
    """Build the server with all services. Only health and reflection need no service token."""
    database, snapshots, keyring, clock, tls = (
        dependencies.database,
        dependencies.snapshots,
        dependencies.keyring,
        dependencies.clock,
        dependencies.tls,
    )
    authenticator = Authenticator(
        snapshots, keyring, clock, tls.callers if tls else {}, dependencies.usage, dependencies.recorder
    )
    dispatcher = Dispatcher(authenticator)
    checks = CheckServicer(database, snapshots, keyring, clock, dependencies.usage, authenticator.token_of)
    at_once: dict[str, MethodAtOnce] = {"Check": checks.check_at_once, "BatchCheck": checks.batch_check_at_once}
    dispatcher.register_unidentified(SERVICES["gatekey.v1.CheckService"], checks, at_once)
    caches = CacheServicer(
        ClientCaches(database, snapshots, dependencies.log, dependencies.lease, dependencies.usage.record_key),
        keyring,
        clock,
        dependencies.usage,
        authenticator.token_of,
    )
    dispatcher.register_unidentified(SERVICES["gatekey.v1.CacheService"], caches, {"Sync": caches.sync_at_once})
    for name, servicer in {
        "gatekey.v1.ProductService": ProductServicer(database),
        "gatekey.v1.TenantService": TenantServicer(database, dependencies.tenant_retention),
        "gatekey.v1.MemberService": MemberServicer(database),
        "gatekey.v1.MachineUserService": MachineUserServicer(database),
        "gatekey.v1.ApiKeyService": ApiKeyServicer(database, keyring, clock),
        "gatekey.v1.AuditService": AuditServicer(database),
    }.items():
        dispatcher.register(SERVICES[name], servicer)
    health = Health(SERVICES)
    return Server(
        GrpcServer(dispatcher.endpoints, health, tls=tls, shares_port=dependencies.shares_port),
        health,
        dispatcher.endpoints,
    )
