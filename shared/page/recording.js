// A record: its chunks, the machine before any event, and the events themselves. Pure. docs/view.md has the format.

import { COMM, Machine, text, u64 } from "kd/model.js";

const CHUNK_BYTES = 40, DEFLATED = 1;
const u32 = (view, at) => view.getUint32(at, true);

/** Return a chunk of a file or of a message of the server: its head, and its bytes, still as they are stored. */
export function unpackChunk(bytes, at = 0) {
  const view = new DataView(bytes.buffer, bytes.byteOffset + at);
  if (view.byteLength < CHUNK_BYTES) return null;
  const kind = String.fromCharCode(...bytes.subarray(at, at + 4));
  const stored = view.getUint32(8, true);
  if ((kind !== "EVNT" && kind !== "KEYF") || CHUNK_BYTES + stored > view.byteLength) return null;
  return {
    kind, flags: view.getUint32(4, true), events: view.getUint32(16, true), first: u64(view, 24),
    time: view.getBigUint64(32, true), size: CHUNK_BYTES + stored,
    bytes: bytes.subarray(at + CHUNK_BYTES, at + CHUNK_BYTES + stored),
  };
}

/** Return the bytes of a chunk, decompressed. */
export async function inflate(chunk) {
  if (!(chunk.flags & DEFLATED)) return chunk.bytes;
  const stream = new Blob([chunk.bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** A record that grows: chunks, and the machine before any event of theirs. */
export class Recording {
  constructor(head) {
    this.head = head;
    this.events = new Map(head.events.map((event) => [event.number, event]));
    this.keys = []; // {first, time, bytes}
    this.parts = []; // {first, events, time, bytes, places}
    this.nrEvents = 0;
    this.firstEvent = 0;
  }

  /** Add a chunk with its decompressed bytes. */
  add(chunk, bytes) {
    const part = { first: chunk.first, events: chunk.events, time: chunk.time, bytes, places: null };
    if (chunk.kind === "KEYF") {
      if (!this.keys.length) this.firstEvent = this.nrEvents = chunk.first;
      this.keys.push(part);
    } else {
      this.parts.push(part);
      this.nrEvents = chunk.first + chunk.events;
    }
  }

  /** Return the machine before event `number`. */
  machine(number) {
    const made = new Machine();
    const key = this.keys[Math.max(0, lastFrom(this.keys, number))];
    if (!key) return made;
    made.apply(key.bytes);
    this.advance(made, key.first, number);
    return made;
  }

  /** Take a machine from before event `at` to before event `number`, which is later or the same. */
  advance(machine, at, number) {
    for (let index = Math.max(0, lastFrom(this.parts, at)); index < this.parts.length; index += 1) {
      const part = this.parts[index];
      if (part.first >= number) return;
      if (part.first + part.events <= at) continue;
      const places = this.places(part);
      const skip = at - part.first;
      machine.apply(part.bytes, skip ? places[skip] : 0, Math.min(number, part.first + part.events) - at);
      at = part.first + part.events;
    }
  }

  /** The places of the events in a part. */
  places(part) {
    if (part.places) return part.places;
    const view = new DataView(part.bytes.buffer, part.bytes.byteOffset, part.bytes.byteLength);
    const places = new Uint32Array(part.events);
    for (let at = 0, count = 0; at + 8 <= view.byteLength && count < part.events; ) {
      const size = view.getUint16(at, true);
      if (size < 8) break;
      if (view.getUint16(at + 2, true) > COMM) places[count++] = at;
      at += size;
    }
    return (part.places = places);
  }

  /** Return the event of this number as an object, or null: {number, name, time, pid, tid, owner, causes, nr, address, fields}. */
  event(number) {
    const part = this.parts[lastFrom(this.parts, number)];
    if (!part || number >= part.first + part.events) return null;
    const view = new DataView(part.bytes.buffer, part.bytes.byteOffset, part.bytes.byteLength);
    const at = this.places(part)[number - part.first];
    const kind = this.events.get(view.getUint16(at + 2, true));
    const found = {
      number, kind, name: kind ? kind.name : `event ${view.getUint16(at + 2, true)}`,
      pid: u32(view, at + 4), tid: u32(view, at + 8), causes: unpackCauses(u32(view, at + 12)),
      time: view.getBigUint64(at + 16, true), nr: u32(view, at + 24), owner: u32(view, at + 28), address: u64(view, at + 32),
      fields: {},
    };
    for (const field of kind ? kind.fields : []) found.fields[field.name] = read(view, at + field.offset, field.code);
    return found;
  }
}

function read(view, at, code) {
  switch (code) {
    case "I": return view.getUint32(at, true);
    case "i": return view.getInt32(at, true);
    case "Q": { const value = view.getBigUint64(at, true); return value < 9007199254740992n ? Number(value) : value; }
    case "q": return Number(view.getBigInt64(at, true));
    case "H": return view.getUint16(at, true);
    default: return text(view, at, parseInt(code, 10));
  }
}

/** The causes of an event, the outermost first. */
function unpackCauses(causes) {
  const found = [];
  for (let rest = causes >>> 0; rest; rest = rest >>> 4) found.unshift(rest & 15);
  return found;
}

/** The index of the last part that begins at or before an event; -1 for none. */
function lastFrom(parts, number) {
  let low = 0, high = parts.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (parts[middle].first <= number) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}
