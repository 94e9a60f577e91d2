"use strict";
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const rows = [...document.querySelectorAll(".row")];
// JSON has no infinity.
const number = (value) => ({ "": NaN, inf: Infinity, "-inf": -Infinity })[value] ?? Number(value ?? NaN);
const images = new Map(rows.map((row, i) => [row, data.pictures[i]]));

// ---------------------------------------------------------------------------------------------------------- sorting tables

for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), column = head.cellIndex, body = head.closest("table").tBodies[0];
    const first = head.dataset.better === "higher" ? "descending" : "ascending";
    const order = head.ariaSort ? (head.ariaSort === "ascending" ? "descending" : "ascending") : first;
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const value = (row) => number(row.cells[column].dataset.value);
    const compare = (a, b) => column === 0
      ? sign * a.cells[0].textContent.localeCompare(b.cells[0].textContent)
      : (isNaN(value(a)) - isNaN(value(b))) || sign * (value(a) - value(b));
    body.append(...[...body.rows].sort(compare));
  });
}

// ---------------------------------------------------------------------------------------------------------- zooming and moving

// A view is how images are shown: k times as large, with the left upper corner at (x, y), in parts of the pane.
const MOST = 64;

function show(element, view, label) {
  view.k = Math.min(Math.max(view.k, 1), MOST);
  view.x = Math.min(Math.max(view.x, 1 - view.k), 0);
  view.y = Math.min(Math.max(view.y, 1 - view.k), 0);
  for (const name of ["x", "y", "k"]) element.style.setProperty(`--${name}`, view[name]);
  const image = element.querySelector("figure[data-label=truth] img, .side img");
  element.classList.toggle("zoomed", view.k > 1);
  element.classList.toggle("squares", Boolean(image) && view.k * image.offsetWidth * devicePixelRatio >= 2 * (image.naturalWidth || Infinity));
  label.textContent = `${view.k < 10 ? Math.round(view.k * 10) / 10 : Math.round(view.k)}×`;
}

function zoom(view, factor, x = 0.5, y = 0.5) {
  const k = Math.min(Math.max(view.k * factor, 1), MOST);
  view.x = x - (x - view.x) * k / view.k;
  view.y = y - (y - view.y) * k / view.k;
  view.k = k;
}

// Where the pointer is, in parts of the pane that is not moved.
function place(event, image, view) {
  const box = image.getBoundingClientRect(), side = box.width / view.k;
  return [(event.clientX - box.left) / side + view.x, (event.clientY - box.top) / side + view.y];
}

// Calls `moved` with the way of the pointer until it is released, then `released` with whether it has moved.
function drag(event, target, moved, released) {
  let [x, y, far] = [event.clientX, event.clientY, 0];
  target.setPointerCapture(event.pointerId);
  const stop = new AbortController();
  target.addEventListener("pointermove", (now) => {
    far += Math.abs(now.clientX - x) + Math.abs(now.clientY - y);
    if (far > 3) moved(now.clientX - x, now.clientY - y, now);
    [x, y] = [now.clientX, now.clientY];
  }, { signal: stop.signal });
  for (const end of ["pointerup", "pointercancel"]) {
    target.addEventListener(end, (now) => { stop.abort(); released(far > 3 || end === "pointercancel", now); }, { signal: stop.signal });
  }
}

const wheelFactor = (event) => Math.exp(-event.deltaY * (event.deltaMode === 1 ? 0.05 : 0.002));

// ---------------------------------------------------------------------------------------------------------- rows

const views = new Map(rows.map((row) => [row, { k: 1, x: 0, y: 0 }]));
const current = () => document.activeElement?.closest?.(".row");
const redraw = (row) => show(row, views.get(row), $("zoom"));

function choose(row) {
  row.focus({ preventScroll: true });
  row.scrollIntoView({ block: "nearest" });
  redraw(row);
}

function step(by) {
  const shown = rowsShown();
  const next = shown[shown.indexOf(current()) + by] ?? (current() ? null : shown[0]);
  if (next) choose(next);
}

for (const row of rows) {
  const view = views.get(row);
  const head = document.createElement("header"), button = document.createElement("button");
  button.type = "button";
  button.textContent = "Compare two";
  button.addEventListener("click", () => openSlider(row));
  row.querySelector("h3").replaceWith(head);
  head.append(Object.assign(document.createElement("h3"), { textContent: images.get(row).name }), button);
  row.addEventListener("focus", () => redraw(row));
  for (const pane of row.querySelectorAll(".pane:not(.empty)")) {
    const image = pane.querySelector("img");
    pane.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      event.preventDefault();
      row.focus({ preventScroll: true });
      drag(event, pane, (dx, dy) => {
        view.x += dx / pane.clientWidth;
        view.y += dy / pane.clientWidth;
        redraw(row);
      }, (moved, end) => {
        if (moved) return;
        zoom(view, end.shiftKey ? 0.5 : 2, ...place(end, image, view));
        redraw(row);
      });
    });
    pane.addEventListener("wheel", (event) => {
      if (current() !== row && !event.ctrlKey) return;  // the page scrolls until a row is chosen
      event.preventDefault();
      zoom(view, wheelFactor(event), ...place(event, image, view));
      redraw(row);
    }, { passive: false });
  }
}

// ---------------------------------------------------------------------------------------------------------- scores below images

const metric = () => data.metrics.find((m) => m.name === $("metric").value);

function write() {
  const chosen = metric();
  for (const [row, image] of images) {
    const values = Object.entries(image.figures).map(([label, figures]) => [label, number(figures[chosen?.name])]);
    const all = values.map(([, value]) => value);
    const best = values.length > 1 ? (chosen?.better === "higher" ? Math.max(...all) : Math.min(...all)) : NaN;
    for (const figure of row.querySelectorAll("figure")) {
      const text = figure.querySelector("figcaption span"), found = values.find(([label]) => label === figure.dataset.label);
      text.replaceChildren();
      text.classList.toggle("best", Boolean(found) && found[1] === best);
      if (found && chosen) text.append(`${found[1].toFixed(chosen.digits)} ${chosen.unit}`);
      const note = image.notes[figure.dataset.label];
      if (note) text.append(" ", Object.assign(document.createElement("abbr"), { textContent: "note", title: note }));
    }
  }
}

function arrange() {
  const [which, label] = JSON.parse($("order").value), chosen = metric();
  const value = (row) => number(images.get(row).figures[label]?.[chosen?.name]);
  const sign = (which === "worst") === (chosen?.better === "higher") ? 1 : -1;
  const compare = (a, b) => (isNaN(value(a)) - isNaN(value(b))) || sign * (value(a) - value(b));
  $("rows").append(...(which === "name" ? rows : [...rows].sort(compare)));
}

function filter() {
  const text = $("find").value.trim().toLowerCase();
  for (const row of rows) row.hidden = !images.get(row).name.toLowerCase().includes(text);
  $("none").hidden = rows.some((row) => !row.hidden);
}

const rowsShown = () => [...$("rows").children].filter((row) => !row.hidden);
const option = (select, text, value) => select.append(new Option(text, value));

for (const m of data.metrics) option($("metric"), m.unit ? `${m.title} (${m.unit})` : m.title, m.name);
option($("order"), "by name", JSON.stringify(["name"]));
for (const label of data.labels) {
  for (const which of ["worst", "best"]) option($("order"), `${label}, ${which} first`, JSON.stringify([which, label]));
}
$("metric").addEventListener("change", () => { write(); arrange(); });
$("order").addEventListener("change", arrange);
$("find").addEventListener("input", filter);
const columns = data.labels.length + 2;
const fitting = Math.floor((document.querySelector("main").clientWidth - 120) / columns / 8) * 8 - 8;
$("size").value = Math.min(Math.max(fitting, 128), 384);
const resize = () => document.documentElement.style.setProperty("--pane", `${$("size").value}px`);
$("size").addEventListener("input", resize);
resize();
write();

function zoomBy(factor) {
  const row = current() ?? rowsShown()[0];
  if (!row) return;
  if (factor) zoom(views.get(row), factor);
  else Object.assign(views.get(row), { k: 1, x: 0, y: 0 });
  choose(row);
}
// A button takes the focus away from the row that it is for.
for (const [id, factor] of [["in", 1.5], ["out", 1 / 1.5], ["reset", 0]]) {
  $(id).addEventListener("pointerdown", (event) => event.preventDefault());
  $(id).addEventListener("click", () => zoomBy(factor));
}

// ---------------------------------------------------------------------------------------------------------- two images

const slider = $("slider"), stage = slider.querySelector(".stage");
const [leftImage, rightImage] = stage.querySelectorAll("img"), [leftName, rightName] = stage.querySelectorAll("b");
const titleOf = (label) => data.titles[label] ?? label;
const pair = { k: 1, x: 0, y: 0 };
let opened = null;

for (const select of [$("left"), $("right")]) {
  for (const label of ["low", ...data.labels, "truth"]) option(select, label, titleOf(label));
  select.addEventListener("change", () => { fill(); stage.focus(); });
}
$("left").value = data.labels.find((label) => label !== "bicubic") ?? "low";
$("right").value = "truth";

function fill() {
  $("slider-name").textContent = images.get(opened).name;
  for (const [select, image, name] of [[$("left"), leftImage, leftName], [$("right"), rightImage, rightName]]) {
    const found = [...opened.querySelectorAll("figure")].find((figure) => figure.dataset.label === select.value)?.querySelector("img");
    image.hidden = !found;
    if (found) [image.src, image.alt] = [found.getAttribute("src"), found.alt];
    image.style.imageRendering = select.value === "low" ? "pixelated" : "";
    name.textContent = found ? titleOf(select.value) : `${titleOf(select.value)}: not run`;
  }
}

function openSlider(row) {
  opened = row;
  fill();
  if (!slider.open) {
    slider.showModal();
    cut(50);
  }
  redrawSlider();
}

function cut(percent) {
  $("divider").value = percent;
  stage.style.setProperty("--cut", percent);
}

const redrawSlider = () => show(stage, pair, $("slider-zoom"));
const swap = () => { [$("left").value, $("right").value] = [$("right").value, $("left").value]; fill(); };
const under = (event) => Math.min(Math.max((event.clientX - stage.getBoundingClientRect().left) / stage.clientWidth * 100, 0), 100);
$("divider").addEventListener("input", () => cut($("divider").value));
$("swap").addEventListener("click", swap);
$("close").addEventListener("click", () => slider.close());
slider.addEventListener("close", () => choose(opened));
leftImage.addEventListener("load", redrawSlider);
stage.addEventListener("pointermove", (event) => { if (!event.buttons) cut(under(event)); });
stage.addEventListener("pointerdown", (event) => {
  event.preventDefault();
  drag(event, stage, (dx, dy, now) => {
    if (pair.k === 1) return cut(under(now));
    pair.x += dx / leftImage.offsetWidth;
    pair.y += dy / leftImage.offsetWidth;
    redrawSlider();
  }, () => {});
});
stage.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(pair, wheelFactor(event), ...place(event, leftImage, pair));
  redrawSlider();
}, { passive: false });

// ---------------------------------------------------------------------------------------------------------- keyboard

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=search], select")) return;
  const range = event.target.matches("input[type=range]");
  const by = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
  const factor = { "+": 1.5, "=": 1.5, "-": 1 / 1.5, "0": 0 }[event.key];
  if (by && !range) {
    const shown = rowsShown();
    if (slider.open) openSlider(shown[shown.indexOf(opened) + by] ?? opened);
    else step(by);
  } else if (factor !== undefined) {
    if (!slider.open) zoomBy(factor);
    else {
      if (factor) zoom(pair, factor);
      else Object.assign(pair, { k: 1, x: 0, y: 0 });
      redrawSlider();
    }
  } else if (event.key === "x" && slider.open) swap();
  else if (event.key === "c" && !slider.open && rowsShown().length) openSlider(current() ?? rowsShown()[0]);
  else if (event.key === "Escape" && !slider.open && current()) zoomBy(0);
  else return;
  event.preventDefault();
});
