// The peer from npm: @tus/server with its file store. Arguments: port, directory, and "sync" to
// make every PATCH durable before it is answered. Runs in a folder that has both packages installed.
import fs from "node:fs/promises";
import { createRequire } from "node:module";
import path from "node:path";
import process from "node:process";
import { pathToFileURL } from "node:url";

const load = async (name) => {
  const require = createRequire(path.join(process.cwd(), "package.json"));
  return import(pathToFileURL(require.resolve(name)));
};
const { Server } = await load("@tus/server");
const { FileStore } = await load("@tus/file-store");

const [port, directory, sync] = process.argv.slice(2);

class SyncedFileStore extends FileStore {
  async write(readable, id, offset) {
    const end = await super.write(readable, id, offset);
    const file = await fs.open(path.join(this.directory, id), "r+");
    try {
      await file.datasync();
    } finally {
      await file.close();
    }
    return end;
  }
}

const Store = sync === "sync" ? SyncedFileStore : FileStore;
new Server({ path: "/files", datastore: new Store({ directory }) }).listen({
  host: process.env.BENCH_HOST ?? "127.0.0.1",
  port: Number(port),
});
