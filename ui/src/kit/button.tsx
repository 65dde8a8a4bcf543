import type { ComponentProps } from "react";
import { Icon, type IconName } from "./icon";

const LOOKS = {
  solid: "bg-solid text-on-solid hover:brightness-110 border-transparent",
  plain: "bg-panel text-text border-edge hover:bg-raised",
  quiet: "bg-transparent text-muted border-transparent hover:bg-raised hover:text-text",
  danger: "bg-bad-solid text-on-solid hover:brightness-110 border-transparent",
} as const;

interface ButtonProps extends ComponentProps<"button"> {
  look?: keyof typeof LOOKS;
  icon?: IconName;
}

export function Button({ look = "plain", icon, className = "", children, ...rest }: ButtonProps) {
  return (
    <button
      type="button"
      className={`inline-flex h-7.5 shrink-0 items-center gap-1.5 rounded-md border px-2.5 font-medium whitespace-nowrap transition-colors disabled:opacity-55 ${LOOKS[look]} ${className}`}
      {...rest}
    >
      {icon && <Icon name={icon} className="-ml-0.5" />}
      {children}
    </button>
  );
}

interface IconButtonProps extends ComponentProps<"button"> {
  icon: IconName;
  /** What it does, for those who do not see the mark and for those who hover. */
  label: string;
}

export function IconButton({ icon, label, className = "", ...rest }: IconButtonProps) {
  return (
    <button
      type="button"
      aria-label={label}
      title={label}
      className={`inline-flex size-6.5 shrink-0 items-center justify-center rounded-md text-muted transition-colors hover:bg-raised hover:text-text disabled:opacity-50 ${className}`}
      {...rest}
    >
      <Icon name={icon} />
    </button>
  );
}
