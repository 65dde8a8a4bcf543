/** Users: how their events read, and what this page offers whom. */
import type { User } from "../../api/types";
import { type Describe, thing, who } from "../sentence";

export const userDescribe: Describe = (event, nameOf) => {
  const { created, passwordChanged, deleted } = event.user ?? {};
  const actor = who(event, nameOf);
  if (created) {
    return { tone: "add", parts: [actor, ` created ${created.role} `, thing(created.userId, created.name)] };
  }
  if (passwordChanged) {
    const { userId } = passwordChanged;
    const whose = userId === actor.id ? ["their own password"] : ["the password of ", thing(userId, nameOf(userId))];
    return { tone: "change", parts: [actor, " changed ", ...whose] };
  }
  if (deleted) {
    return { tone: "remove", parts: [actor, " deleted user ", thing(deleted.userId, nameOf(deleted.userId))] };
  }
  return undefined;
};

const WRITERS = ["superadmin", "tenantadmin", "member"];

/** What to offer. The controller decides what is allowed: this only keeps buttons away that would be refused. */
export const mayManageTenants = (user: User) => user.role === "superadmin";
export const mayManageCluster = (user: User) => user.tenantId === "" && user.role === "superadmin";
export const mayReadCluster = (user: User) => user.tenantId === "" && ["superadmin", "auditor"].includes(user.role);
export const mayManageNetworks = (user: User) => WRITERS.includes(user.role);
