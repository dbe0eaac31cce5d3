import { coloured } from "./colours";
import { legible } from "./contrast";

/** Text with its colours. `style` is in effect at its beginning. */
export function Ansi({ text, style = "" }: { text: string; style?: string }) {
  if (style === "" && !text.includes("\x1b")) return <>{text}</>;
  return (
    <>
      {coloured(text, style).map((piece, index) =>
        piece.classes === "" && piece.color === null && piece.background === null ? (
          piece.text
        ) : (
          <span key={index} class={piece.classes} style={legible(piece.color, piece.background)}>
            {piece.text}
          </span>
        ),
      )}
    </>
  );
}
