// What the page shows: the process, the page and the frame that are chosen, the marks, the view. It makes the scene, which
// is all that a view needs to draw one moment, once a frame of the browser at most.

import { CompareView } from "kd/compare.js";
import { el, refill, setText } from "kd/dom.js";
import { EventsView, ProcessesView } from "kd/events.js";
import { MapCounts } from "kd/frames.js";
import { Panel } from "kd/panel.js";
import { PhysicalView, frameFacts } from "kd/physical.js";
import { SearchView } from "kd/search.js";
import { ShadowView } from "kd/shadow.js";
import { SpaceView } from "kd/space.js";
import { Steps, changesOf } from "kd/steps.js";
import { Timeline } from "kd/timeline.js";
import { WalkView } from "kd/walk.js";
import { count, pageFacts } from "kd/words.js";
import { entryPfn } from "kd/model.js";

const VIEWS = [
  ["space", "Address space", SpaceView], ["walk", "Walk", WalkView], ["frames", "Physical memory", PhysicalView],
  ["shadow", "Shadow page table", ShadowView], ["events", "Events", EventsView], ["processes", "Processes", ProcessesView],
  ["compare", "Compare", CompareView], ["search", "Search", SearchView],
];
const MOST_SHOWN = 3, LOOK_BACK = 60;
const $ = (id) => document.getElementById(id);

/** Return the marks of a record's head. It may come from anybody: what is no mark is left out (shared/recording/marks.py). */
function marksOf(head) {
  const marks = Array.isArray(head.marks) ? head.marks.slice(0, 1000) : [];
  return marks.filter((mark) => mark && Number.isSafeInteger(mark.at) && mark.at >= 0 && /^[A-Za-z0-9]{1,8}$/.test(mark.name))
    .map(({ at, name }) => ({ at, name }));
}

export class App {
  constructor(player) {
    this.player = player;
    this.steps = null;
    this.counter = new MapCounts();
    this.scene = null;
    this.marks = [];
    this.wanted = 0; // The pid that a person has chosen; 0: none.
    this.chosen = { pid: 0, vaddr: null, pfn: null };
    this.status = "Connecting …";
    this.theme = 0;
    this.skipsQuiet = true; // A step by call goes past calls that change nothing.
    this.panel = new Panel($("panel"), this);
    this.timeline = new Timeline($("timeline"), this);
    this.views = new Map();
    for (const [n, [name, title, View]] of VIEWS.entries()) this.addView(n, name, title, View);
    this.show("space");
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.theme += 1;
      this.redraw();
    });
    new ResizeObserver(() => this.redraw()).observe($("views")); // Also when a scroll bar comes or goes.
    addEventListener("resize", () => this.redraw());
    player.addEventListener("change", () => this.redraw());
  }

  addView(n, name, title, View) {
    const place = el("div", { class: `view ${name}`, id: `view-${name}`, role: "tabpanel", "aria-labelledby": `tab-${name}`, hidden: true });
    const tab = el("button", {
      type: "button", role: "tab", id: `tab-${name}`, "aria-controls": place.id, "aria-selected": "false", tabindex: "-1",
      title: `${title} (${n + 1})`, click: () => this.show(name),
    }, el("span", { text: title }));
    $("tabs").append(tab);
    $("views").append(place);
    this.views.set(name, { place, tab, view: new View(place, this) });
  }

  /** Show a view. */
  show(name) {
    this.view = name;
    for (const [key, { place, tab }] of this.views) {
      place.hidden = key !== name;
      tab.setAttribute("aria-selected", String(key === name));
      tab.tabIndex = key === name ? 0 : -1;
    }
    this.redraw();
  }

  /** Draw in the next frame of the browser. */
  redraw() {
    if (this.isDue) return;
    this.isDue = true;
    requestAnimationFrame(() => {
      this.isDue = false;
      this.draw();
    });
  }

  /** Begin with another record. Its head may have marks; those that a person has set here stay after a reconnection. */
  begin(head) {
    this.steps = null;
    this.counter.reset(null);
    if (!this.marks.length) this.setMarks(marksOf(head));
  }

  /** Take these marks. What is saved from now on has them. */
  setMarks(marks) {
    this.marks = marks.sort((one, other) => one.at - other.at);
    const words = this.marks.map((mark) => `${mark.at}:${mark.name}`).join();
    $("save").href = words ? `view.html?marks=${words}` : "view.html";
    $("save-record").href = words ? `record?marks=${words}` : "record";
  }

  draw() {
    const { machine, recording, position } = this.player;
    if (!machine) {
      setText($("status"), this.status);
      return;
    }
    this.steps ||= new Steps(recording);
    this.steps.update();
    const counts = this.counter.update(machine), step = this.currentStep();
    const events = this.steps.events(step).filter((event) => event.number < position);
    const task = this.pickTask(machine, recording);
    const scene = {
      app: this, recording, machine, position, counts, counter: this.counter, steps: this.steps, step, events, task,
      changes: changesOf(events), chosen: this.chosen, shown: this.shownTasks(machine, task), marks: this.marks, theme: this.theme,
    };
    this.scene = scene;
    this.fillProcesses(scene);
    this.views.get(this.view).view.draw(scene);
    this.timeline.draw(scene);
    this.panel.draw(scene);
    this.drawTime(scene);
  }

  /** The step that is shown: that of the last event; while the page is live, the last one that has changed something. */
  currentStep() {
    const last = this.steps.of(this.player.position - 1);
    if (!this.player.isLive) return last;
    for (let step = last; step >= 0 && step > last - LOOK_BACK; step -= 1) if (!this.isQuiet(step)) return step;
    return last;
  }

  /** Return whether a step has changed nothing: it has no events but its begin and its end. */
  isQuiet(step) {
    const [first, end] = this.steps.range(step);
    for (let number = first; number < Math.min(end, first + 12); number += 1) {
      const kind = this.player.recording.event(number)?.kind?.number;
      if (kind !== 16 && kind !== 17 && kind !== 66) return false;
    }
    return true;
  }

  /** The process that is shown: the one that was chosen, else one that lives, else the last one. */
  pickTask(machine, recording) {
    const tasks = [...machine.tasks.values()].filter((task) => task.pid !== recording.head.viewer);
    const wanted = machine.tasks.get(this.wanted), now = machine.tasks.get(this.chosen.pid);
    const alive = (task) => task && task.mm && task.exitSignal === null;
    const task = wanted || (alive(now) ? now : tasks.find(alive)) || now || tasks[tasks.length - 1] || null;
    this.chosen.pid = task ? task.pid : 0;
    return task;
  }

  shownTasks(machine, task) {
    if (!task) return [];
    const shown = [task];
    if ($("family").checked) {
      for (const parent of shown) {
        for (const child of machine.tasks.values()) {
          if (child.ppid === parent.pid && child.mm && !shown.includes(child) && shown.length < MOST_SHOWN) shown.push(child);
        }
      }
    }
    return shown;
  }

  fillProcesses({ machine, recording }) {
    const tasks = [...machine.tasks.values()].filter((task) => task.pid !== recording.head.viewer);
    const options = tasks.map((task) => `${task.comm} ${task.pid}${task.exitSignal === null ? "" : " (ended)"}`);
    refill($("process"), options.join("\n"), () => tasks.map((task, n) => new Option(options[n], task.pid)));
    $("process").value = this.chosen.pid;
  }

  drawTime({ recording, machine, position }) {
    const { player } = this, last = player.lastEvent();
    setText($("event"), last ? `event ${position} of ${recording.nrEvents.toLocaleString("en")}: ${last.name}` : `event ${position} of ${recording.nrEvents.toLocaleString("en")}`);
    Object.assign($("position"), { min: recording.firstEvent, max: recording.nrEvents, value: position });
    $("position").setAttribute("aria-valuetext", `event ${position} of ${recording.nrEvents}`);
    $("live").setAttribute("aria-pressed", String(player.isLive && !player.ended));
    setText($("live"), player.ended ? "End" : "Live");
    setText($("play"), player.isPlaying ? "Pause" : "Play");
    const state = player.ended || (player.isLive ? "live" : "the past");
    setText($("status"), `${this.isLost ? this.status : state}${machine.isWhole ? "" : "; events are missing before this moment"}; ${count(machine.tasks.size, "process", "processes")}`);
  }

  // What a person chooses

  /** Choose a process, and a page of it; show a view. */
  choosePage(pid, vaddr, view) {
    this.wanted = pid;
    this.chosen.pid = pid;
    if (vaddr !== null) {
      const page = vaddr - (vaddr % 4096), mm = this.player.machine?.mms.get(this.player.machine.tasks.get(pid)?.mm);
      this.chosen.vaddr = page;
      const [low, high] = mm ? mm.entry(page) : [0, 0];
      if (low & 0x101) this.chosen.pfn = entryPfn(low, high) + (low & 0x80 ? Math.floor(page / 4096) % 512 : 0);
      this.explain(() => pageFacts(this.scene, pid, page));
      if (view === "space") this.views.get("space").view.show(page);
    }
    if (view && view !== this.view && view !== "processes") this.show(view);
    this.redraw();
  }

  /** Choose a frame. */
  chooseFrame(pfn) {
    this.chosen.pfn = pfn;
    this.explain(() => frameFacts(this.scene, pfn));
    if (this.view === "compare" || this.view === "space") this.show("frames");
    this.redraw();
  }

  chooseProcess(pid) {
    this.wanted = this.chosen.pid = pid;
    this.redraw();
  }

  /** Explain something in the panel: {title, lines, facts, links}, or a function that returns it for each moment. */
  explain(what) {
    this.panel.explain(what);
    this.redraw();
  }

  seekStep(step) {
    const [, end] = this.steps.range(step);
    this.player.seek(end);
  }

  /** Go to the end of the step before or behind this moment. */
  stepBy(by) {
    const { player, steps } = this;
    if (!steps) return;
    const at = steps.of(player.position - 1), [, end] = steps.range(at);
    let to = by > 0 && player.position < end ? at : at + by;
    while (this.skipsQuiet && to > 0 && to < steps.count - 1 && this.isQuiet(to)) to += by;
    if (to < 0) player.seek(player.recording.firstEvent);
    else this.seekStep(Math.min(to, steps.count - 1));
  }

  /** Set a mark at this moment, or take it away. */
  toggleMark() {
    const at = this.player.position, had = this.marks.findIndex((mark) => mark.at === at);
    if (had >= 0) this.marks.splice(had, 1);
    else {
      const used = new Set(this.marks.map((mark) => mark.name));
      const name = [..."ABCDEFGHIJKLMNOPQRSTUVWXYZ"].find((letter) => !used.has(letter)) || String(this.marks.length + 1);
      this.marks.push({ at, name });
      this.views.get("compare").view.choose(at);
    }
    this.setMarks(this.marks);
    this.redraw();
  }

  markBy(by) {
    const { position } = this.player;
    const mark = by > 0 ? this.marks.find((one) => one.at > position) : this.marks.findLast((one) => one.at < position);
    if (mark) this.player.seek(mark.at);
  }
}
