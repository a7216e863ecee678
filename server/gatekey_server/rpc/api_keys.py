"""`ApiKeyService` on the wire."""

from gatekey.v1 import api_key_service_pb2 as pb
from google.protobuf.empty_pb2 import Empty

from gatekey_server.commands import api_keys
from gatekey_server.commands.api_keys import NewApiKey, NewMachineUser
from gatekey_server.commands.callers import Caller
from gatekey_server.domain.entities import ApiKey
from gatekey_server.domain.errors import InvalidRequest
from gatekey_server.domain.names import (
    ApiKeyName,
    PrincipalName,
    TenantName,
    parse_display_name,
    parse_principal_name,
)
from gatekey_server.domain.secrets import Keyring, Mint
from gatekey_server.domain.specs import KeyKind
from gatekey_server.rpc import paging
from gatekey_server.rpc.edge import Clock
from gatekey_server.rpc.people import read_new_machine_user, write_machine_user
from gatekey_server.rpc.values import (
    ACCESS_MODE,
    KEY_KIND,
    KEY_STATE,
    read_grants,
    read_time,
    write_grants,
    write_time,
)
from gatekey_server.store.database import Database

# ruff: noqa: N802 - methods are named and described by the protocol definition


class ApiKeyServicer:
    """Manages API keys. Plaintext secrets are made here and go no further in."""

    def __init__(self, database: Database, keyring: Keyring, clock: Clock) -> None:
        self._database = database
        self._keyring = keyring
        self._clock = clock

    async def CreateApiKey(self, request: pb.CreateApiKeyRequest, caller: Caller) -> pb.CreateApiKeyResponse:
        mint = Mint(self._keyring)
        created = await api_keys.create_api_key(self._database, caller, mint, _read_new(request))
        user = created.machine_user
        return pb.CreateApiKeyResponse(
            api_key=self._write(created.key),
            secret=mint.secret,
            machine_user=write_machine_user(user, created.policy) if user else None,
        )

    async def GetApiKey(self, request: pb.GetApiKeyRequest, caller: Caller) -> pb.ApiKey:
        name = ApiKeyName.parse(request.name, "name")
        return self._write(await api_keys.get_api_key(self._database, caller, name))

    async def ListApiKeys(self, request: pb.ListApiKeysRequest, caller: Caller) -> pb.ListApiKeysResponse:
        parent = TenantName.parse(request.parent, "parent")
        size = paging.read_size(request.page_size)
        after = paging.read_uuid(request, request.page_token)
        owner = parse_principal_name(request.owner, "owner") if request.owner else None
        page = await api_keys.list_api_keys(self._database, caller, parent, after, size, owner)
        return pb.ListApiKeysResponse(
            api_keys=[self._write(key) for key in page.items],
            next_page_token=paging.write_token(request, page.next_cursor),
        )

    async def DeleteApiKey(self, request: pb.DeleteApiKeyRequest, caller: Caller) -> Empty:
        await api_keys.delete_api_key(self._database, caller, ApiKeyName.parse(request.name, "name"))
        return Empty()

    def _write(self, key: ApiKey) -> pb.ApiKey:
        return pb.ApiKey(
            name=str(key.name),
            display_name=key.display_name,
            kind=KEY_KIND.write(key.kind),
            owner=str(key.owner) if key.owner else "",
            mode=ACCESS_MODE.write(key.mode),
            grants=write_grants(key.grants),
            state=KEY_STATE.write(key.state(self._clock())),
            expire_time=write_time(key.expire_time),
            create_time=write_time(key.create_time),
            secrets=[
                pb.ApiKey.Secret(
                    hint=secret.hint,
                    create_time=write_time(secret.create_time),
                    expire_time=write_time(secret.expire_time),
                )
                for secret in key.secrets
            ],
        )


def _read_new(request: pb.CreateApiKeyRequest) -> NewApiKey:
    if not request.HasField("api_key"):
        raise InvalidRequest.at("api_key", "API_KEY_REQUIRED", "what to create is required")
    parent, key = TenantName.parse(request.parent, "parent"), request.api_key
    return NewApiKey(
        parent=parent,
        display_name=parse_display_name(key.display_name, "api_key.display_name", required=True),
        kind=KEY_KIND.read(key.kind, "api_key.kind") or KeyKind.SECRET,
        owner=_read_owner(parent, request),
        mode=ACCESS_MODE.read(key.mode, "api_key.mode"),
        grants=read_grants(key.grants),
        expire_time=read_time(key.expire_time, "api_key.expire_time") if key.HasField("expire_time") else None,
    )


def _read_owner(parent: TenantName, request: pb.CreateApiKeyRequest) -> PrincipalName | NewMachineUser | None:
    if request.HasField("new_machine_user"):
        if request.api_key.owner:
            raise InvalidRequest.at(
                "api_key.owner", "OWNER_NOT_ALLOWED", "the new machine user owns the key: name no other owner"
            )
        at = "new_machine_user"
        wanted = request.new_machine_user
        return NewMachineUser(
            read_new_machine_user(parent, wanted.machine_user_id, f"{at}.machine_user_id"),
            parse_display_name(wanted.display_name, f"{at}.display_name") or request.api_key.display_name,
        )
    return parse_principal_name(request.api_key.owner, "api_key.owner") if request.api_key.owner else None
