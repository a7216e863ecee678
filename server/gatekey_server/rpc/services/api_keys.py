"""`ApiKeyService` on the wire."""

from datetime import datetime, timedelta

from gatekey.core.decisions import CompiledSpec
from gatekey.core.entities import ApiKey, Creator, Deleted, Identified, SecretInfo
from gatekey.core.errors import InvalidRequest
from gatekey.core.key_rules import ApiKeyChange, NewApiKey, NewMachineUser
from gatekey.core.names import (
    ApiKeyName,
    KeyOwnerName,
    TenantName,
    parse_display_name,
    parse_key_owner_name,
    parse_labels,
    parse_text,
)
from gatekey.core.secrets import Keyring, Mint
from gatekey.core.specs import MAX_LIFETIME, KeyKind
from gatekey.v1 import api_key_service_pb2 as pb
from gatekey.wire.conversions import (
    ACCESS_MODE,
    KEY_KIND,
    KEY_STATE,
    read_duration,
    read_key_grants,
    read_mask,
    read_time,
    write_deleted,
    write_grants,
    write_time,
)
from gatekey.wire.specs import write_credential

from gatekey_server.commands import api_keys
from gatekey_server.commands.api_keys import CreatedApiKey, KeyAndSpec
from gatekey_server.rpc.context import Call, Clock
from gatekey_server.rpc.wire import paging
from gatekey_server.rpc.wire.principals import read_new_machine_user, write_machine_user
from gatekey_server.store.database import Database

MAX_GRACE = timedelta(days=30)
MAX_DESCRIPTION_CHARS = 1024
MAX_REASON_CHARS = 256

_CHANGEABLE = ("display_name", "description", "labels", "mode", "grants", "expire_time")

# ruff: noqa: N802 - methods are named and described by the protocol definition


class ApiKeyServicer:
    """Manages API keys. Plaintext secrets are made here and are not passed to commands."""

    def __init__(self, database: Database, keyring: Keyring, clock: Clock) -> None:
        self._database = database
        self._keyring = keyring
        self._clock = clock

    async def CreateApiKey(self, request: pb.CreateApiKeyRequest, call: Call) -> pb.CreateApiKeyResponse:
        parent = TenantName.parse(request.parent, "parent")
        api_keys.authorise_creation(call.caller, parent, with_machine_user=request.HasField("new_machine_user"))
        mint, mutation = Mint(self._keyring), call.mutation(request, self._write_created)
        created = await api_keys.create_api_key(
            self._database, mutation, mint, _read_new(parent, request, call.caller.now)
        )
        response = self._write_created(created)
        if not mutation.validate_only:
            response.secret, response.secret_withheld = mint.secret, False
        return response

    async def GetApiKey(self, request: pb.GetApiKeyRequest, call: Call) -> pb.ApiKey:
        name = ApiKeyName.parse(request.name, "name")
        return self._write_key(await api_keys.get_api_key(self._database, call.caller, name))

    async def ListApiKeys(self, request: pb.ListApiKeysRequest, call: Call) -> pb.ListApiKeysResponse:
        parent = TenantName.parse(request.parent, "parent")
        after = paging.read_uuid(request, request.page_token)
        owner = parse_key_owner_name(request.owner, "owner") if request.owner else None
        response = pb.ListApiKeysResponse()
        page = paging.PageWriter(response.api_keys, self._write_key, request.page_size)
        following = await api_keys.list_api_keys(self._database, call.caller, parent, after, page, owner)
        response.next_page_token = paging.write_token(request, following)
        return response

    async def UpdateApiKey(self, request: pb.UpdateApiKeyRequest, call: Call) -> pb.ApiKey:
        key = request.api_key
        name = ApiKeyName.parse(key.name, "api_key.name")
        call.caller.require(name.path, "update")
        mutation = call.mutation(request, self._write_key)
        change = _read_change(key, read_mask(request.update_mask, _CHANGEABLE, "a key"))
        return self._write_key(await api_keys.update_api_key(self._database, mutation, name, key.etag, change))

    async def DisableApiKey(self, request: pb.DisableApiKeyRequest, call: Call) -> pb.ApiKey:
        name, mutation = ApiKeyName.parse(request.name, "name"), call.mutation(request, self._write_key)
        return self._write_key(await api_keys.disable_api_key(self._database, mutation, name, request.etag))

    async def EnableApiKey(self, request: pb.EnableApiKeyRequest, call: Call) -> pb.ApiKey:
        name, mutation = ApiKeyName.parse(request.name, "name"), call.mutation(request, self._write_key)
        return self._write_key(await api_keys.enable_api_key(self._database, mutation, name, request.etag))

    async def RevokeApiKey(self, request: pb.RevokeApiKeyRequest, call: Call) -> pb.ApiKey:
        name, mutation = ApiKeyName.parse(request.name, "name"), call.mutation(request, self._write_key)
        reason = parse_text(request.reason, "reason", MAX_REASON_CHARS)
        return self._write_key(await api_keys.revoke_api_key(self._database, mutation, name, request.etag, reason))

    async def RotateApiKey(self, request: pb.RotateApiKeyRequest, call: Call) -> pb.RotateApiKeyResponse:
        name = ApiKeyName.parse(request.name, "name")
        mint, mutation = Mint(self._keyring), call.mutation(request, self._write_rotated)
        grace = read_duration(request.grace, "grace")
        if not timedelta() <= grace <= MAX_GRACE:
            raise InvalidRequest.at("grace", "GRACE_INVALID", f"a grace is between 0 and {MAX_GRACE.days} days")
        key = await api_keys.rotate_api_key(self._database, mutation, mint, name, request.etag, grace)
        response = self._write_rotated(key)
        if not mutation.validate_only:
            response.secret, response.secret_withheld = mint.secret, False
        return response

    async def IdentifySecret(self, request: pb.IdentifySecretRequest, call: Call) -> pb.ApiKey:
        if not request.secret:
            raise InvalidRequest.at("secret", "SECRET_REQUIRED", "a secret is required")
        digests = self._keyring.digests(request.secret)
        identified, compiled = await api_keys.identify_secret(self._database, call.caller, digests)
        if identified.key is None or compiled is None:
            key = _write_gone(identified)
        else:
            key = self._write(identified.key, compiled)
        if identified.secret.expire_time is not None:
            key.identified.CopyFrom(_write_secret(identified.secret))
        return key

    async def DeleteApiKey(self, request: pb.DeleteApiKeyRequest, call: Call) -> pb.DeleteApiKeyResponse:
        name, mutation = ApiKeyName.parse(request.name, "name"), call.mutation(request, _write_deleted)
        return _write_deleted(await api_keys.delete_api_key(self._database, mutation, name, request.etag))

    def _write_created(self, created: CreatedApiKey) -> pb.CreateApiKeyResponse:
        user = created.machine_user
        return pb.CreateApiKeyResponse(
            api_key=self._write(created.key, created.compiled),
            secret_withheld=True,
            credential=write_credential(created.compiled.spec),
            machine_user=write_machine_user(user, created.compiled) if user else None,
        )

    def _write_rotated(self, rotated: KeyAndSpec) -> pb.RotateApiKeyResponse:
        return pb.RotateApiKeyResponse(
            api_key=self._write_key(rotated), secret_withheld=True, credential=write_credential(rotated[1].spec)
        )

    def _write_key(self, found: KeyAndSpec) -> pb.ApiKey:
        return self._write(*found)

    def _write(self, key: ApiKey, compiled: CompiledSpec) -> pb.ApiKey:
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
            secrets=[_write_secret(secret) for secret in key.secrets],
            creator=_write_creator(key.creator),
            description=key.description,
            labels=key.labels,
            revoke_time=write_time(key.revoke_time),
            revoke_reason=key.revoke_reason,
            etag=key.etag,
            last_use_time=write_time(key.last_use_time),
            stranded=_stranded(key, compiled),
            actor_required=key.actor_required,
        )


def _write_gone(identified: Identified) -> pb.ApiKey:
    """Return a deleted key as far as its audit event describes it. Events of former releases may hold less."""
    told = {name: str(identified.description.get(name) or "") for name in ("display_name", "owner", "kind")}
    key = pb.ApiKey(
        name=str(identified.name),
        state=pb.ApiKey.STATE_DELETED,
        display_name=told["display_name"],
        owner=told["owner"],
    )
    if told["kind"] in KeyKind.__members__:
        key.kind = KEY_KIND.write(KeyKind[told["kind"]])
    return key


def _write_secret(secret: SecretInfo) -> pb.ApiKey.Secret:
    return pb.ApiKey.Secret(
        hint=secret.hint, create_time=write_time(secret.create_time), expire_time=write_time(secret.expire_time)
    )


def _write_creator(creator: Creator) -> pb.ApiKey.Creator | None:
    if not creator.caller:
        return None
    return pb.ApiKey.Creator(
        actor=creator.actor, caller=creator.caller, caller_display_name=creator.caller_display_name
    )


def _stranded(key: ApiKey, compiled: CompiledSpec) -> str:
    loss = next(compiled.offer.losses(key.kind, key.owner_kind, key.mode, key.grants), None)
    return loss.text if loss else ""


def _write_deleted(deleted: Deleted) -> pb.DeleteApiKeyResponse:
    return pb.DeleteApiKeyResponse(deleted=write_deleted(deleted))


def _read_change(key: pb.ApiKey, fields: frozenset[str]) -> ApiKeyChange:
    """Return the change of a key. Fields outside the mask are not validated."""
    return ApiKeyChange(
        fields,
        display_name=parse_display_name(key.display_name, "api_key.display_name", required=True)
        if "display_name" in fields
        else "",
        description=parse_text(key.description, "api_key.description", MAX_DESCRIPTION_CHARS)
        if "description" in fields
        else "",
        labels=parse_labels(key.labels, "api_key.labels") if "labels" in fields else {},
        mode=ACCESS_MODE.read(key.mode, "api_key.mode") if "mode" in fields else None,
        grants=read_key_grants(key.grants, "api_key.grants") if "grants" in fields else (),
        expire_time=_read_expire_time(key) if "expire_time" in fields else None,
    )


def _read_expire_time(key: pb.ApiKey) -> datetime | None:
    return read_time(key.expire_time, "api_key.expire_time") if key.HasField("expire_time") else None


def _read_expiry(request: pb.CreateApiKeyRequest, now: datetime) -> datetime | None:
    if not request.HasField("ttl"):
        return _read_expire_time(request.api_key)
    if request.api_key.HasField("expire_time"):
        raise InvalidRequest.at("ttl", "TTL_NOT_ALLOWED", "`api_key.expire_time` says it already")
    ttl = read_duration(request.ttl, "ttl")
    if not timedelta() < ttl <= MAX_LIFETIME:
        raise InvalidRequest.at("ttl", "TTL_INVALID", f"more than 0, and at most {MAX_LIFETIME.days} days")
    return now + ttl


def _read_new(parent: TenantName, request: pb.CreateApiKeyRequest, now: datetime) -> NewApiKey:
    if not request.HasField("api_key"):
        raise InvalidRequest.at("api_key", "API_KEY_REQUIRED", "what to create is required")
    key = request.api_key
    return NewApiKey(
        parent=parent,
        display_name=parse_display_name(key.display_name, "api_key.display_name", required=True),
        kind=KEY_KIND.read(key.kind, "api_key.kind") or KeyKind.SECRET,
        owner=_read_owner(parent, request),
        mode=ACCESS_MODE.read(key.mode, "api_key.mode"),
        grants=read_key_grants(key.grants, "api_key.grants"),
        expire_time=_read_expiry(request, now),
        description=parse_text(key.description, "api_key.description", MAX_DESCRIPTION_CHARS),
        labels=parse_labels(key.labels, "api_key.labels"),
        actor_required=key.actor_required,
    )


def _read_owner(parent: TenantName, request: pb.CreateApiKeyRequest) -> KeyOwnerName | NewMachineUser | None:
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
    return parse_key_owner_name(request.api_key.owner, "api_key.owner") if request.api_key.owner else None
