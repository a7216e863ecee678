"""The fields of requests, as people know them who typed a command."""

_TYPED = {
    "action": "ACTION",
    "actor": "--actor",
    "api_key.description": "--description",
    "api_key.display_name": "--name",
    "api_key.expire_time": "--expires or --ttl",
    "api_key.grants": "--grant",
    "api_key.labels": "--label",
    "api_key.mode": "--mode",
    "api_key.name": "the name",
    "api_key.owner": "the owner",
    "end_time": "--until",
    "etag": "--etag",
    "gatekey-actor": "GATEKEY_ACTOR",
    "grace": "--grace",
    "key": "KEY",
    "machine_user.display_name": "--display-name",
    "machine_user.name": "the name",
    "machine_user_id": "MACHINE_USER",
    "member.display_name": "--display-name",
    "member.name": "the name",
    "member.role": "--role",
    "member_id": "MEMBER",
    "name": "the name",
    "new_machine_user.machine_user_id": "--machine-user-id",
    "owner": "the owner",
    "parent": "the name",
    "product": "--product",
    "reason": "--reason",
    "resource": "RESOURCE",
    "secret": "SECRET",
    "start_time": "--since",
    "target": "--target",
    "tenant": "--tenant",
    "tenant.display_name": "--display-name",
    "tenant.name": "the name",
    "tenant_id": "TENANT",
    "verb": "--verb",
}


def typed(field: str) -> str:
    """The option, the argument or the variable that a field was made of; the field itself where there is none."""
    name, bracket, rest = field.partition("[")
    return f"{_TYPED[name]}{bracket}{rest}" if name in _TYPED else field
