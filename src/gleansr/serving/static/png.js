// Writes PNG files with exactly the pixels of an image: canvases round colours that can be seen through, and some take seconds to become files.
import { xmp } from "./mark.js";
import { isOpaque } from "./pixels.js";

const ROWS = 64;  // rows that are compressed in one go, so that the page stays alive

const SUMS = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte >>> 1 ^ (byte & 1 ? 0xedb88320 : 0);
  return byte;
});

/**
 * A PNG file, sRGB, 8 bits.
 * @param {ImageData} image
 * @param {string|null} software the program and model, if the image has detail that a model made up; it is then marked so as IPTC has it
 * @returns {Promise<Blob>}
 */
export async function png(image, software = null) {
  const { width, height } = image, opaque = isOpaque(image), head = new DataView(new ArrayBuffer(13));
  head.setUint32(0, width);
  head.setUint32(4, height);
  head.setUint16(8, 8 << 8 | (opaque ? 2 : 6));  // bits a channel, RGB or RGBA
  const packed = new CompressionStream("deflate"), read = new Response(packed.readable).arrayBuffer();
  const writer = packed.writable.getWriter();
  for (let top = 0; top < height; top += ROWS) {
    await writer.write(filtered(image, opaque ? 3 : 4, top, Math.min(top + ROWS, height)));
    await new Promise((resolve) => setTimeout(resolve));
  }
  await writer.close();
  return new Blob([
    Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a), ...chunk("IHDR", new Uint8Array(head.buffer)), ...chunk("sRGB", Uint8Array.of(0)),
    ...(software ? [...chunk("iTXt", text(`XML:com.adobe.xmp\0\0\0\0\0${xmp(software)}`)), ...chunk("tEXt", text(`Software\0${software}`))] : []),
    ...chunk("IDAT", new Uint8Array(await read)), ...chunk("IEND", new Uint8Array()),
  ], { type: "image/png" });
}

/** Rows as PNG compresses them: the difference of each channel to what Paeth's predictor makes of its neighbours. */
function filtered({ width, data }, channels, top, bottom) {
  const bytes = new Uint8Array((bottom - top) * (1 + width * channels)), above = width * 4;
  for (let y = top, to = 0; y < bottom; y++) {
    bytes[to++] = 4;
    for (let x = 0, from = y * width * 4; x < width; x++, from += 4) {
      for (let c = from; c < from + channels; c++) {
        const a = x ? data[c - 4] : 0, b = y ? data[c - above] : 0, corner = x && y ? data[c - above - 4] : 0;
        const nearA = Math.abs(b - corner), nearB = Math.abs(a - corner), nearC = Math.abs(a + b - 2 * corner);
        bytes[to++] = data[c] - (nearA <= nearB && nearA <= nearC ? a : nearB <= nearC ? b : corner);
      }
    }
  }
  return bytes;
}

function chunk(type, contents) {
  const name = text(type), ends = new DataView(new ArrayBuffer(8));
  let sum = -1;
  for (const bytes of [name, contents]) for (let i = 0; i < bytes.length; i++) sum = sum >>> 8 ^ SUMS[(sum ^ bytes[i]) & 255];
  ends.setUint32(0, contents.length);
  ends.setUint32(4, ~sum);
  return [ends.buffer.slice(0, 4), name, contents, ends.buffer.slice(4)];
}

const text = (value) => new TextEncoder().encode(value);
