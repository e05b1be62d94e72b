// What a step did, in sentences: for someone who sees only the screen. Pure: events in, text out.

import { count, hex, rights, size } from "kd/words.js";

const ACCESSES = { load: "reads", store: "writes", touch: "touches" };
const pages = (number) => count(Number(number), "page");
const frameText = (pfn) => (pfn ? `frame ${hex(pfn)}` : "a frame");
const pfnOf = (entry) => Number((BigInt(entry) >> 12n) & 0xffffffffffn);

/** Return {title, lines} of the events of one step. `head` is that of the record; `named` returns a process's name. */
export function storyOf(head, events, named) {
  if (!events.length) return { title: "The record begins here", lines: [] };
  const told = new Map(); // by number of the event, its lines
  for (const event of events) {
    const number = event.kind?.number, tell = TELL[number];
    const line = tell ? tell(event.fields, event, head, events) : "";
    if (!line) continue;
    if (!told.has(number)) told.set(number, []);
    if (!told.get(number).includes(line)) told.get(number).push(line);
  }
  const lines = [];
  for (const number of [...FIRST.filter((one) => told.has(one)), ...[...told.keys()].filter((one) => !FIRST.includes(one))]) {
    const all = told.get(number), many = MANY[number];
    if (number === 168) lines.push(tablesText(all));
    else if (all.length > 2 && many) lines.push(many(all.length));
    else lines.push(...all.slice(0, 4), ...(all.length > 4 ? [`… and ${all.length - 4} more`] : []));
  }
  return { title: titleOf(head, events, named), lines };
}

const FIRST = [24, 37, 34, 82, 81, 83, 25]; // What is told before all else: what is wanted, who comes, who goes.
const MANY = {
  32: (number) => `${number} VMAs are new.`, 33: (number) => `${number} VMAs are gone.`, 25: (number) => `${number} page faults are settled.`,
  50: () => "The entries of many pages are emptied.",
};

function tablesText(tables) {
  if (tables.length > 4) return `The page table gets ${tables.length} tables.`;
  return `The page table gets ${tables.length === 1 ? tables[0] : `${tables.slice(0, -1).join(", ")} and ${tables[tables.length - 1]}`}.`;
}

/** Return one line about a step: who does what. */
export function titleOf(head, events, named) {
  const first = events[0];
  const who = first.pid ? named(first.pid) : "the kernel";
  if (!first.pid && head.causes[first.causes[0]] === "exit") return "the kernel frees an address space that nobody has any more";
  const outer = head.causes[first.causes[0]] || "";
  if (first.kind?.number === 16) return `${who}: ${callText(head, first)}${resultText(head, events)}`;
  if (outer === "access" || outer === "ahead") {
    const verb = ACCESSES[head.calls[first.nr]] || "uses";
    const address = first.fields.address ?? first.address;
    return `${who} ${verb} memory${address ? ` at ${hex(address)}` : ""}`;
  }
  return `${who}: ${outer ? CAUSES[outer] || outer.replaceAll("_", " ") : first.name}`;
}

const CAUSES = {
  exit: "its end", attach: "it attaches to the machine", reclaim: "an allocation waits for frames",
  kswapd: "the background pass of reclaim", oom: "the OOM killer", truncate: "a mapped file is cut off",
  syscall: "a call goes on", fault: "a page fault",
};

function resultText(head, events) {
  const exit = events.find((event) => event.kind?.number === 17);
  if (!exit || (SPECIAL[head.calls[exit.fields.id]] && exit.fields.ret >= 0)) return "";
  const ret = exit.fields.ret;
  return ret < 0 && ret > -4096 ? ` fails: error ${-ret}` : ` = ${ret > 65535 ? hex(ret) : ret}`;
}

const SPECIAL = { attach: "it attaches to the machine", procread: "it reads a file of /proc", procwrite: "it writes a setting", clone: "fork: a copy of its memory is made for a child" };

function callText(head, event) {
  const { id, arg0, arg1, arg2 } = event.fields, name = head.calls[id] || `call ${id}`;
  if (id >= 4096) return SPECIAL[name] || name.replaceAll("_", " ");
  const asText = {
    mmap: () => `mmap(${arg0 ? hex(arg0) : "anywhere"}, ${size(Number(arg1))}, ${rights(Number(arg2)).slice(0, 3)})`,
    munmap: () => `munmap(${hex(arg0)}, ${size(Number(arg1))})`,
    mprotect: () => `mprotect(${hex(arg0)}, ${size(Number(arg1))}, ${rights(Number(arg2)).slice(0, 3)})`,
    brk: () => (arg0 ? `brk(${hex(arg0)})` : "brk(0)"),
    madvise: () => `madvise(${hex(arg0)}, ${size(Number(arg1))}, ${arg2})`,
  }[name];
  return asText ? asText() : `${name}()`;
}

const FAULTS = {
  spurious: () => "The entry allows the access already.",
  anonymous: (where, frame) => `${where} had no frame. It gets ${frame} of zeros: demand paging.`,
  zero_page: (where) => `${where} is only read. Its entry maps the zero page that all share: no frame is taken.`,
  file: (where, frame) => `${where} maps ${frame} of the page cache now.`,
  fault_around: (where) => `${where} and its neighbours map frames of the page cache that are there already.`,
  cow: (where, frame, before) => (before
    ? `${where} shared ${before}. It gets a copy, ${frame}: copy-on-write.`
    : `${where} shared the zero page. It gets ${frame}: copy-on-write.`),
  reuse: (where, frame) => `Nobody else maps ${frame} any more: ${where.toLowerCase().replace("the page", "the page")} keeps it, and may write.`,
  shared: (where) => `The first write to ${where.toLowerCase()} of a shared file: the entry becomes writable.`,
  swap_in: (where, frame) => `${where} was in the swap file. It comes back, into ${frame}.`,
  huge: (where) => `${where} is in 2 MiB that get one huge page.`,
  huge_zero_page: (where) => `${where} is in 2 MiB that map the huge zero page.`,
};

function faultText(fields, event, head, events) {
  const names = event.kind.fields.find((field) => field.name === "kind").names;
  const kind = names[fields.kind];
  if (fields.result === 0x40) return `No VMA allows the access to ${hex(fields.address)}: the process gets SIGSEGV.`;
  if (fields.result === 2) return `There is no page behind ${hex(fields.address)}: the process gets SIGBUS.`;
  if (fields.result === 1) return "There is no frame left: the OOM killer must choose a process.";
  const page = fields.address - (fields.address % 4096);
  const set = events.findLast((one) => one.kind && (one.kind.number === 48 || one.kind.number === 49) && one.number < event.number
    && one.fields.vaddr <= page && page < one.fields.vaddr + 4096 * one.fields.nr_pages);
  const pfn = set ? pfnOf(set.fields.new) + (page - set.fields.vaddr) / 4096 : 0;
  const old = set && BigInt(set.fields.old) & 0x101n && !(BigInt(set.fields.old) & 0x200n) ? pfnOf(set.fields.old) : 0;
  const many = Number(fields.nr_pages) > 1 ? ` ${pages(fields.nr_pages)} in all.` : "";
  return (FAULTS[kind]?.(`The page ${hex(page)}`, frameText(pfn), old ? frameText(old) : "") ?? `A page fault: ${kind}.`) + many;
}

const range = (start, end) => `${hex(start)}–${hex(end)}`;
const FORKS = /^(clone|fork|vfork|clone3)$/;
const LEVELS = ["", "PTE", "PMD", "PUD", "PGD"];
const isCause = (head, event, name) => head.calls[event.nr] === name;

function replaceText(fields, event, head) {
  const old = BigInt(fields.old), now = BigInt(fields.new), RW = 2n;
  if (old & 0x101n && now && !(now & 0x101n)) return `${pages(fields.nr_pages)} from ${hex(fields.vaddr)} on: the entry names a slot of the swap file now, and no frame.`;
  if (!(old & 0x101n) || !(now & 0x101n)) return "";
  if (pfnOf(fields.old) !== pfnOf(fields.new) || (old & RW) === (now & RW)) return "";
  const isClone = FORKS.test(head.calls[event.nr] || "");
  if (old & RW) {
    const why = isClone ? " Parent and child share the frames: the first write makes a copy." : "";
    return `${pages(fields.nr_pages)} from ${hex(fields.vaddr)} on: the entries become read-only.${why}`;
  }
  return "";
}

const TELL = {
  24: (f) => `The processor cannot translate ${hex(f.address)} for a ${f.error_code & 2 ? "write" : f.error_code & 16 ? "fetch" : "read"}: ${f.error_code & 1 ? "the entry forbids it" : "there is no entry"}. A page fault.`,
  25: faultText,
  32: (f, e, head) => `A VMA is new: ${range(f.start, f.end)}, ${pages((f.end - f.start) / 4096)}, ${rights(f.vm_flags)}.${
    isCause(head, e, "mmap") || isCause(head, e, "brk") ? " No page of it has a frame yet." : ""}`,
  33: (f) => `The VMA ${range(f.start, f.end)} is gone.`,
  34: (f, e, head, events) => (events.some((one) => one.kind?.number === 37) ? "" : f.start !== f.old_start || f.end !== f.old_end
    ? `The VMA ${range(f.old_start, f.old_end)} is ${range(f.start, f.end)} now.`
    : `The VMA ${range(f.start, f.end)} has other rights now: ${rights(f.vm_flags)}; before: ${rights(f.old_flags)}.`),
  37: (f, e) => e.causes.includes(3) && `The stack grows down: the access is just below it, so its VMA begins at ${hex(f.start)} now; before: ${hex(f.old_start)}.`,
  48: (f, e, head) => (FORKS.test(head.calls[e.nr] || "")
    ? "The child gets entries for the same frames. No contents are copied." : ""),
  49: replaceText,
  50: (f) => (f.nr_pages === 1 ? `The entry of the page ${hex(f.vaddr)} is emptied.` : `The entries of ${pages(f.nr_pages)} from ${hex(f.vaddr)} on are emptied.`),
  65: () => "Frames go back to the allocator.",
  81: (f) => `${f.parent_comm} ${f.parent_pid} has a child: ${f.child_comm} ${f.child_pid}. Its memory is a copy, made at the first writes.`,
  82: (f) => `The process runs ${f.filename} now. Its old address space is gone, and a new one takes its place.`,
  83: (f) => (f.signo ? `The process is killed by signal ${f.signo}.` : "The process ends. All its memory goes back."),
  97: (f) => `It takes signal ${f.sig}${f.fatal ? ", which is fatal" : ""}.`,
  114: () => "Few frames are free: the background pass of reclaim starts.",
  117: (f) => `${pages(f.nr_pages)} ${Number(f.nr_pages) === 1 ? "is" : "are"} written to the swap file.`,
  118: (f) => `A page is read from slot ${f.slot} of the swap file into ${frameText(f.pfn)}.`,
  119: (f) => `The OOM killer chooses ${f.comm} ${f.pid}.`,
  128: (f) => (f.ret ? `The shadow page table is refused: ${f.why}.` : `A shadow page table of process ${f.target} is opened: ${range(f.start, f.end)}.`),
  129: () => "The shadow page table follows its target from now on.",
  130: () => "The shadow page table is frozen.",
  131: () => "The shadow page table is closed.",
  168: (f) => `a ${LEVELS[f.level] || "kept"} table${f.pfn ? ` (${frameText(f.pfn)})` : ""}`,
};

/** Return one line about one event, for the list of events. */
export function eventText(head, event, events = [event]) {
  const tell = TELL[event.kind?.number];
  return (tell && tell(event.fields, event, head, events)) || "";
}
