/** Markdown and formulas of a kernel as HTML that is safe in the page: no script, no style, no form. */

import DOMPurify from "dompurify";
import MarkdownIt from "markdown-it";

type Markdown = ReturnType<typeof MarkdownIt>;

const TAGS = [
  ...["a", "b", "blockquote", "br", "code", "del", "div", "em", "h1", "h2", "h3", "h4", "h5", "h6"],
  ...["hr", "i", "img", "li", "ol", "p", "pre", "s", "span", "strong", "sub", "sup", "table", "tbody"],
  ...["td", "th", "thead", "tr", "ul"],
];
const MATH_TAGS = [
  ...["math", "menclose", "merror", "mfrac", "mi", "mmultiscripts", "mn", "mo", "mover", "mpadded"],
  ...["mphantom", "mprescripts", "mroot", "mrow", "ms", "mspace", "msqrt", "mstyle", "msub", "msubsup"],
  ...["msup", "mtable", "mtd", "mtext", "mtr", "munder", "munderover", "none", "semantics"],
];
const MATH_ATTRIBUTES = [
  ...["accent", "accentunder", "columnalign", "columnspan", "depth", "display", "displaystyle", "fence"],
  ...["height", "linethickness", "lspace", "mathvariant", "maxsize", "minsize", "movablelimits", "notation"],
  ...["rowspan", "rspace", "scriptlevel", "separator", "stretchy", "symmetric", "voffset", "width"],
];

const purify = DOMPurify(window);
purify.addHook("afterSanitizeAttributes", (node) => {
  if (node.nodeName === "A") {
    // A link leads out of the page, to a web address alone, and tells it nothing of this page.
    if (!/^https?:\/\//i.test(node.getAttribute("href") ?? "")) node.removeAttribute("href");
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer nofollow");
  }
  // Images of other places would tell them who looks; the page's policy forbids them as well.
  if (node.nodeName === "IMG" && !/^data:image\/(?:png|jpeg|gif|webp);base64,/.test(node.getAttribute("src") ?? "")) {
    node.removeAttribute("src");
  }
});

/** A fragment that holds nothing but text, links, tables, images of `data:` and formulas. */
function safe(html: string): DocumentFragment {
  // The parsers' own styles (a column's side, a space in a formula) are not wanted: the page's policy
  // counts them as offences even before they are taken away.
  const plain = html.replace(/ style="[^"]*"/g, "");
  return purify.sanitize(plain, {
    ALLOWED_TAGS: [...TAGS, ...MATH_TAGS],
    ALLOWED_ATTR: ["href", "src", "alt", "start", "colspan", ...MATH_ATTRIBUTES],
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
    RETURN_DOM_FRAGMENT: true,
  });
}

type Temml = (typeof import("temml"))["default"];

const FORMULA = { throwOnError: true, trust: false, strict: false, maxExpand: 500, maxSize: [50, 50] as [number, number] };

function formula(temml: Temml, source: string, display: boolean): string {
  return temml.renderToString(source, { ...FORMULA, displayMode: display });
}

/** Formulas in Markdown, between `$` and `$` or `$$` and `$$`, before anything else is read in them. */
function withFormulas(markdown: Markdown, temml: Temml): void {
  markdown.inline.ruler.before("escape", "formula", (state, silent) => {
    if (state.src[state.pos] !== "$") return false;
    const display = state.src[state.pos + 1] === "$";
    const mark = display ? "$$" : "$";
    const from = state.pos + mark.length;
    const end = state.src.indexOf(mark, from);
    if (end <= from) return false;
    const source = state.src.slice(from, end);
    // "5 $ and 6 $" is money.
    if (!display && (/^\s|\s$/.test(source) || /\d/.test(state.src[end + 1] ?? ""))) return false;
    if (!silent) {
      const token = state.push("html_inline", "", 0);
      token.content = formulaOr(temml, source, display, markdown.utils.escapeHtml);
    }
    state.pos = end + mark.length;
    return true;
  });
}

function formulaOr(temml: Temml, source: string, display: boolean, escape: (text: string) => string): string {
  try {
    return formula(temml, source, display);
  } catch {
    return `<code>${escape(source)}</code>`;
  }
}

export async function markdown(source: string): Promise<DocumentFragment> {
  const reader = new MarkdownIt({ html: false, linkify: false, typographer: false });
  if (source.includes("$")) withFormulas(reader, (await import("temml")).default);
  return safe(reader.render(source));
}

/** `text/latex` of a kernel; null if it is no formula (a table of pandas, a whole document). */
export async function latex(source: string): Promise<DocumentFragment | null> {
  const { default: temml } = await import("temml");
  const inner = source.trim().replace(/^(\$\$?|\\\[|\\\()([\s\S]*?)(\$\$?|\\\]|\\\))$/, "$2");
  try {
    return safe(formula(temml, inner, true));
  } catch {
    return null;
  }
}
