// Marks files as having detail that a model made up, in the words of the IPTC, where programs look for it.
const SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia";
const NAMESPACE = "http://ns.adobe.com/xap/1.0/\0";  // begins XMP in JPEG files

const text = (value) => new TextEncoder().encode(value);

/** The XMP packet that names the program and model. */
export function xmp(software) {
  const name = software.replace(/[&<"]/g, (sign) => ({ "&": "&amp;", "<": "&lt;", '"': "&quot;" })[sign]);
  return `<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmp:CreatorTool="${name}" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 Iptc4xmpExt:DigitalSourceType="${SOURCE}"/></rdf:RDF></x:xmpmeta><?xpacket end="w"?>`;
}

/**
 * A file with the mark.
 * @param {Uint8Array} file as the browser wrote it
 * @param {"jpeg"|"webp"} format
 * @param {string} software the program and model
 * @returns {Uint8Array}
 */
export function mark(file, format, software) {
  return format === "jpeg" ? jpeg(file, text(NAMESPACE + xmp(software))) : webp(file, text(xmp(software)));
}

function jpeg(file, packet) {
  const size = packet.length + 2, app1 = Uint8Array.of(0xff, 0xe1, size >> 8, size & 255);
  const after = file[3] === 0xe0 ? 4 + (file[4] << 8 | file[5]) : 2;  // JFIF's segment comes first
  return joined(file.subarray(0, after), app1, packet, file.subarray(after));
}

/** A simple file (VP8 or VP8L) becomes an extended one (VP8X), which may hold XMP. */
function webp(file, packet) {
  const view = new DataView(file.buffer, file.byteOffset), at = 12, type = String.fromCharCode(...file.subarray(at, at + 4));
  let head, rest = file.subarray(at);
  if (type === "VP8X") {
    head = file.slice(at, at + 18);
    rest = file.subarray(at + 18);
    head[8] |= 4;
  } else {
    const bits = type === "VP8L" ? view.getUint32(at + 9, true) : 0;
    const width = type === "VP8L" ? bits & 0x3fff : (view.getUint16(at + 14, true) & 0x3fff) - 1;
    const height = type === "VP8L" ? bits >>> 14 & 0x3fff : (view.getUint16(at + 16, true) & 0x3fff) - 1;
    head = new Uint8Array(18);
    head.set(text("VP8X"));
    head.set([10, 0, 0, 0, 4 | (bits >>> 28 & 1 ? 16 : 0), 0, 0, 0], 4);  // XMP, and alpha if the file has it
    head.set([width & 255, width >> 8, 0, height & 255, height >> 8, 0], 12);
  }
  const chunk = new Uint8Array(8 + packet.length + packet.length % 2);
  chunk.set(text("XMP "));
  new DataView(chunk.buffer).setUint32(4, packet.length, true);
  chunk.set(packet, 8);
  const out = joined(file.subarray(0, 12), head, rest, chunk);
  new DataView(out.buffer).setUint32(4, out.length - 8, true);
  return out;
}

function joined(...parts) {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}
