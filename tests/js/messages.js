// What a client says: the fields of its messages, which only a server has to check.
import {
  algorithm,
  boolean,
  crc,
  digests,
  integer,
  isFromClient,
  matching,
  maybe,
  needed,
  object,
  parseMessage as parse,
  text,
  uploads,
  uuid,
} from "../../src/django_async_upload/static/django_async_upload/protocol/messages.js";

const FROM_CLIENT = {
  AUTH: { ticket: maybe(text(0, 8192)) },
  CREATE: {
    key: needed(matching(/^[0-9a-f]{32}$/)),
    name: needed(text(1, 1024)),
    size: maybe(integer),
    content_type: maybe(text(0, 255), () => ""),
    digest: maybe(algorithm),
    metadata: maybe(object, () => ({})),
  },
  ATTACH: { upload: needed(uuid) },
  PROOF: { durable_crc32c: needed(crc), received_crc32c: maybe(crc) },
  FINISH: { size: needed(integer), crc32c: needed(crc), digests: maybe(digests, () => ({})) },
  CANCEL: { upload: maybe(uuid), finished: maybe(boolean) },
  RELEASE: {},
  PAUSED: { offset: needed(integer) },
  QUERY: { upload: needed(uuid) },
  WATCH: {
    scope: needed((value) => ["uploads", "own", "all"].includes(/** @type {string} */ (value))),
    uploads: maybe(uploads, () => []),
  },
};

/** A message of either side: see `parseMessage()` of protocol/messages.js. */
export function parseMessage(type, fields) {
  return parse(type, fields, isFromClient(type) ? FROM_CLIENT : undefined);
}
