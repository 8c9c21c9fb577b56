/** The Worker in which files are read. */
import { serveWorker } from "./file/reading.js";

serveWorker();
