import { type FormEvent, type ReactNode, useEffect, useId, useRef, useState } from "react";
import { Button, IconButton } from "./button";
import { Field } from "./field";
import { ProblemBox } from "./problem";

/** Characters; the log keeps it for ever. */
const REASON_MAX = 200;

interface DialogProps {
  title: string;
  onClose: () => void;
  wide?: boolean;
  children: ReactNode;
}

/** A modal: the browser's own, with its focus trap, its Escape and its return of the focus. */
export function Dialog({ title, onClose, wide = false, children }: DialogProps) {
  const element = useRef<HTMLDialogElement>(null);
  const titleId = useId();
  useEffect(() => {
    const dialog = element.current;
    dialog?.showModal();
    // Where typing begins; else at the answer that changes nothing.
    dialog?.querySelector<HTMLElement>("input, select, footer button")?.focus();
    return () => dialog?.close();
  }, []);
  return (
    <dialog
      ref={element}
      aria-labelledby={titleId}
      onClose={onClose}
      onCancel={onClose}
      className={`m-auto max-h-[92dvh] w-[calc(100%-2rem)] rounded-xl border bg-panel p-0 text-text shadow-2xl ${wide ? "max-w-2xl" : "max-w-md"}`}
    >
      <header className="flex items-center justify-between border-b py-2.5 pr-2.5 pl-5">
        <h2 id={titleId} className="text-base font-semibold">
          {title}
        </h2>
        <IconButton icon="close" label="Close" onClick={onClose} />
      </header>
      {children}
    </dialog>
  );
}

interface FormDialogProps extends DialogProps {
  action: string;
  danger?: boolean;
  ready?: boolean;
  /** Asks why, too; the answer is kept in the log. */
  askReason?: boolean;
  /** What the form does; the dialog stays open, with the problem, if it throws. */
  onSubmit: (reason: string) => Promise<void>;
}

/** A dialog that does one thing. */
export function FormDialog(props: FormDialogProps) {
  const { action, danger = false, ready = true, askReason = false, onSubmit, children, ...rest } = props;
  const [reason, setReason] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const submit = async (event: FormEvent) => {
    event.preventDefault();
    if (busy || !ready) return;
    setBusy(true);
    setError(undefined);
    try {
      await onSubmit(reason.trim());
    } catch (problem) {
      setError(problem);
      setBusy(false);
    }
  };
  return (
    <Dialog {...rest}>
      <form onSubmit={submit} noValidate>
        <div className="grid gap-4 px-5 py-4">
          {children}
          {askReason && (
            <Field
              label="Reason"
              value={reason}
              onChange={setReason}
              maxLength={REASON_MAX}
              placeholder="Kept in the log. May be empty."
            />
          )}
          <ProblemBox error={error} />
        </div>
        <footer className="flex justify-end gap-2 border-t bg-ground/60 px-5 py-3">
          <Button onClick={rest.onClose}>Cancel</Button>
          <Button type="submit" look={danger ? "danger" : "solid"} disabled={busy || !ready}>
            {busy ? "One moment…" : action}
          </Button>
        </footer>
      </form>
    </Dialog>
  );
}
