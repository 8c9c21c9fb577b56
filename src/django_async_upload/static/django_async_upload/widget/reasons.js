/**
 * Why a file was not uploaded, in words for the user who chose it. The server's messages are English and made for developers:
 * they are shown only where the host's own rule, which may say something of its own, refused the file.
 */
import { fill, join } from "./texts.js";

/** @typedef {import( "./texts.js").Texts} Texts */
/** @typedef {{code: string, message: string, facts?: Record<string, unknown>}} Failure */

/** @type {Readonly<Record<string, keyof Texts>>} */
const TEXT_OF_CODE = Object.freeze({
  type_refused: "errorTypeUnknown",
  name_refused: "errorName",
  permission_denied: "errorPermission",
  session_quota: "errorQuota",
  byte_quota: "errorQuota",
  busy: "errorBusy",
  draining: "errorBusy",
  too_many_connections: "errorBusy",
  storage_full: "errorStorage",
  storage_error: "errorStorage",
  database_unavailable: "errorServer",
  database_not_migrated: "errorServer",
  internal_error: "errorServer",
  upload_interrupted: "errorServer",
  wrong_offset: "errorServer",
  size_mismatch: "errorServer",
  idle_timeout: "errorServer",
  corrupt_frame: "errorServer",
  too_slow: "errorUnreachable",
  connection_lost: "errorUnreachable",
  connection_refused: "errorUnreachable",
  subprotocol_required: "errorUnreachable",
  authentication_required: "errorSignIn",
  authentication_timeout: "errorSignIn",
  ticket_invalid: "errorSignIn",
  ticket_expired: "errorSignIn",
  taken_over: "errorTakenOver",
  file_changed: "errorChanged",
  size_exceeded: "errorChanged",
  file_unreadable: "errorUnreadable",
  digest_mismatch: "errorDamaged",
  corrupt_chunks: "errorDamaged",
  data_lost: "errorDamaged",
  not_found: "errorEnded",
  upload_over: "errorEnded",
});

/** Codes after which the user may try the same file again, though nothing tries by itself. */
const AGAIN = new Set(["file_unreadable", "digest_mismatch", "corrupt_chunks", "data_lost", "not_found", "upload_over", "taken_over"]);

/**
 * @param {Failure} error
 * @param {{size: number}} file
 * @param {Texts} texts
 * @param {import( "./formats.js").Formats} formats
 */
export function reason(error, file, texts, formats) {
  if (error.code === "file_too_large") {
    const limit = Number(error.facts?.max_size);
    if (!limit) return texts.errorTooLargeUnknown;
    return fill(texts.errorTooLarge, formats.sizeAndLimit(file.size, limit));
  }
  if (error.code === "upload_refused" || error.code === "file_refused") {
    return fill(texts.errorRefused, { message: error.message });
  }
  const key = TEXT_OF_CODE[error.code];
  return key ? texts[key] : fill(texts.errorOther, { message: error.message });
}

/** @type {Readonly<Record<string, keyof Texts>>} */
const TEXT_OF_WAIT = Object.freeze({ storage_full: "waitRoom", busy: "waitBusy", file_unreadable: "waitFile" });

/**
 * What an upload waits for that is tried again by itself.
 * @param {{code: string}} error
 * @param {Texts} texts
 */
export function waitsFor({ code }, texts) {
  return texts[TEXT_OF_WAIT[code] ?? "waitServer"];
}

/** Whether a user may press "Try again". @param {{code: string, retryable: boolean}} error */
export function mayRetry(error) {
  return error.retryable || AGAIN.has(error.code);
}

/**
 * What the page knows without asking the server: the size, and the type as far as the browser and the name tell.
 * @param {File} file
 * @param {{maxSize: number, minSize?: number, accept: string}} limits bytes, 0 for none; as of an input's `accept`
 * @param {Texts} texts
 * @param {import( "./formats.js").Formats} formats
 * @param {(file: File, accept: string) => boolean} matches
 * @returns {string} a sentence, or "" where the file is not refused
 */
export function refusal(file, limits, texts, formats, matches) {
  if (limits.accept && !matches(file, limits.accept)) {
    return fill(texts.errorType, { types: typesOf(limits.accept, texts) });
  }
  if (limits.maxSize && file.size > limits.maxSize) {
    return reason({ code: "file_too_large", message: "", facts: { max_size: limits.maxSize } }, file, texts, formats);
  }
  if (file.size < (limits.minSize ?? 0)) {
    return fill(texts.errorTooSmall, { size: formats.size(file.size), limit: formats.size(limits.minSize ?? 0) });
  }
  return "";
}

/**
 * `accept` as people read it: "image/*,.pdf,image/png,application/x-thing" becomes "images, .pdf, PNG, application/x-thing".
 * @param {string} accept
 * @param {Texts} texts
 */
export function typesOf(accept, texts) {
  /** @type {Record<string, string>} */
  const kinds = { "image/*": texts.images, "video/*": texts.videos, "audio/*": texts.sounds };
  const words = accept.split(",").map((each) => {
    const type = each.trim().toLowerCase();
    const short = /^\w+\/([a-z]{2,4}\d?)$/.exec(type);
    return kinds[type] ?? (short ? short[1].toUpperCase() : type);
  });
  return join(words, ", ");
}
