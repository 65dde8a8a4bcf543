import { type FormEvent, useState } from "react";
import { login } from "../../api/session";
import { Button } from "../../kit/button";
import { Field } from "../../kit/field";
import { Mark } from "../../kit/icon";
import { ProblemBox } from "../../kit/problem";

/** The door. `why`: what ended the session before. */
export function Login({ why }: { why: string | undefined }) {
  const [name, setName] = useState("admin");
  const [password, setPassword] = useState("");
  const [tenant, setTenant] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const submit = async (event: FormEvent) => {
    event.preventDefault();
    if (busy) return;
    setBusy(true);
    setError(undefined);
    try {
      await login(name.trim(), password, tenant.trim());
    } catch (problem) {
      setError(problem);
      setBusy(false);
    }
  };
  return (
    <main className="grid h-full place-items-center overflow-auto p-6">
      <form onSubmit={submit} className="grid w-full max-w-88 gap-5" noValidate>
        <div className="grid justify-items-center gap-3 pb-1">
          <Mark className="size-11" />
          <h1 className="text-xl font-semibold">Log in to CVLAN</h1>
        </div>
        <div className="grid gap-4 rounded-xl border bg-panel p-5 shadow-sm">
          {why && !error && (
            <p role="status" className="text-muted">
              {why}
            </p>
          )}
          <Field label="Name" value={name} onChange={setName} autoComplete="username" autoCapitalize="none" required />
          <Field
            label="Password"
            type="password"
            value={password}
            onChange={setPassword}
            autoComplete="current-password"
            autoFocus
            required
          />
          <Field
            label="Tenant"
            value={tenant}
            onChange={setTenant}
            autoComplete="organization"
            autoCapitalize="none"
            placeholder="none: the whole cluster"
          />
          <ProblemBox error={error} />
          <Button type="submit" look="solid" className="h-9 justify-center" disabled={busy || !name || !password}>
            {busy ? "Logging in…" : "Log in"}
          </Button>
        </div>
        <p className="text-center text-xs text-muted">
          The first password was printed at the controller's first start, and is in{" "}
          <code className="mono">keys/bootstrap</code> of its data folder.
        </p>
      </form>
    </main>
  );
}
