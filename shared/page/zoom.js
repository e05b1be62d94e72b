// The whole address space as a bar, to scale, and the window of it that is shown: from 128 TiB to a page. By mouse
// (wheel, click on a VMA) and by keys.

import { PAGE } from "kd/model.js";
import { cssValue, el, penFor, setText } from "kd/dom.js";
import { hex, size, vmaName } from "kd/words.js";

const WHOLE = 2 ** 47, HEIGHT = 34;

export class Zoom {
  constructor(app) {
    this.app = app;
    this.window = { start: 0, end: WHOLE };
    this.canvas = el("canvas", { tabindex: "0", role: "application", "aria-label": "The address space to scale", "aria-roledescription": "ruler" });
    this.where = el("output", { class: "where" });
    const button = (text, title, act) => el("button", { type: "button", title, "aria-label": title, text, click: act });
    this.element = el("div", { class: "zoom" }, el("div", { class: "ruler" }, this.canvas), el("div", { class: "tools" },
      button("Whole", "Show the whole address space", () => this.set(0, WHOLE)),
      button("−", "Zoom out", () => this.scale(4)), button("+", "Zoom in", () => this.scale(1 / 4)),
      button("◂", "To lower addresses", () => this.pan(-0.5)), button("▸", "To higher addresses", () => this.pan(0.5)), this.where));
    this.canvas.addEventListener("wheel", (event) => this.onWheel(event), { passive: false });
    this.canvas.addEventListener("click", (event) => this.onClick(event));
    this.canvas.addEventListener("keydown", (event) => this.onKey(event));
    this.canvas.addEventListener("mousemove", (event) => this.app.explain(this.facts(this.addressAt(event))));
    this.canvas.addEventListener("focus", () => this.app.explain(this.facts(this.window.start)));
  }

  /** Show [start, end), in whole pages, at least one. */
  set(start, end) {
    const length = Math.max(PAGE, Math.min(WHOLE, Math.ceil((end - start) / PAGE) * PAGE));
    const first = Math.max(0, Math.min(WHOLE - length, Math.floor(start / PAGE) * PAGE));
    this.window = { start: first, end: first + length };
    this.app.redraw();
  }

  include(vaddr) {
    const { start, end } = this.window;
    if (vaddr < start || vaddr >= end) this.set(vaddr - (end - start) / 2, vaddr + (end - start) / 2);
  }

  scale(factor, around = null) {
    const { start, end } = this.window, chosen = this.app.chosen.vaddr;
    const inside = chosen !== null && chosen >= start && chosen < end;
    const centre = around ?? (inside ? chosen : (start + end) / 2), part = (centre - start) / (end - start);
    const length = Math.max(PAGE, (end - start) * factor);
    this.set(centre - part * length, centre + (1 - part) * length);
  }

  pan(part) {
    const { start, end } = this.window, by = Math.max(PAGE, (end - start) * Math.abs(part)) * Math.sign(part);
    this.set(start + by, end + by);
  }

  addressAt(event) {
    const box = this.canvas.getBoundingClientRect(), { start, end } = this.window;
    return Math.floor((start + ((event.clientX - box.left) / box.width) * (end - start)) / PAGE) * PAGE;
  }

  vmaAt(vaddr) {
    const close = (this.window.end - this.window.start) / (this.width || 1) * 3;
    const vmas = this.mm ? this.mm.sortedVmas() : [];
    return vmas.find((vma) => vma.start <= vaddr && vaddr < vma.end) || vmas.find((vma) => vma.start - close <= vaddr && vaddr < vma.end + close);
  }

  onWheel(event) {
    if (event.ctrlKey) return; // The browser's own zoom.
    event.preventDefault();
    this.scale(event.deltaY > 0 ? 1.5 : 1 / 1.5, this.addressAt(event));
  }

  onClick(event) {
    const vma = this.vmaAt(this.addressAt(event));
    if (vma) this.set(vma.start, vma.end);
  }

  onKey(event) {
    const act = {
      "+": () => this.scale(1 / 4), "=": () => this.scale(1 / 4), "-": () => this.scale(4), ArrowLeft: () => this.pan(-0.5),
      ArrowRight: () => this.pan(0.5), ArrowUp: () => this.scale(1 / 2), ArrowDown: () => this.scale(2), Home: () => this.set(0, WHOLE),
      Enter: () => this.nextVma(event.shiftKey ? -1 : 1),
    }[event.key];
    if (!act || event.ctrlKey || event.altKey || event.metaKey) return;
    act();
    event.preventDefault();
    event.stopPropagation();
  }

  /** Show the next VMA alone. */
  nextVma(by) {
    const vmas = this.mm ? this.mm.sortedVmas() : [];
    if (!vmas.length) return;
    const at = vmas.findIndex((vma) => vma.start === this.window.start && vma.end === this.window.end);
    const next = vmas[(at + by + vmas.length) % vmas.length] || vmas[0];
    this.set(next.start, next.end);
    this.app.explain(this.facts(next.start));
  }

  facts(vaddr) {
    const vma = this.vmaAt(vaddr), { start, end } = this.window;
    const name = vma ? vmaName(this.scene.machine, this.mm, vma) || "anonymous" : "";
    return {
      title: vma ? `${hex(vma.start)}–${hex(vma.end)}` : hex(vaddr),
      facts: [vma ? ["VMA", `${name}, ${size(vma.end - vma.start)}`] : ["VMA", "none: an access here is SIGSEGV"],
        ["The bar", `${hex(start)}–${hex(end)}, ${size(end - start)}`]],
      lines: ["Click on a VMA, or press Enter, to see it alone. The wheel, + and − zoom; the arrows move."],
    };
  }

  draw(scene, mm) {
    this.scene = scene;
    this.mm = mm;
    const { start, end } = this.window;
    setText(this.where, `${hex(start)}–${hex(end)}  ${size(end - start)}`);
    const width = this.element.firstChild.clientWidth, vmas = mm ? mm.sortedVmas() : [];
    const key = `${width} ${start} ${end} ${devicePixelRatio} ${scene.theme} ${mm ? mm.vmaStamp : ""}`;
    if (!width || key === this.key) return;
    this.key = key;
    this.width = width;
    const pen = penFor(this.canvas, width, HEIGHT), scale = width / (end - start);
    pen.fillStyle = cssValue("--page-8");
    pen.fillRect(0, 6, width, HEIGHT - 12);
    let last = -10;
    const colours = [cssValue("--page-2"), cssValue("--page-3")];
    for (const vma of vmas) {
      if (vma.end <= start || vma.start >= end || last >= width) continue;
      const x = Math.max(0, (vma.start - start) * scale), length = Math.max(3, (Math.min(vma.end, end) - Math.max(start, vma.start)) * scale);
      const place = Math.min(width - 3, x < last + 1 ? last + 1 : x); // Neighbours stay apart, so that each can be seen.
      pen.fillStyle = colours[vma.mapping ? 1 : 0];
      pen.fillRect(place, 2, Math.max(2, Math.min(length, width - place)), HEIGHT - 4);
      last = place + length;
    }
  }
}
