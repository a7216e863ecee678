"""The methods of the API. Written by `make protos-python`."""

from gatekey._calls import Method
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

# ApiKeyService
CREATE_API_KEY = Method(
    "/gatekey.v1.ApiKeyService/CreateApiKey",
    api_key_service_pb2.CreateApiKeyRequest,
    api_key_service_pb2.CreateApiKeyResponse,
)
GET_API_KEY = Method(
    "/gatekey.v1.ApiKeyService/GetApiKey", api_key_service_pb2.GetApiKeyRequest, api_key_service_pb2.ApiKey
)
LIST_API_KEYS = Method(
    "/gatekey.v1.ApiKeyService/ListApiKeys",
    api_key_service_pb2.ListApiKeysRequest,
    api_key_service_pb2.ListApiKeysResponse,
)
UPDATE_API_KEY = Method(
    "/gatekey.v1.ApiKeyService/UpdateApiKey", api_key_service_pb2.UpdateApiKeyRequest, api_key_service_pb2.ApiKey
)
DISABLE_API_KEY = Method(
    "/gatekey.v1.ApiKeyService/DisableApiKey", api_key_service_pb2.DisableApiKeyRequest, api_key_service_pb2.ApiKey
)
ENABLE_API_KEY = Method(
    "/gatekey.v1.ApiKeyService/EnableApiKey", api_key_service_pb2.EnableApiKeyRequest, api_key_service_pb2.ApiKey
)
REVOKE_API_KEY = Method(
    "/gatekey.v1.ApiKeyService/RevokeApiKey", api_key_service_pb2.RevokeApiKeyRequest, api_key_service_pb2.ApiKey
)
ROTATE_API_KEY = Method(
    "/gatekey.v1.ApiKeyService/RotateApiKey",
    api_key_service_pb2.RotateApiKeyRequest,
    api_key_service_pb2.RotateApiKeyResponse,
)
IDENTIFY_SECRET = Method(
    "/gatekey.v1.ApiKeyService/IdentifySecret", api_key_service_pb2.IdentifySecretRequest, api_key_service_pb2.ApiKey
)
DELETE_API_KEY = Method(
    "/gatekey.v1.ApiKeyService/DeleteApiKey",
    api_key_service_pb2.DeleteApiKeyRequest,
    api_key_service_pb2.DeleteApiKeyResponse,
)

# AuditService
LIST_AUDIT_EVENTS = Method(
    "/gatekey.v1.AuditService/ListAuditEvents",
    audit_service_pb2.ListAuditEventsRequest,
    audit_service_pb2.ListAuditEventsResponse,
)
LIST_AUDIT_CHAINS = Method(
    "/gatekey.v1.AuditService/ListAuditChains",
    audit_service_pb2.ListAuditChainsRequest,
    audit_service_pb2.ListAuditChainsResponse,
)

# CacheService
RESOLVE = Method(
    "/gatekey.v1.CacheService/Resolve", cache_service_pb2.ResolveRequest, cache_service_pb2.ResolveResponse
)
SYNC = Method("/gatekey.v1.CacheService/Sync", cache_service_pb2.SyncRequest, cache_service_pb2.SyncResponse)
REPORT_USES = Method(
    "/gatekey.v1.CacheService/ReportUses", cache_service_pb2.ReportUsesRequest, cache_service_pb2.ReportUsesResponse
)

# CheckService
CHECK = Method("/gatekey.v1.CheckService/Check", check_service_pb2.CheckRequest, check_service_pb2.CheckResponse)
BATCH_CHECK = Method(
    "/gatekey.v1.CheckService/BatchCheck", check_service_pb2.BatchCheckRequest, check_service_pb2.BatchCheckResponse
)
GET_CHECK_CONFIG = Method(
    "/gatekey.v1.CheckService/GetCheckConfig", check_service_pb2.GetCheckConfigRequest, check_service_pb2.CheckConfig
)

# MachineUserService
CREATE_MACHINE_USER = Method(
    "/gatekey.v1.MachineUserService/CreateMachineUser",
    machine_user_service_pb2.CreateMachineUserRequest,
    machine_user_service_pb2.MachineUser,
)
GET_MACHINE_USER = Method(
    "/gatekey.v1.MachineUserService/GetMachineUser",
    machine_user_service_pb2.GetMachineUserRequest,
    machine_user_service_pb2.MachineUser,
)
LIST_MACHINE_USERS = Method(
    "/gatekey.v1.MachineUserService/ListMachineUsers",
    machine_user_service_pb2.ListMachineUsersRequest,
    machine_user_service_pb2.ListMachineUsersResponse,
)
UPDATE_MACHINE_USER = Method(
    "/gatekey.v1.MachineUserService/UpdateMachineUser",
    machine_user_service_pb2.UpdateMachineUserRequest,
    machine_user_service_pb2.MachineUser,
)
DELETE_MACHINE_USER = Method(
    "/gatekey.v1.MachineUserService/DeleteMachineUser",
    machine_user_service_pb2.DeleteMachineUserRequest,
    machine_user_service_pb2.DeleteMachineUserResponse,
)

# MemberService
ADD_MEMBER = Method(
    "/gatekey.v1.MemberService/AddMember", member_service_pb2.AddMemberRequest, member_service_pb2.Member
)
GET_MEMBER = Method(
    "/gatekey.v1.MemberService/GetMember", member_service_pb2.GetMemberRequest, member_service_pb2.Member
)
LIST_PEOPLE = Method(
    "/gatekey.v1.MemberService/ListPeople", member_service_pb2.ListPeopleRequest, member_service_pb2.ListPeopleResponse
)
UPDATE_MEMBER = Method(
    "/gatekey.v1.MemberService/UpdateMember", member_service_pb2.UpdateMemberRequest, member_service_pb2.Member
)
REMOVE_MEMBER = Method(
    "/gatekey.v1.MemberService/RemoveMember",
    member_service_pb2.RemoveMemberRequest,
    member_service_pb2.RemoveMemberResponse,
)

# ProductService
APPLY_PRODUCT = Method(
    "/gatekey.v1.ProductService/ApplyProduct", product_service_pb2.ApplyProductRequest, product_service_pb2.Product
)
GET_PRODUCT = Method(
    "/gatekey.v1.ProductService/GetProduct", product_service_pb2.GetProductRequest, product_service_pb2.Product
)
LIST_PRODUCTS = Method(
    "/gatekey.v1.ProductService/ListProducts",
    product_service_pb2.ListProductsRequest,
    product_service_pb2.ListProductsResponse,
)
DELETE_PRODUCT = Method(
    "/gatekey.v1.ProductService/DeleteProduct",
    product_service_pb2.DeleteProductRequest,
    product_service_pb2.DeleteProductResponse,
)

# TenantService
CREATE_TENANT = Method(
    "/gatekey.v1.TenantService/CreateTenant", tenant_service_pb2.CreateTenantRequest, tenant_service_pb2.Tenant
)
GET_TENANT = Method(
    "/gatekey.v1.TenantService/GetTenant", tenant_service_pb2.GetTenantRequest, tenant_service_pb2.Tenant
)
LIST_TENANTS = Method(
    "/gatekey.v1.TenantService/ListTenants",
    tenant_service_pb2.ListTenantsRequest,
    tenant_service_pb2.ListTenantsResponse,
)
UPDATE_TENANT = Method(
    "/gatekey.v1.TenantService/UpdateTenant", tenant_service_pb2.UpdateTenantRequest, tenant_service_pb2.Tenant
)
SUSPEND_TENANT = Method(
    "/gatekey.v1.TenantService/SuspendTenant", tenant_service_pb2.SuspendTenantRequest, tenant_service_pb2.Tenant
)
RESUME_TENANT = Method(
    "/gatekey.v1.TenantService/ResumeTenant", tenant_service_pb2.ResumeTenantRequest, tenant_service_pb2.Tenant
)
DELETE_TENANT = Method(
    "/gatekey.v1.TenantService/DeleteTenant",
    tenant_service_pb2.DeleteTenantRequest,
    tenant_service_pb2.DeleteTenantResponse,
)
UNDELETE_TENANT = Method(
    "/gatekey.v1.TenantService/UndeleteTenant", tenant_service_pb2.UndeleteTenantRequest, tenant_service_pb2.Tenant
)
