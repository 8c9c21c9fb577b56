/**
 * The errors an upload can end in: one class, told apart by its stable `code`. The codes, whether trying again can help, and
 * what they mean are those of `docs/reference/errors.md`.
 */

/** Code -> the text where nobody brought a better one. Trying again with the same file can help. */
const RETRYABLE = {
  connection_lost: "The connection to the server was lost.",
  corrupt_frame: "A frame was damaged on its way.",
  authentication_required: "Sign in, or send a ticket.",
  authentication_timeout: "No ticket came in time.",
  ticket_expired: "The ticket has expired.",
  too_many_connections: "Too many connections are open.",
  idle_timeout: "Nothing came for too long.",
  draining: "The server is about to restart.",
  session_quota: "Too many uploads are open.",
  byte_quota: "Open uploads hold too many bytes.",
  upload_interrupted: "The upload was interrupted.",
  wrong_offset: "Data came at another offset than expected.",
  size_mismatch: "The upload was finished before all bytes were there.",
  busy: "The server is busy.",
  storage_full: "The server has no room for this file.",
  storage_error: "The server could not write the file.",
  database_unavailable: "The server's database does not answer.",
  internal_error: "The server made a mistake; its log says which.",
};

/** The same, where trying again cannot help. */
const FINAL = {
  upload_error: "The upload failed.",
  protocol_violation: "The peer broke the upload protocol.",
  malformed_frame: "A message is no frame of this protocol.",
  unexpected_message: "A message was not expected here.",
  unknown_stream: "A message came on a stream that was never opened.",
  flow_control: "More data was sent than the limit allows.",
  too_many_streams: "Too many streams are open.",
  subprotocol_required: "The server does not speak the upload protocol.",
  connection_refused: "The server refused the connection.",
  ticket_invalid: "The ticket is not valid here.",
  upload_refused: "This upload is not allowed.",
  permission_denied: "You may not upload here.",
  file_too_large: "The file is too large.",
  type_refused: "Files of this type are not allowed.",
  name_refused: "This file name is not allowed.",
  metadata_invalid: "The metadata is not valid.",
  file_refused: "The file was refused.",
  database_not_migrated: "The server's database is not prepared for uploads.",
  taken_over: "Another connection has taken this upload over.",
  upload_failed: "The upload failed.",
  not_found: "There is no such upload.",
  upload_over: "The upload is over.",
  key_reused: "This key belongs to another upload.",
  file_changed: "The file is not the one that was begun.",
  file_unreadable: "The file cannot be read.",
  data_lost: "Bytes that were acknowledged are gone.",
  size_exceeded: "The file is longer than was said.",
  corrupt_chunks: "A chunk was damaged too often.",
  digest_mismatch: "The file that arrived is not the one that was sent.",
};

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
    super(message || (known ?? { text: FINAL.upload_error }).text, cause === undefined ? {} : { cause });
    this.name = "UploadError";
    /** Stable; a code of a newer server, or of a host's own rule, is handed through. @type {string} */
    this.code = code;
    /** Whether the same attempt can succeed later. The client does it by itself. @type {boolean} */
    this.retryable = retryable ?? known?.retryable ?? false;
    /** Seconds to wait before another attempt, where the server has an opinion. @type {number | undefined} */
    this.retryAfter = retryAfter;
    /** The figures behind the message, JSON values. @type {Record<string, unknown>} */
    this.facts = facts;
  }

  /** Something was received that the protocol does not allow: the connection is closed. @returns {boolean} */
  get isViolation() {
    return VIOLATIONS.has(this.code);
  }

  /** A login or a ticket is missing, or ran out: going on needs a person or a program. @returns {boolean} */
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
