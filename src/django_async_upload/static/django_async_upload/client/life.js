/**
 * The life of an upload as a table of phases and events, and which event an error is. No I/O, no clock: upload.js does what
 * follows from a phase.
 */

/**
 * What a user sees of an upload.
 *
 * - `queued`: waits for its turn
 * - `offline`: waits for the network, and goes on by itself
 * - `unauthenticated`: waits for a login or a ticket, and goes on by itself
 * - `waiting`: the server, or the disk, could not serve it (`error` says why); it is tried again at `retryAt`
 * - `finishing`: the server has all bytes; it verifies and publishes
 *
 * @typedef {"queued" | "uploading" | "paused" | "offline" | "unauthenticated" | "waiting" | "finishing" | "completed" | "failed"
 *   | "cancelled"} UploadState
 */

/**
 * A state, or one of those that look the same from outside:
 *
 * - `pausing`: RELEASE is on its way; a stream is still held
 * - `resuming`: the same, and the user has changed their mind
 * - `holding`: to be paused, but FINISH is on its way, behind which nothing can be released: it is paused if it comes back
 *
 * @typedef {UploadState | "pausing" | "resuming" | "holding"} Phase
 */

/**
 * What a user asks: `pause`, `hold` (the same behind FINISH), `resume`, `cancel`, `retry`, `leave`. What happens:
 *
 * - `start`: it got a stream; `released`: the stream was given back
 * - `arrived`: the server has all bytes; `rewound`: it has not, after all; `complete`: it has published the file
 * - `offline`, `online`, `login`: the connection is lost, is there, or wants a login
 * - `again`: it failed for now; `due`: the time to wait is over
 * - `anew`: it turned out to be another upload than was thought; `fail`: nothing will help
 *
 * @typedef {"pause" | "hold" | "resume" | "cancel" | "retry" | "leave" | "start" | "released" | "arrived" | "rewound" | "complete"
 *   | "offline" | "online" | "login" | "again" | "due" | "anew" | "fail"} LifeEvent
 */

/** @typedef {Readonly<Partial<Record<LifeEvent, Phase>>>} Ways */

/** @type {Ways} */
const ENDS = { cancel: "cancelled", fail: "failed", leave: "failed" };
/** @type {Ways} */
const WAITS = { ...ENDS, start: "uploading", pause: "paused", again: "waiting" };
/** @type {Ways} */
const INTERRUPTED = { offline: "offline", login: "unauthenticated", again: "waiting", anew: "queued" };
/** What was to be paused is, whatever comes between. @type {Ways} */
const PAUSED = { offline: "paused", login: "paused", again: "paused", anew: "paused", released: "paused" };

/**
 * Phase -> event -> next phase. An event that is not here changes nothing.
 *
 * @type {Readonly<Record<Phase, Ways>>}
 */
export const LIFE = {
  queued: { ...WAITS, offline: "offline", login: "unauthenticated" },
  offline: { ...WAITS, online: "queued", login: "unauthenticated" },
  unauthenticated: { ...WAITS, online: "queued", offline: "offline" },
  waiting: { ...ENDS, due: "queued", retry: "queued", pause: "paused" },
  uploading: {
    ...{ ...ENDS, ...INTERRUPTED, pause: "pausing", hold: "holding" },
    ...{ released: "queued", arrived: "finishing", complete: "completed" },
  },
  holding: { ...ENDS, ...PAUSED, resume: "uploading", pause: "pausing", arrived: "finishing", complete: "completed" },
  pausing: { ...ENDS, ...PAUSED, resume: "resuming", complete: "completed" },
  resuming: { ...ENDS, ...INTERRUPTED, pause: "pausing", released: "queued", complete: "completed" },
  paused: { resume: "queued", cancel: "cancelled", leave: "failed" },
  finishing: { ...ENDS, ...INTERRUPTED, rewound: "uploading", complete: "completed" },
  completed: {},
  failed: { retry: "queued", cancel: "cancelled" },
  cancelled: { retry: "queued" },
};

/** @type {Readonly<Partial<Record<Phase, UploadState>>>} */
const SHOWN = { pausing: "paused", holding: "paused", resuming: "queued" };

/**
 * @param {Phase} phase
 * @param {LifeEvent} event
 * @returns {Phase} the same where the event means nothing
 */
export function next(phase, event) {
  return LIFE[phase][event] ?? phase;
}

/**
 * @param {Phase} phase
 * @returns {UploadState} what the page is told
 */
export function shown(phase) {
  return SHOWN[phase] ?? /** @type {UploadState} */ (phase);
}

/**
 * It is in a lane for a turn, or has one and no stream yet.
 *
 * @param {Phase} phase
 */
export function wantsTurn(phase) {
  return phase === "queued" || phase === "offline" || phase === "unauthenticated";
}

/** @param {Phase} phase */
export function isOver(phase) {
  return phase === "completed" || phase === "failed" || phase === "cancelled";
}

/** Milliseconds without any gain for which a failed upload is tried again. */
export const PATIENCE = 5 * 60 * 1000;
/** The same where its file cannot be read. */
export const PATIENCE_OF_FILES = 30 * 1000;
/** Waiting does not help against these: a user has to finish or cancel other uploads. */
const QUOTAS = new Set(["session_quota", "byte_quota"]);

/**
 * What an error is in the life of an upload.
 *
 * @param {import( "../protocol/errors.js").UploadError} error
 * @param {object} of
 * @param {boolean} of.isGuess it was recognised without being asked
 * @param {boolean} of.isFromBefore an earlier page began it, and the server has not gone on with it yet
 * @param {number} of.stuck milliseconds since something was gained
 * @returns {LifeEvent}
 */
export function eventOf(error, { isGuess, isFromBefore, stuck }) {
  const { code } = error;
  if ((code === "file_changed" && isGuess) || (code === "upload_over" && isFromBefore)) {
    return "anew"; // another file with the same head and tail, or its upload has expired: the file is here
  }
  if (error.needsLogin) {
    return "login";
  }
  if (code === "connection_lost" || code === "draining") {
    return "offline";
  }
  if (code === "file_unreadable") {
    return stuck < PATIENCE_OF_FILES ? "again" : "fail";
  }
  return error.retryable && !QUOTAS.has(code) && stuck < PATIENCE ? "again" : "fail";
}

/** Failures after which the upload is still there, for this or another file, tab or time. */
const KEPT = new Set(["file_changed", "file_unreadable", "taken_over"]);

/**
 * Whether the upload is still there after it failed with this error: it stays remembered.
 *
 * @param {import( "../protocol/errors.js").UploadError} error
 */
export function isKept(error) {
  return error.retryable || KEPT.has(error.code);
}

/**
 * Whether `retry` goes on with the same upload; otherwise it makes another one.
 *
 * @param {import( "../protocol/errors.js").UploadError | null} error
 */
export function canGoOn(error) {
  return error !== null && isKept(error) && error.code !== "file_changed";
}
