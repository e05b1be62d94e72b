// Joins the page: the record, the moment, the views.

import { connect } from "kd/connection.js";
import { Player } from "kd/player.js";
import { SpaceView } from "kd/space.js";
import { causeText, count } from "kd/words.js";

const $ = (id) => document.getElementById(id);
const player = new Player();
const space = new SpaceView($("views").appendChild(document.createElement("div")));
const wanted = new URLSearchParams(location.hash.slice(1));
let chosen = Number(wanted.get("pid")) || 0;
let isDue = false;
let status = "Connecting …";

connect({
  head(head) {
    player.begin(head);
  },
  chunk(chunk, bytes) {
    player.add(chunk, bytes);
  },
  ready() {
    player.goLive();
  },
  end(why) {
    player.ended = why;
    draw();
  },
  lost() {
    status = "The connection to the inspector has ended.";
    draw();
  },
});

player.addEventListener("change", () => {
  if (!isDue) {
    isDue = true;
    requestAnimationFrame(draw);
  }
});

function draw() {
  isDue = false;
  const { machine, recording } = player;
  if (!machine) {
    $("status").textContent = status;
    return;
  }
  const living = [...machine.tasks.values()].filter((task) => task.exitSignal === null && task.pid !== recording.head.viewer);
  if (!machine.tasks.has(chosen) && living.length) chosen = living[0].pid;
  fillProcesses([...machine.tasks.values()].filter((task) => task.pid !== recording.head.viewer));
  const task = machine.tasks.get(chosen);
  space.draw(machine, task && task.mm ? machine.mms.get(task.mm) : null);
  const event = player.lastEvent();
  $("event").textContent = event ? `${event.name}  ${causeText(recording.head, event)}` : "";
  Object.assign($("position"), { min: recording.firstEvent, max: recording.nrEvents, value: player.position });
  $("live").setAttribute("aria-pressed", String(player.isLive && !player.ended));
  const where = `event ${player.position.toLocaleString("en")} of ${count(recording.nrEvents, "event")}`;
  const state = player.ended || (player.isLive ? "live" : "the past");
  $("status").textContent = `${state}: ${where}${machine.isWhole ? "" : "; events are missing before this moment"}`;
}

function fillProcesses(tasks) {
  const options = tasks.map((task) => `${task.pid} ${task.comm}${task.exitSignal === null ? "" : " (ended)"}`);
  const select = $("process"), key = options.join("\n");
  if (select.dataset.key !== key) {
    select.dataset.key = key;
    select.replaceChildren(...tasks.map((task, n) => new Option(options[n], task.pid)));
  }
  select.value = chosen;
}

$("process").addEventListener("change", (event) => {
  chosen = Number(event.target.value);
  draw();
});
$("position").addEventListener("input", (event) => player.seek(Number(event.target.value)));
$("back").addEventListener("click", () => player.seek(player.position - 1));
$("forward").addEventListener("click", () => player.seek(player.position + 1));
$("live").addEventListener("click", () => player.goLive());
$("play").addEventListener("click", togglePlay);
if (document.getElementById("record")) $("save").hidden = true; // This is the saved file already.

function togglePlay() {
  player.isPlaying = !player.isPlaying;
  $("play").textContent = player.isPlaying ? "Pause" : "Play";
  if (player.isPlaying && player.position >= player.recording.nrEvents) player.seek(player.recording.firstEvent);
  requestAnimationFrame(playOn);
}

function playOn() {
  if (!player.isPlaying) return;
  player.seek(player.position + 1);
  if (player.position >= player.recording.nrEvents) togglePlay();
  else requestAnimationFrame(playOn);
}

document.addEventListener("keydown", (event) => {
  if (event.target.matches("select, input[type=text]") || event.ctrlKey || event.altKey || event.metaKey) return;
  const act = {
    ArrowLeft: () => player.seek(player.position - 1), ArrowRight: () => player.seek(player.position + 1),
    Home: () => player.seek(player.recording.firstEvent), End: () => player.goLive(),
  }[event.key];
  if (act) {
    act();
    event.preventDefault();
  } else if (event.key === " " && !event.target.matches("button, a")) {
    togglePlay();
    event.preventDefault();
  }
});

// For tests and for the curious: what the page shows, in the browser's console.
globalThis.kerneld = player;
