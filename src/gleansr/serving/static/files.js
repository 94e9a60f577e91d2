// Images from files and to files. Pixels go in and out as they are: canvases are sRGB, and nothing but an opened file is converted.
import { isOpaque } from "./pixels.js";
import { mark } from "./mark.js";
import { png } from "./png.js";

const MOST_PIXELS = 100e6;
const MOST_PLAIN = 4e6;  // pixels that are sent uncompressed
const STRIP = 1024;  // rows at a time, since some browsers have no large canvases

/** Whether this browser can read an image is found out before it is sent. Throws as `open`; formats that only the server knows pass. */
export async function readable(file) {
  if (/^image\/(tiff|avif|gif|bmp)/.test(file.type)) return;
  (await bitmapOf(file)).close();
}

async function bitmapOf(file) {
  try {
    return await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name ?? "This"} is not an image that this browser can read. Use PNG, JPEG or WebP.`);
  }
}

/**
 * Opens an image: upright, converted to sRGB by its profile, 8 bits.
 * @param {Blob} file
 * @returns {Promise<ImageData>}
 * @throws {Error} with what to do, if it is not an image or too large
 */
export async function open(file) {
  const bitmap = await bitmapOf(file), { width, height } = bitmap;
  if (width * height > MOST_PIXELS) {
    bitmap.close();
    throw new Error(`${file.name ?? "The image"} has ${width}×${height} pixels, more than ${MOST_PIXELS / 1e6} million. Shrink it and open that.`);
  }
  return pixels(bitmap);
}

/** The pixels of an image that the server made, exactly as they are in the file. */
export async function decode(blob) {
  return pixels(await createImageBitmap(blob, { colorSpaceConversion: "none" }));
}

function pixels(bitmap) {
  const { width, height } = bitmap, image = new ImageData(width, height);
  const context = new OffscreenCanvas(width, Math.min(height, STRIP)).getContext("2d", { willReadFrequently: true });
  context.globalCompositeOperation = "copy";
  for (let top = 0; top < height; top += STRIP) {
    const rows = Math.min(STRIP, height - top);
    context.drawImage(bitmap, 0, -top);
    image.data.set(context.getImageData(0, 0, width, rows).data, top * width * 4);
  }
  bitmap.close();
  return image;
}

/**
 * A file with exactly these pixels, for the server. On this machine an uncompressed BMP, which takes a few milliseconds to write and to read
 * where a PNG takes a hundred; over a network, and for many pixels, a PNG, which is smaller.
 */
export function encode(image) {
  return isLoopback() && image.width * image.height <= MOST_PLAIN ? bmp(image) : png(image);
}

const isLoopback = () => /^(localhost|127\..*|\[::1\])$/.test(location.hostname);

/** Windows' bitmap with 24 bits a pixel, or 32 with alpha, rows from bottom to top. */
export function bmp(image) {
  const { width, height, data } = image, opaque = isOpaque(image), size = opaque ? 3 : 4;
  const head = opaque ? 54 : 122, stride = Math.ceil(width * size / 4) * 4, bytes = new Uint8Array(head + stride * height);
  const view = new DataView(bytes.buffer), word = (at, value) => view.setUint32(at, value, true);
  bytes.set([0x42, 0x4d]);
  word(2, bytes.length);
  word(10, head);
  word(14, head - 14);
  word(18, width);
  word(22, height);
  view.setUint16(26, 1, true);
  view.setUint16(28, size * 8, true);
  if (!opaque) {
    word(30, 3);  // channels by masks, in the fourth version's header, which has one for alpha
    [0xff0000, 0xff00, 0xff, 0xff000000, 0x73524742].forEach((mask, i) => word(54 + 4 * i, mask));
  }
  word(34, stride * height);
  for (let y = 0, from = 0; y < height; y++) {
    for (let x = 0, to = head + (height - 1 - y) * stride; x < width; x++, from += 4, to += size) {
      bytes[to] = data[from + 2];
      bytes[to + 1] = data[from + 1];
      bytes[to + 2] = data[from];
      if (!opaque) bytes[to + 3] = data[from + 3];
    }
  }
  return new Blob([bytes], { type: "image/bmp" });
}

/**
 * An image as a file of another format, marked as having detail that a model made up.
 * @param {HTMLImageElement} image
 * @param {"jpeg"|"webp"} format
 * @param {number} quality from 0 to 1
 * @param {string} software the program and model
 * @returns {Promise<Blob>}
 */
export async function save(image, format, quality, software) {
  const { naturalWidth: width, naturalHeight: height } = image, canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d");
  if (format === "jpeg") {  // has no transparency
    context.fillStyle = "#fff";
    context.fillRect(0, 0, width, height);
  }
  context.drawImage(image, 0, 0);
  const blob = await canvas.convertToBlob({ type: `image/${format}`, quality });
  if (blob.type !== `image/${format}`) throw new Error(`This browser writes no ${format.toUpperCase()} files. Choose PNG.`);
  return new Blob([mark(new Uint8Array(await blob.arrayBuffer()), format, software)], { type: blob.type });
}

/** Offers a file to be saved. */
export function download(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}
