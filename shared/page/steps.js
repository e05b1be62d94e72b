// Which events belong together: a step is one call, one access that faults, or one pass of the kernel, with all that
// came of it. Also the group of each event for the timeline, and the sizes of address spaces over time. Pure: it reads
// the bytes of a record once, as they come.

const HEADER = 40, SYS_ENTER = 16, SYS_EXIT = 17, PAGE_FAULT = 24, MM_FAULT = 25, ACCESS = 2, RSS_STAT = 66, TABLE_FREE = 169, PGD = 4;
export const GROUPS = ["calls", "faults", "mappings", "page tables", "frames", "others"];
const OWNERS = { 161: [0, 4], 80: [20, 16], 81: [40, 36], 82: [72, 64], 194: [24, 16] }; // mm and pid of these events

function groupOf(number) {
  if (number === SYS_ENTER || number === SYS_EXIT) return 0;
  if (number === PAGE_FAULT || number === MM_FAULT) return 1;
  if (number >= 32 && number < 40) return 2;
  if ((number >= 48 && number < 52) || (number >= 168 && number < 171)) return 3;
  return (number >= 64 && number < 70) || (number >= 176 && number < 181) ? 4 : 5;
}

/** Numbers in a row that grow. */
class Numbers {
  constructor(Kind) {
    this.values = new Kind(1024);
    this.length = 0;
  }

  push(value) {
    if (this.length === this.values.length) {
      const more = new this.values.constructor(2 * this.length);
      more.set(this.values);
      this.values = more;
    }
    this.values[this.length++] = value;
  }
}

export class Steps {
  constructor(recording) {
    this.recording = recording;
    this.starts = new Numbers(Float64Array); // the first event of each step
    this.groups = new Numbers(Uint8Array); // of each event
    this.rss = new Map(); // by mm: {at: [event …], pages: [resident pages …], now: [4 counters]}
    this.ofPid = new Map(); // by pid: [mm …], the address spaces that it has had
    this.first = recording.firstEvent;
    this.nrParts = this.nrKeys = 0;
    this.outer = this.tid = 0;
    this.isInCall = false;
  }

  /** Read what has come since the last time. */
  update() {
    const { parts, keys } = this.recording;
    for (; this.nrKeys < keys.length; this.nrKeys += 1) if (!this.nrKeys) this.readKey(keys[0]);
    for (; this.nrParts < parts.length; this.nrParts += 1) this.readPart(parts[this.nrParts]);
  }

  readKey(key) {
    const view = new DataView(key.bytes.buffer, key.bytes.byteOffset, key.bytes.byteLength);
    for (let at = 0; at + 8 <= view.byteLength; ) {
      const size = view.getUint16(at, true);
      if (size < 8) break;
      this.note(view.getUint16(at + 2, true), view, at + HEADER, key.first);
      at += size;
    }
  }

  readPart(part) {
    const view = new DataView(part.bytes.buffer, part.bytes.byteOffset, part.bytes.byteLength);
    const places = this.recording.places(part);
    for (let n = 0; n < places.length; n += 1) {
      const at = places[n], number = view.getUint16(at + 2, true), event = part.first + n;
      while (this.first + this.groups.length < event) this.groups.push(5); // Events that are missing.
      if (this.begins(number, view, at)) this.starts.push(event);
      this.groups.push(groupOf(number));
      this.note(number, view, at + HEADER, event);
    }
  }

  begins(number, view, at) {
    const causes = view.getUint32(at + 12, true), tid = view.getUint32(at + 8, true);
    if (!causes) return !this.starts.length;
    const outer = causes >>> 4 * Math.floor((31 - Math.clz32(causes)) / 4);
    const isInCall = this.isInCall && outer !== ACCESS && number !== SYS_ENTER; // A call runs to its end, with all that it does.
    const isOther = !isInCall && (outer !== this.outer || tid !== this.tid);
    this.isInCall = number !== SYS_EXIT && (isInCall || number === SYS_ENTER);
    this.outer = outer;
    this.tid = tid;
    return isOther || number === SYS_ENTER || (number === PAGE_FAULT && causes === ACCESS) || !this.starts.length;
  }

  note(number, view, at, event) {
    if (number === RSS_STAT) {
      const mm = view.getUint32(at, true), member = view.getUint32(at + 8, true);
      const pages = Math.floor(view.getUint32(at + 12, true) / 4096) + view.getUint32(at + 16, true) * 1048576;
      let series = this.rss.get(mm);
      if (!series) this.rss.set(mm, (series = { at: [], pages: [], now: [0, 0, 0, 0] }));
      if (member < 4) series.now[member] = pages;
      series.at.push(event);
      series.pages.push(series.now[0] + series.now[1] + series.now[3]);
      return;
    }
    if (number === TABLE_FREE && view.getUint32(at + 4, true) === PGD) return void this.endOf(view.getUint32(at, true), event);
    const where = OWNERS[number];
    if (!where) return;
    const mm = view.getUint32(at + where[0], true), pid = view.getUint32(at + where[1], true);
    const had = this.ofPid.get(pid);
    if (!had) this.ofPid.set(pid, [mm]);
    else if (!had.includes(mm)) had.push(mm);
  }

  /** An address space is gone: from here on it has no size. */
  endOf(mm, event) {
    const series = this.rss.get(mm);
    if (!series) return;
    series.at.push(event);
    series.pages.push(0);
  }

  get count() {
    return this.starts.length;
  }

  /** Return the number of the step that an event belongs to; -1 before the first. */
  of(event) {
    let low = 0, high = this.starts.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.starts.values[middle] <= event) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  /** Return first event of a step, and the first behind it. */
  range(step) {
    if (step < 0 || step >= this.count) return [this.first, this.first];
    const end = step + 1 < this.count ? this.starts.values[step + 1] : this.recording.nrEvents;
    return [this.starts.values[step], end];
  }

  /** Return the events of a step as objects, at most `most`. */
  events(step, most = 400) {
    const [first, end] = this.range(step), found = [];
    for (let number = first; number < Math.min(end, first + most); number += 1) {
      const event = this.recording.event(number);
      if (event) found.push(event);
    }
    return found;
  }
}

/** What events have changed: pages by mm, frames, pages of the shadow page table, tables; runs of [first, end). */
export function changesOf(events) {
  const changes = { pages: new Map(), frames: [], shadow: [], vmas: new Map() };
  const addRun = (runs, start, end) => {
    const last = runs[runs.length - 1];
    if (last && last[1] === start) last[1] = end;
    else runs.push([start, end]);
  };
  const add = (map, mm, start, end) => {
    if (!map.has(mm)) map.set(mm, []);
    addRun(map.get(mm), start, end);
  };
  for (const { kind, fields } of events) {
    const number = kind ? kind.number : 0;
    if ((number >= 48 && number <= 50) || number === 170) {
      add(changes.pages, fields.mm, fields.vaddr, fields.vaddr + 4096 * fields.nr_pages);
      for (const entry of [fields.old, fields.new]) {
        const value = BigInt(entry);
        if (value & 0x101n && number !== 170) {
          const pfn = Number((value >> 12n) & 0xffffffffffn);
          addRun(changes.frames, pfn, pfn + fields.nr_pages);
        }
      }
    } else if ((number >= 64 && number <= 65) || number === 176 || number === 177) {
      changes.frames.push([fields.pfn, fields.pfn + fields.nr_pages]);
    } else if (number === 132) changes.shadow.push([fields.vaddr, fields.vaddr + 4096 * fields.nr_pages]);
    else if (number === 32) add(changes.vmas, fields.mm, fields.start, fields.end);
    else if (number === 34) {
      const { mm, start, end, old_start: first, old_end: last } = fields;
      if (start === first && end === last) add(changes.vmas, mm, start, end); // Other rights: all of it.
      if (start < first) add(changes.vmas, mm, start, first);
      if (end > last) add(changes.vmas, mm, last, end);
    }
  }
  return changes;
}

/** Return whether a run touches one of `runs`. */
export const touches = (runs, start, end) => runs !== undefined && runs.some(([first, stop]) => first < end && start < stop);
