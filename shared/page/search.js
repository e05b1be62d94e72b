// Search: when did this page get a frame? When did this frame change hands? Which calls have this name? `search` is
// pure, and reads the bytes of the record without making objects of events that do not fit.

import { el, setText } from "kd/dom.js";
import { eventText, titleOf } from "kd/story.js";
import { fieldsText } from "kd/events.js";
import { hex, taskName } from "kd/words.js";

const AT = 40, MOST = 500;
const u64 = (view, at) => view.getUint32(at, true) + view.getUint32(at + 4, true) * 4294967296;
const entryFrame = (view, at) => (view.getUint32(at, true) & 0x101 ? (view.getUint32(at, true) >>> 12) + (view.getUint32(at + 4, true) & 0xfffff) * 1048576 : -1);

/** Return what a question asks for: {pfn}, {vaddr} or {text}. A frame is "pfn 0x25" or "frame 0x25"; 0x… is an address. */
export function parseQuestion(text) {
  const frame = /^\s*(?:pfn|frame)\s*(0x[0-9a-f]+|\d+)\s*$/i.exec(text), address = /^\s*(0x[0-9a-f]+)\s*$/i.exec(text);
  if (frame) return { pfn: Number(frame[1]) };
  if (address) return { vaddr: Number(address[1]) };
  return { text: text.trim().toLowerCase() };
}

/** Return the numbers of the events that fit, at most 500. `mms`: the address spaces in which an address counts. */
export function search(recording, steps, question, mms) {
  const found = [];
  for (const part of recording.parts) {
    const view = new DataView(part.bytes.buffer, part.bytes.byteOffset, part.bytes.byteLength), places = recording.places(part);
    for (let n = 0; n < places.length; n += 1) {
      const at = places[n] + AT, number = view.getUint16(places[n] + 2, true);
      const fits = question.pfn !== undefined ? hasFrame(number, view, at, question.pfn)
        : question.vaddr !== undefined ? hasPage(number, view, at, question.vaddr, mms) : hasText(recording, number, view, places[n], question.text);
      if (fits) found.push(part.first + n);
      if (found.length >= MOST) return found;
    }
  }
  return found;
}

function hasFrame(number, view, at, pfn) {
  const covers = (first, count) => first >= 0 && first <= pfn && pfn < first + count;
  if (number >= 48 && number <= 50) {
    const count = view.getUint32(at + 4, true);
    return covers(entryFrame(view, at + 16), count) || covers(entryFrame(view, at + 24), count);
  }
  if (number === 64 || number === 65 || number === 176 || number === 177) return covers(u64(view, at), view.getUint32(at + 8, true));
  if (number === 118 || number === 179 || number === 180) return u64(view, at + 8) === pfn;
  return (number === 168 || number === 169) && u64(view, at + 16) === pfn;
}

function hasPage(number, view, at, vaddr, mms) {
  if (number >= 48 && number <= 50) {
    const first = u64(view, at + 8);
    return mms.includes(view.getUint32(at, true)) && first <= vaddr && vaddr < first + 4096 * view.getUint32(at + 4, true);
  }
  if (number === 32 || number === 33) return mms.includes(view.getUint32(at, true)) && u64(view, at + 4) <= vaddr && vaddr < u64(view, at + 12);
  return number === 25 && mms.includes(view.getUint32(at, true)) && Math.floor(u64(view, at + 8) / 4096) === Math.floor(vaddr / 4096);
}

function hasText(recording, number, view, place, text) {
  const kind = recording.events.get(number);
  if (!text || !kind) return false;
  if (kind.name.includes(text)) return true;
  return number === 16 && (recording.head.calls[u64(view, place + AT)] || "").includes(text);
}

export class SearchView {
  constructor(place, app) {
    this.app = app;
    this.input = el("input", { type: "text", id: "search-text", autocomplete: "off", spellcheck: "false", placeholder: "0x1000000000, pfn 0x25, munmap, fault" });
    this.form = el("form", { class: "tools", role: "search", submit: (event) => { event.preventDefault(); this.ask(this.input.value); } },
      el("label", { for: "search-text", text: "When did something happen to" }), this.input, el("button", { text: "Search" }),
      el("button", { type: "button", text: "this page", click: () => this.app.chosen.vaddr !== null && this.ask(hex(this.app.chosen.vaddr)) }),
      el("button", { type: "button", text: "this frame", click: () => this.app.chosen.pfn !== null && this.ask(`pfn ${hex(this.app.chosen.pfn)}`) }));
    this.head = el("p", { class: "note", role: "status", text: "An address (0x…) finds all that happened to its page in the process that is shown. “pfn 0x25” finds all that happened to a frame. A word finds calls and events of that name." });
    this.results = el("ol", { class: "inside" });
    place.append(this.form, this.head, this.results);
  }

  ask(text) {
    this.input.value = text;
    const { scene } = this.app, question = parseQuestion(text);
    if (!scene) return;
    const { recording, steps, machine } = scene;
    const found = search(recording, steps, question, steps.ofPid.get(scene.chosen.pid) || []);
    const about = question.pfn !== undefined ? `frame ${hex(question.pfn)}` : question.vaddr !== undefined ? `page ${hex(question.vaddr)} of ${taskName(machine, scene.chosen.pid)}` : `“${text}”`;
    setText(this.head, found.length ? `${found.length === MOST ? `The first ${MOST}` : found.length} events about ${about}. Choose one to go there.` : `Nothing in the record is about ${about}.`);
    this.results.replaceChildren(...found.map((number) => {
      const event = recording.event(number), events = steps.events(steps.of(number), 60);
      return el("li", {}, el("button", { type: "button", click: () => this.app.player.seek(number + 1) }, el("span", { class: "number", text: String(number) }),
        el("b", { text: this.said(event, question) }), ` ${eventText(recording.head, event, events) || fieldsText(event)} `,
        el("small", { text: titleOf(recording.head, events, (pid) => taskName(machine, pid)) })));
    }));
  }

  /** What an event is for the page or the frame that was asked for. */
  said(event, question) {
    const number = event.kind?.number;
    if (number >= 48 && number <= 50 && question.text === undefined) {
      const had = BigInt(event.fields.old) & 0x101n, has = BigInt(event.fields.new) & 0x101n;
      const pfn = (entry) => Number((BigInt(entry) >> 12n) & 0xffffffffffn);
      if (!had && has) return question.pfn !== undefined ? "mapped:" : "gets a frame:";
      if (had && !has) return question.pfn !== undefined ? "not mapped any more:" : "loses its frame:";
      return had && pfn(event.fields.old) !== pfn(event.fields.new) ? "changes hands:" : "other bits:";
    }
    return { 64: "taken:", 65: "given back:", 32: "allocated:", 33: "not allocated any more:", 25: "fault:" }[number] || event.name;
  }

  draw() {}
}
