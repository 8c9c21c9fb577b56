/** In place of error-texts.js in the bundle: a page shows words of its own, so that a developer has to look up the code. */
const CODES =
  "connection_lost corrupt_frame authentication_required authentication_timeout ticket_expired " +
  "too_many_connections idle_timeout draining session_quota byte_quota upload_interrupted wrong_offset " +
  "size_mismatch busy too_slow storage_full storage_error database_unavailable internal_error";

/** @type {Record<string, string>} */
export const RETRYABLE = Object.fromEntries(CODES.split(" ").map((code) => [code, code]));
export const FINAL = { upload_error: "The upload failed." };
