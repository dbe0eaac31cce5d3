/** Colours that a kernel chooses, made legible: WCAG asks for a contrast of 4.5. */

const ENOUGH = 4.5;
const DARK = "rgb(17, 22, 28)";
const LIGHT = "rgb(255, 255, 255)";

function luminance(colour: string): number {
  const [red = 0, green = 0, blue = 0] = (colour.match(/\d+/g) ?? []).map((part) => {
    const value = Number(part) / 255;
    return value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

export function contrast(one: string, other: string): number {
  const [low = 0, high = 0] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}

/** Black or white, whichever can be read better on or below a colour. */
export function opposite(colour: string): string {
  return contrast(colour, DARK) >= contrast(colour, LIGHT) ? DARK : LIGHT;
}

/** The two colours that text is shown with of those that a kernel has chosen. */
export function legible(color: string | null, background: string | null): { color?: string; backgroundColor?: string } {
  if (color === null && background === null) return {};
  if (background === null) return { color: color ?? "", backgroundColor: opposite(color ?? "") };
  if (color !== null && contrast(color, background) >= ENOUGH) return { color, backgroundColor: background };
  return { color: opposite(background), backgroundColor: background };
}
