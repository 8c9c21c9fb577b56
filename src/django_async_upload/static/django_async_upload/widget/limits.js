/** What a field takes: how many files, how large, of which type; and why it refuses one. */
import { matches } from "./files.js";
import { refusal } from "./reasons.js";
import { fill } from "./texts.js";

/** @typedef {ReturnType<typeof limitsOf>} Limits sizes in bytes; 0 or "" where there is no limit */

/** @param {import( "./field.js").UploadField} field */
export function limitsOf({ element, input, directory }) {
  const accept = input.accept || element.getAttribute("accept") || "";
  const [maxSize, minSize, maxFiles, maxTotalSize] = [
    element.getAttribute("max-size"),
    element.getAttribute("min-size"),
    element.getAttribute("max-files"),
    element.getAttribute("max-total-size"),
  ].map((each) => Number(each) || 0);
  return { maxSize, minSize, maxFiles, maxTotalSize, accept, directory };
}

/**
 * Why a file cannot be taken: itself, or because it would be one too many.
 * @param {File} file
 * @param {import( "./field.js").UploadField} field
 * @param {Limits} limits of the field
 * @returns {string} a sentence, or ""
 */
export function whyNot(file, { texts, formats, selection, isMany }, limits) {
  const why = refusal(file, limits, texts, formats, matches);
  const { maxFiles, maxTotalSize } = limits;
  if (why || !isMany || !(maxFiles || maxTotalSize)) return why;
  const there = selection.items.filter(({ broken, isOffer }) => !broken && !isOffer);
  if (maxFiles && there.length >= maxFiles) return fill(texts.errorTooMany, { count: formats.count(maxFiles) });
  const total = there.reduce((sum, item) => sum + item.size, file.size);
  return maxTotalSize && total > maxTotalSize ? fill(texts.errorTotal, { limit: formats.size(maxTotalSize) }) : "";
}
