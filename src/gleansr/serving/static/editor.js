// Pointers and keys on the stage: strokes, the lasso, the eyedropper, the model region, the comparison's divider, zooming and panning with wheel
// and fingers.
import { select, selects } from "./move.js";
import { drag, hit, place } from "./region.js";

const SETTLING = 250;  // ms in which a second finger makes a stroke a pinch

/**
 * What the editor needs to know and tells.
 * @typedef {object} Page
 * @property {() => string} tool a brush of tools.js, "pick" or "region"
 * @property {() => import("./brush.js").Brush} brush
 * @property {() => import("./region.js").Limits} limits of the part that the model sees
 * @property {() => void} started a stroke has started
 * @property {(moment: number) => void} ended a stroke has changed the image, at that time
 * @property {() => void} dropped a stroke was dropped
 * @property {(colour: number[]) => void} picked
 * @property {(part: import("./pixels.js").Rect, done: boolean) => void} framed another part was chosen
 * @property {(split: number) => void} divided
 * @property {(text: string) => void} say to screen readers
 */

/** Lets one edit the document on a stage. */
export class Editor {
  /**
   * @param {HTMLElement} element takes the events; it holds the canvas
   * @param {HTMLElement} ring shows the brush
   * @param {import("./view.js").Stage} stage
   * @param {Page} page
   */
  constructor(element, ring, stage, page) {
    Object.assign(this, { element, ring, stage, page, pointers: new Map(), active: null, cursor: null, spaced: false, pressed: false, selection: null });
    const on = (name, work, options) => element.addEventListener(name, (event) => stage.document && work.call(this, event), options);
    on("pointerdown", this.down);
    on("pointermove", this.moved);
    on("pointerup", this.up);
    on("pointercancel", this.up);
    on("pointerleave", () => { if (!this.keyboard) this.hideRing(); });
    on("wheel", this.wheel, { passive: false });
    on("keydown", this.key);
    on("keyup", (event) => { if (event.key === " ") this.space(false); });
    on("blur", () => { this.space(false); this.lift(); this.hideRing(); });
    on("contextmenu", (event) => event.preventDefault());
  }

  // ------------------------------------------------------------------------------------------------------------ pointers

  down(event) {
    if (event.button > 1 || event.target.closest("button, input, a, dialog")) return;
    event.preventDefault();
    this.element.focus({ preventScroll: true, focusVisible: false });
    this.lift();
    this.element.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, event);
    if (this.pointers.size === 2) return this.pinch(event);
    if (this.pointers.size > 2 || this.active) return;
    if (event.button === 1 || this.spaced) this.active = { kind: "pan" };
    else if (this.stage.show === "compare") this.divide(event);
    else if (this.page.tool() === "region") this.grasp(event);
    else if (this.page.tool() === "pick" || event.altKey) this.pick(event);
    else this.start(this.point(event));
    if (this.active) this.active.pointer = event.pointerId;
  }

  moved(event) {
    const last = this.pointers.get(event.pointerId);
    this.cursor = this.stage.onImage(event);
    this.keyboard = false;
    if (event.pointerType !== "touch") this.showRing();
    if (!last) return;
    this.pointers.set(event.pointerId, event);
    const { active } = this;
    if (active?.kind === "pinch") return this.pinched();
    if (!active || active.pointer !== event.pointerId) return;
    if (active.kind === "pan") {
      const [from, to] = [this.stage.onCanvas(last), this.stage.onCanvas(event)];
      this.stage.pan(to.x - from.x, to.y - from.y);
    } else if (active.kind === "stroke") {
      const events = event.getCoalescedEvents?.() ?? [];
      for (const each of events.length ? events : [event]) active.points.push(this.point(each));
    } else if (active.kind === "lasso") this.lasso(this.stage.onImage(event));
    else if (active.kind === "pick") this.pick(event);
    else if (active.kind === "divide") this.divide(event);
    else this.page.framed(drag(this.page.limits(), active.start, active.part, active.from, this.stage.onImage(event)), false);
  }

  up(event) {
    if (!this.pointers.delete(event.pointerId) || !this.active) return;
    const { active } = this;
    if (active.kind === "pinch") {
      if (!this.pointers.size) this.active = null;
      return;
    }
    if (active.pointer !== event.pointerId) return;
    this.active = null;
    if (active.kind === "stroke") {
      if (event.type === "pointercancel") this.drop(active);
      else this.end(active, event);
    } else if (active.kind === "lasso") this.selected(event.type === "pointercancel" ? null : active.path);
    else if (active.kind === "region") this.page.framed(this.stage.frame, true);
  }

  point(event) {
    return { ...this.stage.onImage(event), pressure: event.pointerType === "pen" && event.pressure ? event.pressure : 1 };
  }

  pick(event) {
    const colour = this.stage.colour(this.stage.onImage(event));
    this.active = { kind: "pick" };
    if (colour) this.page.picked(colour);
  }

  divide(event) {
    this.active ??= { kind: "divide" };
    this.page.divided(Math.min(Math.max(this.stage.onImage(event).x / this.stage.document.width, 0), 1));
  }

  grasp(event) {
    const from = this.stage.onImage(event), { stage } = this, near = 16 * window.devicePixelRatio / stage.view.scale;
    this.active = { kind: "region", start: stage.frame, from, part: hit(stage.frame, from, near) };
  }

  pinch() {
    const { active } = this;
    if (active?.kind === "stroke") {
      if (performance.now() - active.begun > SETTLING) return;  // the other hand touches the screen
      this.drop(active);
    } else if (active?.kind === "lasso") this.selected(null);
    this.active = { kind: "pinch", ...this.spread() };
  }

  pinched() {
    const { active, stage } = this, now = this.spread();
    stage.zoom(now.far / active.far, now.middle);
    stage.pan(now.middle.x - active.middle.x, now.middle.y - active.middle.y);
    Object.assign(active, now);
  }

  spread() {
    const [a, b = a] = [...this.pointers.values()].map((event) => this.stage.onCanvas(event));
    return { far: Math.max(Math.hypot(a.x - b.x, a.y - b.y), 1), middle: { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 } };
  }

  wheel(event) {
    event.preventDefault();
    const unit = event.deltaMode === 1 ? 20 : 1;
    if (event.shiftKey) this.stage.pan(-(event.deltaX + event.deltaY) * unit, 0);
    else this.stage.zoom(Math.exp(-event.deltaY * unit * (event.ctrlKey ? 0.01 : 0.002)), this.stage.onCanvas(event));
    this.showRing();
  }

  // ------------------------------------------------------------------------------------------------------------ strokes

  /** Starts a stroke, or with the tool that moves a part, unless a part is selected there, the lasso. */
  start(point) {
    if (this.page.tool() !== "move" || this.selection && selects(this.selection, point)) return this.begin(point);
    this.active = { kind: "lasso", path: [] };
    this.lasso(point);
  }

  lasso({ x, y }) {
    const { width, height } = this.stage.document;
    this.active.path.push({ x: Math.min(Math.max(x, 0), width), y: Math.min(Math.max(y, 0), height) });
    this.stage.lasso = this.active.path;
    this.stage.changed();
  }

  /** Ends the lasso around a path; null: nothing is selected any more. */
  selected(path) {
    this.selection = path && select(path, this.stage.document);
    this.stage.lasso = this.selection?.path ?? null;
    this.stage.changed();
    if (path) this.page.say(this.selection ? "Selected. Drag it to its new place." : "Nothing is selected. Draw around what you want to move.");
  }

  begin(point) {
    const brush = this.stage.document.begin(this.page.tool(), { ...this.page.brush(), selection: this.selection });
    this.selected(null);
    this.active = { kind: "stroke", brush, points: [point], last: point, begun: performance.now(), frame: performance.now() };
    this.page.started();
    brush.move(point, point);
    requestAnimationFrame(() => this.frame(this.active));
  }

  frame(active) {
    if (active !== this.active || active?.kind !== "stroke") return;
    const now = performance.now();
    this.follow(active);
    active.brush.hold(active.last, Math.min((now - active.frame) / 1000, 0.1));
    active.frame = now;
    const rect = this.stage.document.render();
    if (rect) this.stage.written(rect);
    requestAnimationFrame(() => this.frame(active));
  }

  follow(active) {
    for (const point of active.points.splice(0)) {
      active.brush.move(active.last, point);
      active.last = point;
    }
  }

  end(active, event) {
    const moment = performance.now();
    if (event) active.points.push({ ...this.stage.onImage(event), pressure: active.last.pressure });
    this.follow(active);
    const { rect, changed } = this.stage.document.commit();
    if (rect) this.stage.written(rect);
    if (changed) this.page.ended(moment);
    else this.page.dropped();
  }

  drop() {
    const rect = this.stage.document.drop();
    this.active = null;
    if (rect) this.stage.written(rect);
    this.page.dropped();
  }

  /** Whether a stroke is under way. */
  get drawing() {
    return this.active?.kind === "stroke";
  }

  /** Drops the stroke under way, or what is selected. Returns whether there was something. */
  cancel() {
    const { drawing } = this, dropped = drawing || Boolean(this.stage.lasso);
    if (drawing) this.drop();
    else if (dropped) {
      this.active = null;
      this.selected(null);
    }
    this.pressed = false;
    return dropped;
  }

  // ------------------------------------------------------------------------------------------------------------ keys

  key(event) {
    if (event.ctrlKey || event.metaKey || event.target !== this.element) return;
    if (event.key === " ") this.space(true);
    else if (event.key === "Enter" && !event.repeat) this.enter();
    else if (event.key.startsWith("Arrow")) this.arrow(event);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  arrow(event) {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const { stage, page } = this, { width, height } = stage.document, far = Math.max(1, Math.min(width, height) / 100) * (event.shiftKey ? 5 : 1);
    const [dx, dy] = way.map((each) => Math.round(each * far));
    if (stage.show === "compare") return page.divided(Math.min(Math.max(stage.split + (way[0] - way[1]) * 0.02, 0), 1));
    if (page.tool() === "region") {
      const { left, top, right } = stage.frame;
      return page.framed(place(page.limits(), { left: left + dx, top: top + dy, width: right - left }), true);
    }
    this.keyboard = true;
    const from = this.cursor ?? { x: width / 2, y: height / 2 };
    this.cursor = { x: Math.min(Math.max(from.x + dx, 0), width), y: Math.min(Math.max(from.y + dy, 0), height) };
    if (this.pressed && this.active?.kind === "lasso") this.lasso(this.cursor);
    else if (this.pressed) this.active?.points.push({ ...this.cursor, pressure: 1 });
    this.showRing();
  }

  /** Makes the region that is being chosen larger or smaller by so many of its tenths. */
  grow(tenths) {
    const { left, top, right, bottom } = this.stage.frame, width = (right - left) * (1 + tenths / 10), limits = this.page.limits();
    this.page.framed(place(limits, { left: (left + right - width) / 2, top: (top + bottom - width * limits.ratio) / 2, width }), true);
  }

  enter() {
    const tool = this.page.tool();
    if (this.stage.show === "compare" || tool === "region") return;
    this.keyboard = true;
    this.cursor ??= { x: this.stage.document.width / 2, y: this.stage.document.height / 2 };
    this.showRing();
    if (tool === "pick") {
      const colour = this.stage.colour(this.cursor);
      if (colour) this.page.picked(colour);
    } else if (this.pressed) this.lift();
    else if (!this.active) {
      this.pressed = true;
      this.start({ ...this.cursor, pressure: 1 });
      this.page.say(`${tool === "move" ? this.drawing ? "Part taken" : "Lasso begun" : "Brush down"}. Arrow keys move it, Enter ends it.`);
    }
  }

  /** Lifts the brush that Enter has pressed. */
  lift() {
    if (!this.pressed) return;
    const { active } = this;
    Object.assign(this, { pressed: false, active: null });
    if (active.kind === "lasso") this.selected(active.path);
    else this.end(active);
  }

  space(down) {
    this.spaced = down;
    this.element.classList.toggle("moving", down);
  }

  // ------------------------------------------------------------------------------------------------------------ the brush on screen

  /** Shows the brush where it is; call it when the brush or the tool has changed. */
  showRing() {
    const { stage, ring, cursor } = this, tool = this.page.tool(), brushing = stage.show !== "compare" && !["region", "pick", "move"].includes(tool);
    this.element.dataset.cursor = stage.show === "compare" ? "divide" : brushing ? "brush" : this.grabs(cursor) ? "grab" : tool;
    ring.hidden = !cursor || !brushing && !(this.keyboard && ["pick", "move"].includes(tool));
    if (ring.hidden) return;
    const { view } = stage, ratio = window.devicePixelRatio, size = brushing ? Math.max(2 * this.page.brush().radius * view.scale / ratio, 4) : 10;
    ring.style.width = ring.style.height = `${size}px`;
    const [x, y] = [view.x + cursor.x * view.scale, view.y + cursor.y * view.scale].map((place) => place / ratio - size / 2);
    ring.style.transform = `translate(${x}px, ${y}px)`;
  }

  /** Whether a place is in what is selected. */
  grabs(place) {
    return Boolean(this.selection && place && this.page.tool() === "move" && selects(this.selection, place));
  }

  hideRing() {
    this.ring.hidden = true;
  }
}
