/** How many pixels an image has, by the beginning of its file: a small file may hold a huge image. */

const HEAD = 65_536;

function bytesOf(base64: string): Uint8Array | null {
  try {
    const clean = base64.slice(0, HEAD).replace(/\s+/g, "");
    const whole = atob(clean.slice(0, clean.length - (clean.length % 4)));
    return Uint8Array.from(whole, (character) => character.charCodeAt(0));
  } catch {
    return null;
  }
}

/** Width times height; null where that cannot be told. */
export function pixelsOf(type: string, base64: string): number | null {
  const bytes = bytesOf(base64);
  if (bytes === null || bytes.length < 26) return null;
  const view = new DataView(bytes.buffer);
  if (type === "image/png") return view.getUint32(16) * view.getUint32(20);
  if (type === "image/gif") return view.getUint16(6, true) * view.getUint16(8, true);
  return type === "image/jpeg" ? jpeg(view) : null;
}

function jpeg(view: DataView): number | null {
  let at = 2;
  while (at + 9 < view.byteLength && view.getUint8(at) === 0xff) {
    const marker = view.getUint8(at + 1);
    const frame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (frame) return view.getUint16(at + 5) * view.getUint16(at + 7);
    at += 2 + view.getUint16(at + 2);
  }
  return null;
}
