// The model of a record, as shared/recording has it in Python: records in, the machine at any moment out. Pure: it knows
// no page and no network. docs/view.md describes the format; tests/web compares this with the Python model.

const HEADER_BYTES = 40;
export const COMM = 2;
const LOST = 1;
export const PAGE = 4096, PTRS = 512;
export const PRESENT = 0x101, SPECIAL = 1 << 9, PSE = 1 << 7, DIRTY = 1 << 6, ACCESSED = 1 << 5, RW = 2, USER = 4;
export const FREE = 0, PCP = 1, TAKEN = 2;
const TWO32 = 4294967296;
const MAX_FRAMES = 1 << 26, MAX_RUN = 1 << 20, MAX_SHADOW = 2048;
const decoder = new TextDecoder();

/** Return a little-endian 64-bit word as a number: exact up to 2^53, as addresses, frames and counts are. */
export function u64(view, at) {
  return view.getUint32(at, true) + view.getUint32(at + 4, true) * TWO32;
}

export function text(view, at, length) {
  const bytes = new Uint8Array(view.buffer, view.byteOffset + at, length);
  const end = bytes.indexOf(0);
  return decoder.decode(end < 0 ? bytes : bytes.subarray(0, end));
}

let lastStamp = 0;

/** One address space. Its entries are in leaf tables of 512 pairs of 32-bit words, the lower word first. */
class AddressSpace {
  constructor(number) {
    this.number = number;
    this.pid = 0;
    this.vmas = new Map(); // by start: {start, end, flags, pgoff, mapping}; changed by `changedVmas` alone
    this.sorted = null;
    this.vmaStamp = (lastStamp += 1); // Another number whenever they have changed.
    this.tables = new Map(); // "level:vaddr" -> pfn; level 1 is PTE, 4 PGD
    this.deposited = [];
    this.leaves = new Map(); // vaddr / 2 MiB -> Uint32Array(1024)
    this.huge = new Map(); // vaddr / 2 MiB -> [low, high]
    this.startBrk = this.brk = this.startStack = 0;
    this.rss = [0, 0, 0, 0]; // pages: files, anonymous, in the swap file, files in memory
  }

  /** Give pages in a row these entries: `low`, `high` and what counts up from it; 0 empties them. */
  setRun(vaddr, pages, low, high) {
    let first = Math.floor(vaddr / PAGE);
    if (pages > 1 && low & PRESENT && low & PSE) {
      const number = Math.floor(first / PTRS);
      this.huge.set(number, [low, high]);
      this.leaves.delete(number);
      return;
    }
    const isEmpty = low === 0 && high === 0;
    const step = isEmpty ? 0 : stepOf(low, high);
    const end = first + pages;
    while (first < end) {
      const number = Math.floor(first / PTRS), offset = first % PTRS, count = Math.min(end - first, PTRS - offset);
      if (pages > 1) this.huge.delete(number);
      let leaf = this.leaves.get(number);
      if (!leaf && !(isEmpty && pages === 1)) this.leaves.set(number, (leaf = new Uint32Array(2 * PTRS)));
      if (!leaf) return;
      leaf.stamp = (leaf.stamp || 0) + 1; // The views look again at leaf tables whose stamp is another one.
      for (let at = 2 * offset, stop = at + 2 * count; at < stop; at += 2) {
        leaf[at] = low;
        leaf[at + 1] = high;
        const sum = low + step;
        if (sum < 0) high = (high - 1) >>> 0;
        else if (sum >= TWO32) high = (high + 1) >>> 0;
        low = sum >>> 0;
      }
      first += count;
    }
  }

  /** Return [low, high] of the entry for a page; that of 2 MiB inside a huge page; [0, 0] for none. */
  entry(vaddr) {
    const number = Math.floor(vaddr / (PAGE * PTRS));
    const leaf = this.leaves.get(number);
    if (!leaf) return this.huge.get(number) || [0, 0];
    const at = 2 * (Math.floor(vaddr / PAGE) % PTRS);
    return [leaf[at], leaf[at + 1]];
  }

  /** The VMAs, to be changed. */
  changedVmas() {
    this.sorted = null;
    this.vmaStamp = lastStamp += 1;
    return this.vmas;
  }

  /** The VMAs by address. */
  sortedVmas() {
    return (this.sorted ||= [...this.vmas.values()].sort((one, other) => one.start - other.start));
  }
}

/** How much an entry's successor in a run differs from it. Hidden frames and slots are all 0, and do not count up. */
function stepOf(low, high) {
  if (!(low & PRESENT)) return high === 0xffffffff && low >>> 9 === 0x7fffff ? 0 : -512;
  return (low & (SPECIAL | PSE)) === SPECIAL || entryPfn(low, high) === 0 ? 0 : PAGE;
}

/** The frame that an entry names. */
export function entryPfn(low, high) {
  return (low >>> 12) + (high & 0xfffff) * 1048576;
}

/** The slot of the swap file that an entry names, which is stored inverted from bit 9 on; -1 for no swap entry. */
export function swapSlot(low, high) {
  if ((low === 0 && high === 0) || low & PRESENT) return -1;
  return ((~low >>> 9) + ((~high & 0x7ffffff) >>> 0) * 8388608) % 2 ** 50;
}

export class Machine {
  constructor() {
    this.clear();
  }

  clear() {
    this.mms = new Map();
    this.tasks = new Map(); // by pid: {pid, ppid, comm, uid, mm, exitSignal, program}
    this.files = new Map(); // by mapping: {dev, ino, name}
    this.nrFrames = this.nrSlots = this.firstPfn = this.zeroPfn = 0;
    this.frames = new Uint8Array(0);
    this.frameFlags = new Uint32Array(0);
    this.cached = new Map(); // pfn -> [mapping, index]
    this.shmemSlots = new Map(); // "mapping:index" -> slot
    this.swapCache = new Map(); // pfn -> slot
    this.shadow = null; // {opener, target, start, end, isTracking, flags, pfns}
    this.time = 0n;
    this.lost = 0;
    this.isComplete = false;
  }

  get isWhole() {
    return this.isComplete && !this.lost;
  }

  mm(number) {
    let found = this.mms.get(number);
    if (!found) this.mms.set(number, (found = new AddressSpace(number)));
    return found;
  }

  task(pid) {
    let found = this.tasks.get(pid);
    if (!found) this.tasks.set(pid, (found = newTask(pid)));
    return found;
  }

  /** Do what the records from `at` on say, up to `count` events. Return how many were done. */
  apply(bytes, at = 0, count = Infinity) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    let done = 0;
    while (at + 8 <= view.byteLength) {
      const size = view.getUint16(at, true), number = view.getUint16(at + 2, true);
      if (size < 8 || at + size > view.byteLength) break;
      if (number > COMM) {
        if (done === count) break;
        done += 1;
        const handler = HANDLERS[number];
        if (handler && size >= HEADER_BYTES) {
          this.time = view.getBigUint64(at + 16, true);
          handler(this, view, at + HEADER_BYTES);
        }
      } else if (number === COMM) this.name(view.getUint32(at + 4, true), view.getUint32(at + 8, true), text(view, at + 12, 16));
      else if (number === LOST) this.lost += 1;
      at += size;
    }
    return done;
  }

  name(pid, mm, comm) {
    let task = this.task(pid);
    if (task.exitSignal !== null) this.tasks.set(pid, (task = newTask(pid)));
    task.comm = comm;
    this.give(task, mm);
  }

  give(task, mm) {
    if (task.mm !== mm) {
      const old = this.mms.get(task.mm);
      if (old && old.pid === task.pid) old.pid = 0;
      task.mm = mm;
    }
    if (mm) this.mm(mm).pid = task.pid;
  }

  newTask(comm, pid, mm) {
    const task = this.tasks.get(pid);
    if (!task || task.exitSignal !== null) this.tasks.set(pid, newTask(pid));
    this.task(pid).comm = comm;
    this.give(this.task(pid), mm);
  }

  setFrames(pfn, pages, state, flags) {
    if (pfn + pages > this.nrFrames) return;
    this.frames.fill(state, pfn, pfn + pages);
    if (flags !== undefined) this.frameFlags.fill(flags, pfn, pfn + pages);
  }
}

function newTask(pid) {
  return { pid, ppid: 0, comm: "", uid: -1, mm: 0, exitSignal: null, program: "" };
}

// The handlers, by number of the event: `at` is the place of its first field. shared/trace/events.py and
// state_events.py have the fields.
const HANDLERS = [];
const u32 = (view, at) => view.getUint32(at, true);

HANDLERS[192] = (m, v, at) => {
  m.clear();
  m.nrFrames = u64(v, at) <= MAX_FRAMES ? u64(v, at) : 0;
  m.nrSlots = u64(v, at + 8);
  m.firstPfn = Math.min(u32(v, at + 16), m.nrFrames);
  m.zeroPfn = u32(v, at + 20);
  m.frames = new Uint8Array(m.nrFrames);
  m.frames.fill(TAKEN, 0, m.firstPfn);
  m.frameFlags = new Uint32Array(m.nrFrames);
};
HANDLERS[193] = (m) => (m.isComplete = true);
HANDLERS[194] = (m, v, at) => {
  const task = m.task(u32(v, at + 16));
  task.comm = text(v, at, 16);
  task.ppid = u32(v, at + 20);
  task.uid = v.getInt32(at + 28, true);
  m.give(task, u32(v, at + 24));
};
HANDLERS[80] = (m, v, at) => m.newTask(text(v, at, 16), u32(v, at + 16), u32(v, at + 20));
HANDLERS[81] = (m, v, at) => {
  const pid = u32(v, at + 36);
  m.newTask(text(v, at + 20, 16), pid, u32(v, at + 40));
  m.task(pid).ppid = u32(v, at + 16);
};
HANDLERS[82] = (m, v, at) => {
  const task = m.task(u32(v, at + 64));
  task.program = text(v, at, 64);
  m.give(task, u32(v, at + 72));
};
HANDLERS[83] = (m, v, at) => {
  const task = m.task(u32(v, at + 16));
  m.give(task, 0);
  task.exitSignal = v.getInt32(at + 20, true);
};
HANDLERS[161] = (m, v, at) => {
  const number = u32(v, at), mm = m.mm(number);
  mm.startBrk = u64(v, at + 8);
  mm.brk = u64(v, at + 16);
  mm.startStack = u64(v, at + 24);
  m.give(m.task(u32(v, at + 4)), number);
};
HANDLERS[162] = (m, v, at) => (m.mm(u32(v, at)).brk = u64(v, at + 4));
HANDLERS[66] = (m, v, at) => {
  const member = u32(v, at + 8);
  if (member < 4) m.mm(u32(v, at)).rss[member] = Math.floor(u64(v, at + 12) / PAGE);
};
HANDLERS[32] = (m, v, at) => {
  const start = u64(v, at + 4);
  const vma = { start, end: u64(v, at + 12), flags: u64(v, at + 20), pgoff: u64(v, at + 28), mapping: 0 };
  m.mm(u32(v, at)).changedVmas().set(start, vma);
};
HANDLERS[33] = (m, v, at) => m.mm(u32(v, at)).changedVmas().delete(u64(v, at + 4));
HANDLERS[34] = (m, v, at) => {
  const vmas = m.mm(u32(v, at)).changedVmas(), old = vmas.get(u64(v, at + 4)), start = u64(v, at + 28);
  vmas.delete(u64(v, at + 4));
  const mapping = old ? old.mapping : 0;
  vmas.set(start, { start, end: u64(v, at + 36), flags: u64(v, at + 44), pgoff: u64(v, at + 52), mapping });
};
HANDLERS[160] = (m, v, at) => {
  const number = u32(v, at), mapping = u32(v, at + 4);
  m.files.set(mapping, { dev: u64(v, at + 16), ino: u64(v, at + 24), name: text(v, at + 32, 128) });
  const vma = number ? m.mm(number).vmas.get(u64(v, at + 8)) : null;
  if (vma) m.mm(number).changedVmas().set(vma.start, { ...vma, mapping });
};
HANDLERS[48] = HANDLERS[49] = HANDLERS[50] = HANDLERS[170] = (m, v, at) => {
  const mm = m.mm(u32(v, at)), pages = u32(v, at + 4), vaddr = u64(v, at + 8);
  const low = u32(v, at + 24), high = u32(v, at + 28);
  if (!low && !high && pages === PTRS && mm.huge.delete(Math.floor(vaddr / (PAGE * PTRS)))) return;
  if (pages <= MAX_RUN) mm.setRun(vaddr, pages, low, high);
};
HANDLERS[168] = (m, v, at) => {
  const mm = m.mm(u32(v, at)), level = u32(v, at + 4);
  if (level === 0) mm.deposited.push(u64(v, at + 16));
  else mm.tables.set(`${level}:${u64(v, at + 8)}`, u64(v, at + 16));
};
HANDLERS[169] = (m, v, at) => {
  const number = u32(v, at), mm = m.mm(number), level = u32(v, at + 4), vaddr = u64(v, at + 8);
  if (level === 4) m.mms.delete(number);
  else if (level !== 0) {
    mm.tables.delete(`${level}:${vaddr}`);
    if (level === 1) mm.leaves.delete(Math.floor(vaddr / (PAGE * PTRS)));
  } else if (mm.deposited.includes(u64(v, at + 16))) mm.deposited.splice(mm.deposited.indexOf(u64(v, at + 16)), 1);
};
HANDLERS[64] = (m, v, at) => m.setFrames(u64(v, at), u32(v, at + 8), TAKEN, u32(v, at + 16));
HANDLERS[65] = (m, v, at) => {
  const pages = u32(v, at + 8);
  m.setFrames(u64(v, at), pages, pages === 1 ? PCP : FREE, 0);
};
HANDLERS[67] = HANDLERS[69] = (m, v, at) => m.setFrames(u64(v, at), u32(v, at + 8), FREE);
HANDLERS[68] = (m, v, at) => m.setFrames(u64(v, at), u32(v, at + 8), PCP);
HANDLERS[176] = (m, v, at) => {
  const pfn = u64(v, at), pages = u32(v, at + 8), mapping = u32(v, at + 12), index = u64(v, at + 16);
  if (pfn + pages > m.nrFrames) return;
  for (let n = 0; n < pages; n += 1) m.cached.set(pfn + n, [mapping, index + n]);
};
HANDLERS[177] = (m, v, at) => {
  const pfn = u64(v, at), pages = u32(v, at + 8);
  if (pfn + pages > m.nrFrames) return;
  for (let n = 0; n < pages; n += 1) m.cached.delete(pfn + n);
};
HANDLERS[178] = (m, v, at) => {
  const key = `${u32(v, at)}:${u64(v, at + 4)}`, slot = u64(v, at + 12);
  if (slot) m.shmemSlots.set(key, slot);
  else m.shmemSlots.delete(key);
};
HANDLERS[179] = (m, v, at) => m.swapCache.set(u64(v, at + 8), u64(v, at));
HANDLERS[180] = (m, v, at) => m.swapCache.delete(u64(v, at + 8));
HANDLERS[128] = (m, v, at) => {
  const start = u64(v, at + 8), end = u64(v, at + 16), pages = (end - start) / PAGE;
  if (u64(v, at + 24) !== 0 || !(pages >= 0 && pages <= MAX_SHADOW)) return;
  const opener = u32(v, at), target = u32(v, at + 4);
  const flags = new Float64Array(pages), pfns = new Float64Array(pages);
  m.shadow = { opener, target, start, end, isTracking: false, flags, pfns };
};
HANDLERS[129] = (m) => m.shadow && (m.shadow.isTracking = true);
HANDLERS[130] = (m) => m.shadow && (m.shadow.isTracking = false);
HANDLERS[131] = (m) => (m.shadow = null);
HANDLERS[132] = (m, v, at) => {
  const shadow = m.shadow, pages = u64(v, at), vaddr = u64(v, at + 8), pfn = u64(v, at + 32);
  if (!shadow || vaddr < shadow.start) return;
  const first = (vaddr - shadow.start) / PAGE;
  if (first + pages > shadow.flags.length) return;
  shadow.flags.fill(u64(v, at + 40), first, first + pages);
  for (let n = 0; n < pages; n += 1) shadow.pfns[first + n] = pfn > 1 ? pfn + n : pfn;
};
