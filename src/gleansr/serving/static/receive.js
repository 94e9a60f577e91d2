// The ways in which images come: the file chooser, dropping, pasting, the sample.
import { decode, open as read } from "./files.js";
import { shrink } from "./pixels.js";
import { png } from "./png.js";
import { $, problem } from "./status.js";

// The samples: their files, and the heads or objects in them, of which a small image shows one.
const SAMPLES = {
  cat: { file: "chelsea.jpg", head: { left: 70, top: 6, right: 358, bottom: 294 } },
  face: { file: "astronaut.jpg", head: { left: 145, top: 27, right: 305, bottom: 187 } },
  car: { file: "car.jpg", head: { left: 55, top: 25, right: 695, bottom: 505 } },
  bedroom: { file: "bedroom.jpg", head: { left: 0, top: 0, right: 512, bottom: 512 } },
  tower: { file: "tower.jpg", head: { left: 46, top: 104, right: 526, bottom: 584 } },
};
const SMALL = 32;  // pixels of the samples for enlarging

const imageIn = (data) => [...data?.files ?? []].find((file) => file.type.startsWith("image/")) ?? data?.files?.[0];

/**
 * Calls `open` with each file that the user gives.
 * @param {(file: File, head?: import("./pixels.js").Rect) => void} open is told a head that is known to be in it
 * @param {(mode: "upscale"|"retouch") => void} turn is called before, when the user gives a file for one mode
 */
export function receive(open, turn) {
  $("file").addEventListener("change", () => {
    open($("file").files[0]);
    $("file").value = "";  // so that the same file can be chosen again
  });
  $("open").addEventListener("click", () => $("file").click());
  for (const button of document.querySelectorAll("[data-choose]")) {
    button.addEventListener("click", () => {
      turn(button.dataset.choose);
      $("file").click();
    });
  }
  for (const button of document.querySelectorAll("[data-sample]")) {
    button.addEventListener("click", () => {
      turn(button.dataset.modeOf);
      sample(open, button.dataset.sample, button.dataset.modeOf === "upscale");
    });
  }
  for (const name of ["dragenter", "dragover"]) {
    document.addEventListener(name, (event) => {
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault();
      $("drop").hidden = false;
    });
  }
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").hidden = true; });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").hidden = true;
    const card = event.target.closest?.("[data-for]");
    if (card) turn(card.dataset.for);
    open(imageIn(event.dataTransfer));
  });
  document.addEventListener("paste", (event) => {
    const file = imageIn(event.clipboardData);
    if (!file) return;
    event.preventDefault();
    open(file);
  });
}

/** The sample of the guide: a face, its head, an amateur's edit of its eyes and mouth, and where the edit lies. */
export async function badEdit() {
  const [face, edit] = await Promise.all(["astronaut.jpg", "astronaut-edit.png"].map(async (name) => (await fetch(`static/${name}`)).blob()));
  return { face: new File([face], "astronaut.jpg", { type: face.type }), head: SAMPLES.face.head, edit: await decode(edit), left: 188, top: 89 };
}

async function sample(open, name, small) {
  const { file, head } = SAMPLES[name], response = await fetch(`static/${file}`).catch(() => null);
  if (!response?.ok) return problem(new Error("The sample could not be loaded. Is the server still running?"), () => sample(open, name, small));
  const image = await response.blob();
  if (!small) return open(new File([image], file, { type: image.type }), head);
  const thumbnail = await png(shrink(await read(image), head, (head.right - head.left) / SMALL));
  open(new File([thumbnail], file.replace(".jpg", `-${SMALL}.png`), { type: "image/png" }));
}
