// Cells in rows, as a canvas: a cell a page, or a frame. Each has a colour, a mark, and lines for accessed, dirty and
// locked. Only cells that have changed are painted. The mouse and the arrow keys choose a cell; `describe` explains it.

import { cssValue, el, penFor } from "kd/dom.js";
import { IS_ACCESSED, IS_DIRTY, IS_LOCKED } from "kd/kinds.js";

export const IS_TOUCHED = 2048;
const SMALL = { width: 14, height: 14, font: 10 }, BIG = { width: 54, height: 38, font: 17 }, TINY = { width: 7, height: 7, font: 0 };
const sprites = new Map();
let theme = 0;

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  sprites.clear();
  theme += 1;
});

const watcher = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) target.grid.resized(contentRect.width);
});

export class CellGrid {
  /** `kinds`: of kinds.js; `colour`: the prefix of their colours; `describe(n)` and `pick(n)` are called with cells. */
  constructor({ label, kinds, colour, describe, pick }) {
    Object.assign(this, { kinds, colour, describe, pick: pick || (() => {}) });
    this.canvas = el("canvas", { tabindex: "0", role: "application", "aria-roledescription": "map of pages", "aria-label": label });
    this.cursor = el("div", { class: "cursor", hidden: true });
    this.element = el("div", { class: "grid" }, this.canvas, this.cursor);
    this.element.grid = this;
    this.width = 0;
    this.at = 0;
    this.cells = new Uint16Array(0);
    this.drawn = new Int32Array(0);
    this.labels = this.drawnLabels = null;
    this.look = "";
    watcher.observe(this.element);
    this.canvas.addEventListener("mousemove", (event) => this.hover(event));
    this.canvas.addEventListener("click", (event) => this.click(event));
    this.canvas.addEventListener("keydown", (event) => this.onKey(event));
    this.canvas.addEventListener("focus", () => this.move(this.at));
    this.canvas.addEventListener("blur", () => (this.cursor.hidden = true));
  }

  resized(width) {
    if (width === this.width) return;
    this.width = width;
    this.paint();
  }

  /** Show cells: kind and bits each. `labels`: a text in each cell, which is big then. `size`: "small" or "tiny". */
  draw(cells, labels = null, size = "small") {
    this.cells = cells;
    this.labels = labels;
    this.size = labels ? BIG : size === "tiny" ? TINY : SMALL;
    this.paint();
  }

  paint() {
    if (!this.width || !this.size) return;
    const scale = devicePixelRatio || 1;
    this.cellWidth = Math.round(this.size.width * scale) / scale; // Whole pixels of the screen.
    this.cellHeight = Math.round(this.size.height * scale) / scale;
    const fit = Math.max(1, Math.floor(this.width / this.cellWidth));
    this.columns = fit >= 64 ? 64 * Math.floor(fit / 64) : 2 ** Math.floor(Math.log2(fit)); // Rows begin at round addresses.
    const look = `${this.columns} ${this.cells.length} ${this.cellWidth} ${theme} ${scale}`;
    if (look !== this.look) this.begin(look, scale);
    let first = this.cells.length, last = -1;
    for (let n = 0; n < this.cells.length; n += 1) {
      if (this.cells[n] === this.drawn[n] && (!this.labels || this.labels[n] === this.drawnLabels[n])) continue;
      this.drawn[n] = this.cells[n];
      if (this.labels) this.paintBig(n);
      else this.copyCell(n);
      first = Math.min(first, n);
      last = n;
    }
    if (last < 0 || this.labels) return;
    const top = Math.floor(first / this.columns) * this.pixels.height, bottom = (Math.floor(last / this.columns) + 1) * this.pixels.height;
    this.pen.putImageData(this.image, 0, 0, 0, top, this.image.width, bottom - top);
  }

  /** Begin with an empty canvas. Small cells are copied into one image, whose changed rows are put at once. */
  begin(look, scale) {
    this.look = look;
    this.sprites = [];
    const rows = Math.max(1, Math.ceil(this.cells.length / this.columns)), columns = Math.min(this.columns, this.cells.length || 1);
    this.pixels = { width: Math.round(this.cellWidth * scale), height: Math.round(this.cellHeight * scale) };
    this.pen = penFor(this.canvas, columns * this.cellWidth, rows * this.cellHeight);
    this.drawn = new Int32Array(this.cells.length).fill(-1);
    this.drawnLabels = this.labels ? [] : null;
    this.image = this.labels ? null : new ImageData(columns * this.pixels.width, rows * this.pixels.height);
    this.words = this.image && new Uint32Array(this.image.data.buffer);
  }

  copyCell(n) {
    const { width, height } = this.pixels, line = this.image.width, cell = this.cells[n];
    const from = (this.sprites[cell] ||= this.sprite(cell).words);
    let to = Math.floor(n / this.columns) * height * line + (n % this.columns) * width;
    for (let y = 0, at = 0; y < height; y += 1, to += line) for (let x = 0; x < width; x += 1) this.words[to + x] = from[at++];
  }

  paintBig(n) {
    const { cellWidth: width, cellHeight: height } = this, x = (n % this.columns) * width, y = Math.floor(n / this.columns) * height;
    this.drawnLabels[n] = this.labels[n];
    this.pen.drawImage(this.sprite(this.cells[n]).canvas, x, y, width, height);
    if (!this.labels[n]) return;
    this.pen.font = "12px ui-monospace, monospace";
    this.pen.textAlign = "center";
    this.pen.textBaseline = "middle";
    this.pen.fillStyle = cellInk(this.colour, this.cells[n] & 255);
    this.pen.fillText(this.labels[n], x + width / 2 - 0.5, y + height - 12, width - 6);
  }

  sprite(cell) {
    const key = `${this.colour} ${cell} ${this.cellWidth} ${devicePixelRatio}`;
    let made = sprites.get(key);
    if (!made) {
      const size = { width: this.cellWidth, height: this.cellHeight, font: this.size.font };
      sprites.set(key, (made = paintSprite(this.kinds[cell & 255], this.colour, cell, size)));
    }
    return made;
  }

  indexOf(event) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / this.cellWidth), row = Math.floor((event.clientY - box.top) / this.cellHeight);
    const index = row * this.columns + column;
    return column < this.columns && index >= 0 && index < this.cells.length ? index : -1;
  }

  hover(event) {
    const index = this.indexOf(event);
    if (index >= 0 && index !== this.hovered) this.describe(index, false);
    this.hovered = index;
  }

  click(event) {
    const index = this.indexOf(event);
    if (index < 0) return;
    this.move(index);
    this.pick(index);
  }

  /** Choose a cell, without telling. */
  place(index) {
    this.at = Math.max(0, Math.min(index, this.cells.length - 1));
    const { cellWidth: width, cellHeight: height } = this;
    Object.assign(this.cursor.style, {
      left: `${(this.at % this.columns) * width - 2}px`, top: `${Math.floor(this.at / this.columns) * height - 2}px`,
      width: `${width + 3}px`, height: `${height + 3}px`,
    });
    this.cursor.hidden = false;
  }

  move(index) {
    if (!this.columns || !this.cells.length) return;
    this.place(index);
    this.describe(this.at, true);
    if (document.activeElement === this.canvas) this.cursor.scrollIntoView({ block: "nearest" });
  }

  onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const by = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns, PageUp: -8 * this.columns,
      PageDown: 8 * this.columns, Home: -this.cells.length, End: this.cells.length,
    }[event.key];
    if (by !== undefined) {
      const to = this.at + by;
      this.move(event.key.startsWith("Arrow") && (to < 0 || to >= this.cells.length) ? this.at : to);
    } else if (event.key === "Enter") this.pick(this.at);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

function cellInk(colour, kind) {
  return cssValue(`--${colour}-ink-${kind}`) || cssValue("--cell-ink");
}

function paintSprite(kind, colour, cell, { width, height, font }) {
  const canvas = document.createElement("canvas"), pen = penFor(canvas, width, height);
  const ink = cellInk(colour, cell & 255);
  pen.fillStyle = cssValue("--paper"); // The line between cells too: a sprite covers all of the one before.
  pen.fillRect(0, 0, width, height);
  pen.fillStyle = cssValue(`--${colour}-${cell & 255}`);
  pen.fillRect(0, 0, width - 1, height - 1);
  pen.fillStyle = ink;
  if (kind.mark && font) {
    pen.font = `${font > 12 ? "bold " : ""}${font}px ui-monospace, monospace`;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.fillText(kind.mark, width / 2 - 0.5, font > 12 ? 12 : height / 2);
  }
  if (font && cell & IS_DIRTY) pen.fillRect(1, height - 4, width - 3, 2); // A line below: dirty.
  if (font && cell & IS_ACCESSED) pen.fillRect(width - 5, 1, 3, 3); // A corner: accessed.
  if (font && cell & IS_LOCKED) pen.fillRect(1, 1, 2, height - 3); // A line at the left: locked.
  if (cell & IS_TOUCHED) {
    pen.strokeStyle = cssValue("--touched");
    pen.lineWidth = font > 12 ? 4 : 2;
    pen.strokeRect(font > 12 ? 2 : 1, font > 12 ? 2 : 1, width - (font > 12 ? 5 : 3), height - (font > 12 ? 5 : 3));
  }
  const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
  return { canvas, words: new Uint32Array(data.buffer) };
}
