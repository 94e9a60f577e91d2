// Small pictures made large: the whole picture goes through the model once, and the result is compared with what was opened.
import { download } from "./files.js";
import { $, problem, say, waiting, working } from "./status.js";

/** The page's second mode. */
export class Upscale {
  /**
   * @param {import("./api.js").Service} service
   * @param {import("./controls.js").Controls} controls
   * @param {() => void} done is called when there is a result
   */
  constructor(service, controls, done) {
    Object.assign(this, { service, controls, done, file: null, name: "", result: null, controller: null, addresses: new Map() });
    $("pair-split").addEventListener("input", () => this.cut(Number($("pair-split").value)));
    $("squares").addEventListener("change", () => this.squares());
    for (const id of ["fitting", "enlarger"]) $(id).addEventListener("change", () => this.run());
    $("again").addEventListener("click", () => this.run());
    const pair = $("pair"), under = (event) => {
      const { left, width } = pair.getBoundingClientRect();
      this.cut(Math.min(Math.max((event.clientX - left) / width, 0), 1) * 100);
    };
    pair.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      pair.setPointerCapture(event.pointerId);
      under(event);
    });
    pair.addEventListener("pointermove", (event) => { if (event.buttons) under(event); });
    this.squares();
    this.cut(50);
  }

  /** Opens a picture and upscales it. */
  async open(file) {
    this.file = file;
    $("again").disabled = false;
    await this.run();
  }

  async run() {
    const { file } = this, model = $("enlarger").value;
    if (!file || !model) return;
    this.cancel();
    problem(null);
    const controller = this.controller = new AbortController(), begun = performance.now(), text = "Enlarging…";
    working(text, () => { this.cancel(); working(null); say("Cancelled."); });
    try {
      const fields = { picture: file, model, fit: $("fitting").value };
      const answer = await this.service.picture("upscale", fields, { signal: controller.signal, waits: (why) => waiting(why, text) });
      if (controller.signal.aborted) return;
      Object.assign(this, { result: answer, name: (file.name ?? "picture").replace(/\.\w+$/, "") });
      await this.show(answer.blob);
      const said = [`Enlarged in ${((performance.now() - begun) / 1000).toFixed(1)} s`, answer.summary, answer.note].filter(Boolean);
      say(`${said.join(". ")}.`);
    } catch (error) {
      if (controller.signal.aborted) return;
      problem(error, () => this.run());
      say("The picture was not enlarged.");
    } finally {
      if (this.controller === controller) {
        this.controller = null;
        working(null);
      }
    }
  }

  cancel() {
    this.controller?.abort();
    this.controller = null;
  }

  async show(blob) {
    this.load($("large"), blob);
    this.load($("small"), this.file);
    // What was cut off or stretched for the model is shown so in the picture before, too.
    $("small").style.objectFit = $("fitting").value === "crop" ? "cover" : "fill";
    await $("large").decode();
    $("pair").style.aspectRatio = `${$("large").naturalWidth} / ${$("large").naturalHeight}`;
    $("pair").style.setProperty("--ratio", $("large").naturalWidth / $("large").naturalHeight);
    $("enlarged").hidden = $("onward").disabled = false;
    this.done();
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
    $("large").style.clipPath = `inset(0 0 0 ${percent}%)`;
    $("pair-divider").style.left = `${percent}%`;
  }

  /** Offers the server's file to be saved. */
  save() {
    download(this.result.blob, `${this.name}-${this.result.model.replaceAll(", ", "-")}.png`);
    say("Saved.");
  }
}
