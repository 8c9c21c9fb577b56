// The peer from npm: tus-js-client in Node. Arguments: address of the server's files, path, bytes of a PATCH.
// Prints the seconds of the upload and its address as JSON. Runs in a folder that has the package installed.
import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import process from "node:process";

const require = createRequire(path.join(process.cwd(), "package.json"));
const { Upload } = require("tus-js-client");

const [endpoint, file, step] = process.argv.slice(2);
const started = process.hrtime.bigint();
const upload = new Upload(fs.createReadStream(file), {
  endpoint,
  chunkSize: Number(step),
  uploadSize: fs.statSync(file).size,
  onSuccess() {
    const seconds = Number(process.hrtime.bigint() - started) / 1e9;
    process.stdout.write(`${JSON.stringify({ seconds, url: upload.url })}\n`, () => process.exit(0));
  },
  onError(error) {
    console.error(String(error));
    process.exit(1);
  },
});
upload.start();
