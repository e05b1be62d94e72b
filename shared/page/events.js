// What happened: the steps as a list, each with its events; and the processes as a tree with their size over time.

import { RowList, cssValue, el, penFor, setText } from "kd/dom.js";
import { eventText, titleOf } from "kd/story.js";
import { causeText, count, hex, taskName } from "kd/words.js";

export class EventsView {
  constructor(place, app) {
    this.app = app;
    this.only = el("input", { type: "checkbox", id: "only-chosen", change: () => app.redraw() });
    this.head = el("p", { class: "note" });
    this.list = new RowList({ label: "Steps, the oldest first", make: (n) => this.row(n), pick: (n) => this.app.seekStep(this.rows ? this.rows[n] : n) });
    this.inside = el("ol", { class: "inside" });
    place.append(el("div", { class: "tools" }, this.only, el("label", { for: "only-chosen", text: "only the process that is shown" })), this.head, this.list.element,
      el("h2", { text: "Events of this step" }), this.inside);
  }

  draw(scene) {
    this.scene = scene;
    const { steps } = scene, pid = this.only.checked ? scene.chosen.pid : 0;
    this.rows = pid ? this.stepsOf(pid, steps) : null;
    const number = this.rows ? this.rows.length : steps.count;
    setText(this.head, `${count(number, "step")}, ${count(scene.recording.nrEvents - scene.recording.firstEvent, "event")}. A step is one call, or one access that faults, with all that came of it.`);
    const at = this.rows ? this.rows.indexOf(scene.step) : scene.step;
    if (at >= 0 && (at !== this.list.at || scene.step !== this.shown)) {
      this.list.draw(number, `${pid} ${number}`);
      this.list.mark(at);
    } else this.list.draw(number, `${pid} ${number}`);
    this.shown = scene.step;
    this.drawInside(scene);
  }

  stepsOf(pid, steps) {
    if (this.kept && this.kept.pid === pid && this.kept.count === steps.count) return this.kept.rows;
    const from = this.kept && this.kept.pid === pid && this.kept.count < steps.count ? this.kept : { rows: [], count: 0 };
    const rows = [...from.rows];
    for (let step = from.count; step < steps.count; step += 1) {
      if (this.scene.recording.event(steps.starts.values[step])?.pid === pid) rows.push(step);
    }
    this.kept = { pid, count: steps.count, rows };
    return rows;
  }

  row(n) {
    const { steps, recording, machine } = this.scene, step = this.rows ? this.rows[n] : n;
    const events = steps.events(step, 40), fault = events.find((event) => event.kind?.number === 25);
    const names = fault?.kind.fields.find((field) => field.name === "kind").names;
    const [first, end] = steps.range(step);
    return el("div", { class: `step${first >= this.scene.position ? " future" : ""}` },
      el("span", { class: "number", text: String(step + 1) }), el("span", { class: "what", text: events.length ? titleOf(recording.head, events, (pid) => taskName(machine, pid)) : "" }),
      fault ? el("span", { class: "tag", text: `fault: ${names[fault.fields.kind].replaceAll("_", " ")}` }) : null,
      el("span", { class: "number", text: count(end - first, "event") }));
  }

  drawInside(scene) {
    const { recording, steps } = scene, events = steps.events(scene.step, 300);
    const key = `${scene.step} ${events.length} ${scene.position}`;
    if (this.inside.dataset.key === key) return;
    this.inside.dataset.key = key;
    this.inside.replaceChildren(...events.map((event) => el("li", {}, el("button", {
      type: "button", class: event.number >= scene.position ? "future" : "", "aria-current": event.number === scene.position - 1 ? "true" : null,
      click: () => this.app.player.seek(event.number + 1), title: event.kind?.about,
    }, el("span", { class: "number", text: String(event.number) }), el("b", { text: event.name }), ` ${eventText(recording.head, event, events) || fieldsText(event)}`,
    el("small", { text: ` ${causeText(recording.head, event)}` })))));
  }
}

/** The fields of an event as words. */
export function fieldsText(event) {
  const shows = event.kind ? event.kind.fields : [];
  return shows.map(({ name, show, names }) => {
    const value = event.fields[name];
    return `${name}=${names ? names[value] ?? value : show === "hex" || show === "entry" || show === "pfn" ? hex(value) : value}`;
  }).join(" ");
}

export class ProcessesView {
  constructor(place, app) {
    this.app = app;
    this.list = el("ul", { class: "processes" });
    this.rows = new Map();
    place.append(el("p", { class: "note", text: "Each process below its parent. The curve is its resident size over the whole record; the line is the moment that is shown." }), this.list);
  }

  draw(scene) {
    const { machine, recording } = scene, tasks = [...machine.tasks.values()].filter((task) => task.pid !== recording.head.viewer);
    const known = new Set(tasks.map((task) => task.pid)), order = [];
    const add = (task, depth) => {
      order.push([task, depth]);
      if (depth < 64) for (const child of tasks) if (child.ppid === task.pid && child !== task) add(child, depth + 1);
    };
    for (const task of tasks) if (!known.has(task.ppid) || task.ppid === task.pid) add(task, 0);
    const seen = new Set(order.map(([task]) => task.pid));
    for (const [pid, row] of this.rows) if (!seen.has(pid)) { row.element.remove(); this.rows.delete(pid); }
    order.forEach(([task, depth], n) => {
      const row = this.row(task.pid);
      if (this.list.children[n] !== row.element) this.list.insertBefore(row.element, this.list.children[n] || null);
      this.fill(scene, task, depth, row);
    });
  }

  row(pid) {
    let row = this.rows.get(pid);
    if (row) return row;
    row = { name: el("button", { type: "button", click: () => this.app.choosePage(pid, null, "processes") }), facts: el("span"), canvas: el("canvas", { role: "img" }) };
    row.element = el("li", {}, row.name, row.facts, row.canvas);
    this.rows.set(pid, row);
    return row;
  }

  fill(scene, task, depth, row) {
    const mm = scene.machine.mms.get(task.mm), resident = mm ? mm.rss[0] + mm.rss[1] + mm.rss[3] : 0;
    const program = task.program ? `, runs ${task.program}` : "";
    const state = task.exitSignal === null ? `${count(resident, "page")} resident${mm && mm.rss[2] ? `, ${count(mm.rss[2], "page")} in swap` : ""}` : task.exitSignal ? `killed by signal ${task.exitSignal}` : "has ended";
    row.element.style.setProperty("--depth", depth);
    setText(row.name, `${depth ? "└ " : ""}${taskName(scene.machine, task.pid)}`);
    row.name.setAttribute("aria-pressed", String(task.pid === scene.chosen.pid));
    setText(row.facts, state + program);
    const series = (scene.steps.ofPid.get(task.pid) || []).map((number) => scene.steps.rss.get(number)).filter(Boolean);
    const width = Math.max(120, Math.min(560, this.list.clientWidth - 40)), height = 44;
    const key = `${width} ${scene.theme} ${scene.position} ${scene.recording.nrEvents} ${series.map((one) => one.at.length).join()}`;
    if (row.key === key) return;
    row.key = key;
    this.curve(scene, row, series, width, height);
  }

  curve(scene, row, series, width, height) {
    const { firstEvent, nrEvents } = scene.recording, x = (event) => ((event - firstEvent) / Math.max(1, nrEvents - firstEvent)) * (width - 2) + 1;
    const most = Math.max(1, ...series.map((one) => one.pages.reduce((top, pages) => Math.max(top, pages), 0)));
    const pen = penFor(row.canvas, width, height);
    pen.fillStyle = cssValue("--page-2");
    for (const one of series) {
      for (let n = 0; n < one.at.length; n += 1) {
        const left = x(one.at[n]), right = n + 1 < one.at.length ? x(one.at[n + 1]) : one.pages[n] ? width - 1 : left;
        const tall = (one.pages[n] / most) * (height - 16);
        if (right - left > 0 && tall) pen.fillRect(left, height - tall, Math.max(0.5, right - left), tall);
      }
    }
    pen.fillStyle = cssValue("--ink");
    pen.fillRect(x(scene.position) - 1, 0, 2, height);
    pen.font = "11px system-ui";
    pen.fillText(`most: ${count(most, "page")}`, 4, 11);
    row.canvas.setAttribute("aria-label", `Resident size over time, at most ${count(most, "page")}`);
  }
}
