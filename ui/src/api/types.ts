/** The words, from proto/ (`npm run gen`), under the names this page uses. */
export type { Cvlan, CvlanCreateRequest, CvlanList } from "../gen/cvlan/v1/cvlan";
export type { Actor, Event as LogEvent } from "../gen/cvlan/v1/log";
export type { Member, MemberAddRequest, MemberAddResponse } from "../gen/cvlan/v1/member";
export type { Node, NodeList } from "../gen/cvlan/v1/node";
export type { ClusterStatus, LogVerification } from "../gen/cvlan/v1/system";
export type { Tenant, TenantCreateRequest, TenantList } from "../gen/cvlan/v1/tenant";
export type { Token, TokenCreateRequest, TokenCreateResponse, TokenList } from "../gen/cvlan/v1/token";
export type { LoginRequest, LoginResponse, RefreshRequest, User, UserList } from "../gen/cvlan/v1/user";

/** What an answer may really look like: proto3 JSON leaves defaults out. */
export type Wire<T> = Partial<T>;

/** One answer with every absent field at its proto3 default. */
export function filled<T>(defaults: T, wire: Wire<T>): T {
  return { ...defaults, ...wire };
}
