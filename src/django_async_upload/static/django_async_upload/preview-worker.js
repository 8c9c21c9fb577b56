/** The Worker in which small pictures are made. */
import { serveWorker } from "./file/scaling.js";

serveWorker();
