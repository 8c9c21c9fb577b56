/**
 * The errors an upload can end in: one class, told apart by its stable `code`. The codes, whether trying again can help, and
 * what they mean are those of `docs/reference/errors.md`.
 */

import { FINAL, RETRYABLE } from "./error-texts.js";

/** @type {ReadonlyMap<string, {retryable: boolean, text: string}>} */
export const CODES = new Map([
  ...Object.entries(RETRYABLE).map(([code, text]) => tuple(code, { retryable: true, text })),
  ...Object.entries(FINAL).map(([code, text]) => tuple(code, { retryable: false, text })),
]);

/**
 * @template V
 * @param {string} code
 * @param {V} value
 * @returns {[string, V]}
 */
function tuple(code, value) {
  return [code, value];
}

/**
 * @typedef {object} ErrorOptions
 * @property {string} [message] English, for people; it may change
 * @property {Record<string, unknown>} [facts] the figures behind the message, JSON values
 * @property {boolean} [retryable] what the server says; else as the code has it
 * @property {number} [retryAfter] seconds
 * @property {unknown} [cause]
 */

/** Why an upload, or a connection, ended. Programs compare `code`. */
export class UploadError extends Error {
  /**
   * @param {string} code
   * @param {ErrorOptions} [options]
   */
  constructor(code, { message, facts = {}, retryable, retryAfter, cause } = {}) {
    const known = CODES.get(code);
    super(message || known?.text || FINAL.upload_error, cause === undefined ? {} : { cause });
    this.name = "UploadError";
    /** Stable; a code of a newer server, or of a host's own rule, is handed through. @type {string} */
    this.code = code;
    /** Whether the same attempt can succeed later. The client does it by itself. @type {boolean} */
    this.retryable = retryable ?? known?.retryable ?? false;
    /** Seconds to wait before another attempt, where the server names them. @type {number | undefined} */
    this.retryAfter = retryAfter;
    /** The figures behind the message, JSON values. @type {Record<string, unknown>} */
    this.facts = facts;
  }

  /** Something was received that the protocol does not allow: the connection is closed. @returns {boolean} */
  get isViolation() {
    return VIOLATIONS.has(this.code);
  }

  /** A login or a ticket is missing, or has expired. @returns {boolean} */
  get needsLogin() {
    return this.code === "authentication_required" || this.code === "ticket_expired";
  }
}

const VIOLATIONS = new Set([
  "protocol_violation",
  "malformed_frame",
  "corrupt_frame",
  "unexpected_message",
  "unknown_stream",
  "flow_control",
  "too_many_streams",
  "subprotocol_required",
]);
