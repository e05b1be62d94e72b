// Numbers as people read them, and the terms of the README.

import { PAGE, PRESENT, PSE, PTRS, SPECIAL, entryPfn, swapSlot } from "kd/model.js";
import { PAGE_KINDS, entryBits, pageKind } from "kd/kinds.js";

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
  const set = Number(flags);
  return (set & VM.READ ? "r" : "-") + (set & VM.WRITE ? "w" : "-") + (set & VM.EXEC ? "x" : "-") + (set & VM.MAYSHARE ? "s" : "p");
}

/** The name of a VMA: its file, [heap], [stack], or "". */
export function vmaName(machine, mm, vma) {
  if (vma.mapping) return machine.files.get(vma.mapping)?.name ?? "a file";
  if (vma.start < mm.brk && vma.end > mm.startBrk) return "[heap]";
  if (vma.start <= mm.startStack && mm.startStack <= vma.end) return "[stack]";
  return "";
}

export const findVma = (mm, vaddr) => [...mm.vmas.values()].find((vma) => vma.start <= vaddr && vaddr < vma.end);

/** An entry as a hexadecimal number. */
export const entryHex = (low, high) => "0x" + (high ? high.toString(16) + low.toString(16).padStart(8, "0") : low.toString(16));

/** What led to an event, the outermost first: "store / fault at 0x7f…". */
export function causeText(head, event) {
  const named = new Set(["syscall", "access", "ahead"]);
  const parts = event.causes.map((cause) => {
    const name = head.causes[cause] ?? "?";
    return named.has(name) ? head.calls[event.nr] ?? `call ${event.nr}` : name;
  });
  return parts.join(" / ") + (event.address ? ` at ${hex(event.address)}` : "");
}

/** A process's name and pid. */
export const taskName = (machine, pid) => {
  const comm = machine.tasks.get(pid)?.comm;
  return comm ? `${comm} ${pid}` : `process ${pid}`;
};

/** What is known of a page, for the panel: {title, lines, facts}. `each` pages from `vaddr` on. */
export function pageFacts(scene, pid, vaddr, each = 1) {
  const { machine } = scene, task = machine.tasks.get(pid), mm = task && machine.mms.get(task.mm);
  const title = each > 1 ? `${hex(vaddr)}, ${count(each, "page")}` : `Page ${hex(vaddr)}`;
  if (!mm) return { title, lines: ["The process has ended: it has no pages."], facts: [] };
  const vma = findVma(mm, vaddr);
  if (!vma) return { title, lines: [PAGE_KINDS[8].about], facts: [] };
  const facts = [["Process", taskName(machine, pid)], ["VMA", `${hex(vma.start)}–${hex(vma.end)} ${rights(vma.flags)} ${vmaName(machine, mm, vma) || "anonymous"}`]];
  if (each > 1) return { title, lines: mixLines(scene, mm, vma, vaddr, each), facts };
  const [low, high] = mm.entry(vaddr), kind = pageKind(low, high, vma, machine, scene.counts);
  facts.push(["Entry", low || high ? entryHex(low, high) : "empty"]);
  if (low & PRESENT) {
    if (machine.nrFrames) facts.push(["Frame", hex(entryPfn(low, high) + (low & PSE ? Math.floor(vaddr / PAGE) % PTRS : 0))]);
    facts.push(["Bits", entryBits(low, high).filter((bit) => bit.isSet).map((bit) => bit.name).join(", ")]);
    if (machine.nrFrames && !(low & SPECIAL)) facts.push(["Entries that map it", String(scene.counts[entryPfn(low, high)] ?? 0)]);
  } else if (low || high) facts.push(["Swap slot", String(swapSlot(low, high))]);
  return { title: `${title}: ${PAGE_KINDS[kind].name}`, lines: [PAGE_KINDS[kind].about], facts };
}

function mixLines(scene, mm, vma, vaddr, each) {
  const totals = new Map();
  for (let at = vaddr; at < Math.min(vma.end, vaddr + each * PAGE); at += PAGE) {
    const [low, high] = mm.entry(at), kind = pageKind(low, high, vma, scene.machine, scene.counts);
    totals.set(kind, (totals.get(kind) || 0) + 1);
  }
  return [...totals].map(([kind, number]) => `${number.toLocaleString("en")} ${PAGE_KINDS[kind].name}`);
}
