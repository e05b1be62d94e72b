// Small helpers for the page's elements. Text gets in as text alone, so that no name from the machine is ever HTML.

/** Return a new element. `how`: attributes; `class`, `text` and functions (listeners: {click: …}) too. */
export function el(tag, how = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(how)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") made.textContent = value;
    else if (name === "class") made.className = value;
    else if (typeof value === "function") made.addEventListener(name, value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Give an element a text, if it has another: a screen reader then hears only changes. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Make the children of an element anew, if `key` is another than the last time. Return whether they were made. */
export function refill(element, key, make) {
  if (element.dataset.key === key) return false;
  element.dataset.key = key;
  element.replaceChildren(...make());
  return true;
}

/** Return the value of a custom property of the style sheet. */
export const cssValue = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Return a canvas' pen for a size in CSS pixels; the canvas is empty then. */
export function penFor(canvas, width, height) {
  const scale = devicePixelRatio || 1;
  Object.assign(canvas, { width: Math.round(width * scale), height: Math.round(height * scale) });
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  return pen;
}

/** A list of many rows, of which only those on the screen are elements. All rows have the same height. */
export class RowList {
  constructor({ label, rowHeight = 26, make, pick }) {
    Object.assign(this, { rowHeight, make, pick, count: 0, at: 0, key: "" });
    this.body = el("div", { class: "rows" });
    this.element = el("div", { class: "rowlist", tabindex: "0", role: "listbox", "aria-label": label }, this.body);
    this.element.addEventListener("scroll", () => this.fill());
    this.element.addEventListener("keydown", (event) => this.onKey(event));
    this.body.addEventListener("click", (event) => {
      const row = event.target.closest("[data-row]");
      if (row) this.choose(Number(row.dataset.row));
    });
  }

  /** Show `count` rows; `key` changes when a row's text does. */
  draw(count, key = "") {
    const changed = count !== this.count || key !== this.key;
    Object.assign(this, { count, key });
    if (!changed) return;
    this.body.style.height = `${count * this.rowHeight}px`;
    this.fill();
  }

  /** Mark a row as the chosen one, and bring it into view. */
  mark(row) {
    this.at = row;
    const top = row * this.rowHeight, room = this.element.clientHeight;
    if (top < this.element.scrollTop || top + this.rowHeight > this.element.scrollTop + room) {
      this.element.scrollTop = Math.max(0, top - room / 2);
    }
    this.fill();
  }

  fill() {
    const first = Math.max(0, Math.floor(this.element.scrollTop / this.rowHeight) - 4);
    const last = Math.min(this.count, first + Math.ceil((this.element.clientHeight || 400) / this.rowHeight) + 8);
    const rows = [];
    for (let n = first; n < last; n += 1) {
      const row = this.make(n);
      row.dataset.row = n;
      row.id = `${this.id || (this.id = `rows${(RowList.made = (RowList.made || 0) + 1)}`)}-${n}`;
      row.setAttribute("role", "option");
      row.setAttribute("aria-selected", String(n === this.at));
      row.style.top = `${n * this.rowHeight}px`;
      rows.push(row);
    }
    this.body.replaceChildren(...rows);
    if (this.at >= first && this.at < last) this.element.setAttribute("aria-activedescendant", `${this.id}-${this.at}`);
    else this.element.removeAttribute("aria-activedescendant");
  }

  choose(row) {
    if (row < 0 || row >= this.count) return;
    this.mark(row);
    this.pick(row);
  }

  onKey(event) {
    const page = Math.max(1, Math.floor(this.element.clientHeight / this.rowHeight) - 1);
    const to = {
      ArrowDown: this.at + 1, ArrowUp: this.at - 1, PageDown: this.at + page, PageUp: this.at - page,
      Home: 0, End: this.count - 1, Enter: this.at,
    }[event.key];
    if (to === undefined) return;
    this.choose(Math.max(0, Math.min(this.count - 1, to)));
    event.preventDefault();
    event.stopPropagation();
  }
}
