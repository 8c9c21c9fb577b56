// A page with an Uploader and a server in the same process, for the tests of the client.
import assert from "node:assert/strict";
import { Uploader } from "../../src/django_async_upload/static/django_async_upload/client.js";
import { Server, Shelf, WINDOW, environmentOf, settle, until } from "./server.js";
import { pattern } from "./vectors.js";

export const LARGE = WINDOW + 1_000_000;
export const URL = "/ws/uploads/";
/** For a machine that is busy with other things too. */
export const LIMIT = { timeout: 60_000 };

export const fileOf = (size, name = "a.bin", seed = 1) =>
  new File([pattern(seed, 0, size)], name, { type: "application/x-test", lastModified: 1 });

export function begin(context, server = new Server(), { options = {}, ...more } = {}) {
  const environment = environmentOf(server, more);
  const uploader = new Uploader({ url: URL, ...options }, environment);
  context.after(() => uploader.close());
  return { server, uploader, environment };
}

export const sessionOf = (server, upload) => server.sessions.get(upload.key);

export async function assertStored(server, upload, file) {
  const session = sessionOf(server, upload);
  assert.equal(session.state, "completed");
  assert.deepEqual(session.bytes, new Uint8Array(await file.arrayBuffer()));
}

export function record(target, ...types) {
  const seen = [];
  types.forEach((type) => target.addEventListener(type, ({ detail }) => seen.push(detail)));
  return seen;
}

export const after = (count, type, then) => {
  let seen = 0;
  return (...said) => said[0] === type && ++seen === count && then(...said);
};

/** A page that sent about half a file and is gone. */
export async function reload(context, file, { what = file, options } = {}) {
  const server = new Server();
  const records = new Shelf();
  const { uploader } = begin(context, server, { records });
  const upload = uploader.add(what, options);
  await until(() => upload.progress.received > file.size / 2);
  await until(() => [...records.kept.values()][0]?.upload);
  uploader.close();
  await settle();
  server.heard.length = 0;
  return { ...begin(context, server, { records }), records, key: upload.key };
}
