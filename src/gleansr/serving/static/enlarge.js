// Enlarging: the service recognises the image and enlarges it; the result is compared with what was opened, and saved as the user likes it.
import { download, save } from "./files.js";
import { Heads } from "./heads.js";
import { PanZoom } from "./panzoom.js";
import { $, problem, say, waiting, working } from "./status.js";

const SETTLED = 300;  // ms without a change before the file is written anew

/** The page's first mode. */
export class Enlarge {
  /**
   * @param {import("./api.js").Service} service
   * @param {import("./controls.js").Controls} controls
   * @param {() => void} done is called when there is a result
   */
  constructor(service, controls, done) {
    Object.assign(this, {
      service, controls, done, file: null, name: "", result: null, encoded: null, controller: null, addresses: new Map(),
      view: new PanZoom($("enlarged"), $("pair"), { split: () => Number($("pair-split").value) / 100, divide: (split) => this.cut(100 * split) }),
    });
    this.heads = new Heads(this.view, () => this.run());
    this.view.moved = () => this.place();
    $("pair-split").addEventListener("input", () => this.cut(Number($("pair-split").value)));
    $("squares").addEventListener("change", () => this.squares());
    for (const id of ["fitting", "enlarger", "scale"]) $(id).addEventListener("change", () => this.run());
    for (const id of ["format", "quality"]) $(id).addEventListener("input", () => this.write());
    $("copy").addEventListener("click", () => this.copy());
    for (const [name, on] of [["pointerdown", true], ["pointerup", false], ["pointerleave", false], ["blur", false]]) {
      $("original").addEventListener(name, () => this.peek(on));
    }
    for (const [name, on] of [["keydown", true], ["keyup", false]]) {
      $("original").addEventListener(name, (event) => { if (event.key === " " || event.key === "Enter") this.peek(on); });
    }
    this.squares();
    this.cut(50);
  }

  /** Shows an image and enlarges it. */
  async open(file) {
    Object.assign(this, { file, result: null, count: (this.count ?? 0) + 1 });
    this.heads.forget();
    this.load($("small"), file);
    $("large").removeAttribute("src");
    for (const id of ["onward", "original", "copy"]) $(id).disabled = true;
    $("chip").hidden = true;
    $("file-size").textContent = "";
    await $("small").decode().then(() => this.present($("small")), () => {});  // a TIFF is shown when it is enlarged
    await this.run();
  }

  /** Shows the figure at the size of an image. */
  present({ naturalWidth, naturalHeight }) {
    $("enlarged").hidden = false;
    this.view.open(naturalWidth, naturalHeight);
    this.done();
  }

  async run() {
    const { file } = this, model = $("enlarger").value;
    if (!file || !model) return;
    this.cancel();
    problem(null);
    const controller = this.controller = new AbortController(), begun = performance.now(), seconds = () => (performance.now() - begun) / 1000;
    let stage = "", waits = false;  // what is being done, and whether it waits for the server
    const text = () => `${stage || "Enlarging…"}${seconds() < 2 ? "" : ` ${Math.round(seconds())} s`}`;
    const tell = () => { if (!waits && this.controller === controller) working(text(), stop); };
    const clock = setInterval(tell, 1000);
    const stop = () => this.stop();
    working(text(), stop);
    try {
      const fields = { image: file, model, fit: $("fitting").value, scale: $("scale").value || null };
      if (this.service.local) Object.assign(fields, { heads: model === "auto" ? this.heads.chosen : null, key: String(this.count) });
      const answer = await this.service.process("upscale", fields, {
        signal: controller.signal,
        waits: (why) => { waits = Boolean(why); waiting(why, text()); },
        progress: (now) => {
          const kind = (words) => words.replace(/,? \d+ %.*/, "");
          if (now && kind(now) !== kind(stage)) say(`${kind(now).replace(/…$/, "")}…`);  // screen readers hear each stage once
          stage = now;
          tell();
        },
      });
      if (controller.signal.aborted) return;
      Object.assign(this, { result: answer, name: (file.name ?? "image").replace(/\.\w+$/, "").replace(/-\d+$/, "") });
      await this.show(answer);
      const [from, to] = ["small", "large"].map((id) => `${$(id).naturalWidth}×${$(id).naturalHeight}`);
      const sizes = $("small").naturalWidth ? `${from} → ${to}` : to;
      const said = [`Enlarged in ${seconds().toFixed(1)} s: ${sizes}`, answer.summary, answer.note].filter(Boolean);
      say(`${said.join(". ")}.`);
    } catch (error) {
      if (controller.signal.aborted) return;
      problem(error, () => this.run());
      say("The image was not enlarged.");
    } finally {
      clearInterval(clock);
      if (this.controller === controller) {
        this.controller = null;
        working(null);
      }
    }
  }

  /** Whether an image is shown. */
  get shows() {
    return !$("enlarged").hidden;
  }

  /** Ends what the user is doing: choosing a square, or else waiting. */
  stop() {
    if (this.heads.end() || !this.controller) return;
    this.cancel();
    working(null);
    say("Cancelled.");
  }

  cancel() {
    this.heads.end();
    this.controller?.abort();
    this.controller = null;
  }

  async show({ blob, summary, model, heads = null }) {
    this.load($("large"), blob);
    // What was cut off or stretched for the model is shown so in the image before, too.
    $("small").style.objectFit = $("fitting").value === "crop" ? "cover" : "fill";
    await $("large").decode();
    $("chip").textContent = summary || model;
    $("chip").hidden = false;
    for (const id of ["onward", "original", "copy"]) $(id).disabled = false;
    this.present($("large"));
    this.heads.show(heads);
    await this.write();
  }

  load(image, blob) {
    URL.revokeObjectURL(this.addresses.get(image));
    this.addresses.set(image, URL.createObjectURL(blob));
    image.src = this.addresses.get(image);
  }

  squares() {
    $("small").style.imageRendering = $("squares").checked ? "pixelated" : "auto";
  }

  cut(percent) {
    $("pair-split").value = percent;
    this.controls.write();
    this.place();
  }

  /** Shows the image before up to the divider. */
  place() {
    const percent = this.peeking || !this.result ? 100 : Number($("pair-split").value), { x, scale, width } = this.view;
    $("large").style.clipPath = `inset(0 0 0 ${percent}%)`;
    $("pair-divider").style.left = `${x + scale * width * percent / 100}px`;
    for (const mark of $("enlarged").querySelectorAll(".divider, .tag")) mark.hidden = this.peeking || !this.result || this.heads.square;
    this.heads.place();
  }

  /** Shows the image as it was opened, or the comparison again. */
  peek(on) {
    if (!this.result) return;
    this.peeking = on;
    this.place();
  }

  /** Writes the file in the chosen format, and tells its size. */
  write() {
    const { result } = this, format = $("format").value, quality = Number($("quality").value) / 100;
    $("quality-row").hidden = format === "png";
    this.controls.write();
    clearTimeout(this.timer);
    if (!result) return null;
    $("file-size").textContent = "";
    const file = format === "png" ? Promise.resolve(result.blob) : new Promise((resolve) => { this.timer = setTimeout(resolve, SETTLED); })
      .then(() => save($("large"), format, quality, `gleansr, model ${result.model}`));
    this.encoded = file;
    return file.then((blob) => {
      if (this.encoded !== file) return;
      const size = blob.size < 1e6 ? `${Math.max(1, Math.round(blob.size / 1e3))} kB` : `${(blob.size / 1e6).toFixed(1)} MB`;
      $("file-size").textContent = `${$("large").naturalWidth}×${$("large").naturalHeight}, ${size}`;
    }, problem);
  }

  /** Offers the file to be saved: with PNG the server's own. */
  async save() {
    const side = Math.max($("large").naturalWidth, $("large").naturalHeight), suffix = $("format").value.replace("jpeg", "jpg");
    try {
      download(await this.encoded, `${this.name}-${side}.${suffix}`);
      say("Saved.");
    } catch (error) {
      problem(error);
    }
  }

  async copy() {
    try {
      await navigator.clipboard.write([new ClipboardItem({ "image/png": this.result.blob })]);
      say("Copied.");
    } catch {
      problem(new Error("This browser does not let the page copy images. Save the file instead."));
    }
  }
}
