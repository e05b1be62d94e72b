// The keys of the page, and the help that lists them.

import { el } from "kd/dom.js";

export const KEYS = [
  ["← →", "one event back or forward"], ["Shift ← →", "one call back or forward"], [", . < >", "the same, also inside a map of cells"],
  ["Space", "play or pause"], ["Home End", "the begin of the record; live, or its end"], ["m", "set a mark here, or take it away"], ["[ ]", "the mark before, the next mark"],
  ["1 … 8", "the views"], ["/", "search"], ["p", "the next process"], ["Tab", "the next control or map"], ["← → ↑ ↓", "in a map: move; Enter: choose"],
  ["+ − ← → Enter", "in the ruler: zoom, move, the next VMA"], ["Esc", "leave a map or this help"], ["?", "this help"],
];

export function bindKeys(app, playing) {
  const help = document.getElementById("help");
  help.append(el("h2", { text: "Keys" }), el("dl", {}, ...KEYS.flatMap(([key, what]) => [el("dt", { text: key }), el("dd", { text: what })])),
    el("form", { method: "dialog" }, el("button", { text: "Close" })));
  const { player } = app, names = [...app.views.keys()];
  const acts = {
    ArrowLeft: (event) => (event.shiftKey ? app.stepBy(-1) : player.seek(player.position - 1)),
    ArrowRight: (event) => (event.shiftKey ? app.stepBy(1) : player.seek(player.position + 1)),
    ",": () => player.seek(player.position - 1), ".": () => player.seek(player.position + 1), "<": () => app.stepBy(-1), ">": () => app.stepBy(1),
    Home: () => player.seek(player.recording.firstEvent), End: () => player.goLive(), m: () => app.toggleMark(), "[": () => app.markBy(-1), "]": () => app.markBy(1),
    "?": () => help.showModal(), p: () => nextProcess(app), Escape: () => document.activeElement?.blur(),
    "/": () => {
      app.show("search");
      document.getElementById("search-text").focus();
    },
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || help.open || !player.recording) return;
    const isText = event.target.matches("select, input[type=text]"), isTab = event.target.matches("[role=tab]");
    if (isText && event.key !== "Escape") return;
    if (isTab && /^Arrow/.test(event.key)) return void moveTab(app, names, event);
    const view = names[Number(event.key) - 1], act = acts[event.key];
    if (view) app.show(view);
    else if (act) act(event);
    else if (event.key === " " && !event.target.matches("button, a, input")) playing.toggle();
    else return;
    event.preventDefault();
  });
}

function moveTab(app, names, event) {
  const by = event.key === "ArrowRight" || event.key === "ArrowDown" ? 1 : -1;
  const name = names[(names.indexOf(app.view) + by + names.length) % names.length];
  app.show(name);
  app.views.get(name).tab.focus();
  event.preventDefault();
}

function nextProcess(app) {
  const pids = [...document.getElementById("process").options].map((option) => Number(option.value));
  if (pids.length) app.chooseProcess(pids[(pids.indexOf(app.chosen.pid) + 1) % pids.length]);
}
