import { Dialog } from "../kit/dialog";

const KEYS = [
  ["Ctrl K", "Go to a tenant, CVLAN or node"],
  ["/", "Find nodes"],
  ["e", "Filter the timeline"],
  ["↑ ↓", "Walk the tree, the nodes, the results"],
  ["Enter", "Open"],
  ["Delete", "Delete the chosen node"],
  ["Esc", "Back, close, clear"],
  ["?", "This list"],
] as const;

export function Help({ onClose }: { onClose: () => void }) {
  return (
    <Dialog title="Keyboard" onClose={onClose}>
      <dl className="grid grid-cols-[5.5rem_1fr] gap-y-2 px-5 py-4">
        {KEYS.map(([key, what]) => (
          <div key={key} className="contents">
            <dt>
              <kbd className="rounded border border-edge bg-raised px-1.5 py-0.5 font-sans text-xs">{key}</kbd>
            </dt>
            <dd>{what}</dd>
          </div>
        ))}
      </dl>
    </Dialog>
  );
}
