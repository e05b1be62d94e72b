// Numbers as people read them, and the terms of the README.

export const hex = (value) => "0x" + value.toString(16);

export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) { bytes /= 1024; unit += 1; }
  return `${bytes >= 100 || Number.isInteger(bytes) ? Math.round(bytes) : bytes.toFixed(1)} ${units[unit]}`;
}

export const count = (number, one, many = one + "s") => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

const VM = { READ: 1, WRITE: 2, EXEC: 4, MAYSHARE: 0x80, GROWSDOWN: 0x100, LOCKED: 0x2000 };

/** The rights of a VMA as /proc/PID/maps has them. */
export function rights(flags) {
  return (flags & VM.READ ? "r" : "-") + (flags & VM.WRITE ? "w" : "-") + (flags & VM.EXEC ? "x" : "-") + (flags & VM.MAYSHARE ? "s" : "p");
}

/** The name of a VMA: its file, [heap], [stack], or "". */
export function vmaName(machine, mm, vma) {
  if (vma.mapping) return machine.files.get(vma.mapping)?.name ?? "a file";
  if (vma.start < mm.brk && vma.end > mm.startBrk) return "[heap]";
  if (vma.start <= mm.startStack && mm.startStack <= vma.end) return "[stack]";
  return "";
}

/** What led to an event, the outermost first: "store / fault at 0x7f…". */
export function causeText(head, event) {
  const named = new Set(["syscall", "access", "ahead"]);
  const parts = event.causes.map((cause) => {
    const name = head.causes[cause] ?? "?";
    return named.has(name) ? head.calls[event.nr] ?? `call ${event.nr}` : name;
  });
  return parts.join(" / ") + (event.address ? ` at ${hex(event.address)}` : "");
}
