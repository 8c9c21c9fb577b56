/**
 * The files that a user chose, dropped or pasted, folders with all that is in them.
 */

/**
 * @typedef {object} Picked
 * @property {File} file
 * @property {string} path where it lay in what was chosen, `folder/a.txt`; only the name for a single file
 * @property {FileSystemFileHandle} [handle] lets a later page read the file again without asking for it
 */

/** @typedef {(path: string, error: unknown) => void} OnError something could not be read and is left out */

/** Files of a folder that are opened at once. */
const BATCH = 100;

/**
 * @param {HTMLInputElement} input of type file, `webkitdirectory` too
 * @returns {Picked[]}
 */
export function fromInput(input) {
  return Array.from(input.files ?? [], (file) => ({
    file,
    path: file.webkitRelativePath || file.name,
  }));
}

/**
 * Does it carry files? In `dragover` that is all a page may know.
 *
 * @param {DataTransfer | null} transfer
 */
export function hasFiles(transfer) {
  return transfer !== null && Array.from(transfer.types).includes("Files");
}

/**
 * What was dropped or pasted. Call it while the event is handled: afterwards the browser has emptied `transfer`.
 *
 * @param {DataTransfer} transfer
 * @param {OnError} [onerror]
 * @returns {Promise<Picked[]>} folders walked, in the order of their names
 */
export async function fromTransfer(transfer, onerror = () => undefined) {
  const items = Array.from(transfer.items).filter((item) => item.kind === "file");
  const opened = items.map((item) => ({
    file: item.getAsFile(),
    entry: item.webkitGetAsEntry?.() ?? null,
    // Only in secure contexts; refused for folders that the browser guards.
    handle: handleOf(item).catch(() => null),
  }));
  /** @type {Picked[]} */
  const picked = [];
  for (const { file, entry, handle: promise } of opened) {
    const handle = await promise;
    if (handle !== null && isDirectory(handle)) {
      append(picked, await walkHandle(handle, handle.name, onerror));
    } else if (entry !== null && isFolder(entry)) {
      append(picked, await walkEntry(entry, entry.name, onerror));
    } else if (file !== null) {
      picked.push({ file, path: file.name, ...(isFile(handle) ? { handle } : {}) });
    }
  }
  return picked;
}

/**
 * Does a file fit an input's `accept`? As the HTML standard has it: `.pdf`, `image/*`, `application/pdf`, with commas between.
 *
 * @param {File} file
 * @param {string} accept everything fits an empty one
 */
export function matches(file, accept) {
  const wanted = split(accept);
  const name = file.name.toLowerCase();
  const type = file.type.toLowerCase().split(";")[0].trim();
  return (
    wanted.length === 0 ||
    wanted.some((each) => {
      if (each.startsWith(".")) {
        return name.endsWith(each);
      }
      return each.endsWith("/*") ? type.startsWith(each.slice(0, -1)) : type === each;
    })
  );
}

/** @param {string} accept */
function split(accept) {
  const tokens = accept.split(",").map((each) => each.trim().toLowerCase());
  return tokens.filter((each) => each !== "" && each !== "*/*");
}

/**
 * @param {DataTransferItem} item
 * @returns {Promise<FileSystemHandle | null>}
 */
async function handleOf(item) {
  const call = /** @type {{getAsFileSystemHandle?: () => Promise<FileSystemHandle | null>}} */ (
    /** @type {unknown} */ (item)
  );
  return (await call.getAsFileSystemHandle?.()) ?? null;
}

/**
 * @param {FileSystemHandle} handle
 * @returns {handle is FileSystemDirectoryHandle}
 */
function isDirectory(handle) {
  return handle.kind === "directory";
}

/**
 * @param {FileSystemHandle | null} handle
 * @returns {handle is FileSystemFileHandle}
 */
function isFile(handle) {
  return handle?.kind === "file";
}

/**
 * @param {FileSystemEntry} entry
 * @returns {entry is FileSystemDirectoryEntry}
 */
function isFolder(entry) {
  return entry.isDirectory;
}

/**
 * @param {FileSystemDirectoryHandle} directory
 * @param {string} path
 * @param {OnError} onerror
 * @returns {Promise<Picked[]>}
 */
async function walkHandle(directory, path, onerror) {
  const inside = [];
  try {
    for await (const handle of directory.values()) {
      inside.push(handle);
    }
  } catch (error) {
    onerror(path, error);
  }
  return walk(inside, path, onerror, {
    isFolder: isDirectory,
    open: async (handle) => {
      const file = /** @type {FileSystemFileHandle} */ (handle);
      return { file: await file.getFile(), handle: file };
    },
    enter: (handle, inner) =>
      walkHandle(/** @type {FileSystemDirectoryHandle} */ (handle), inner, onerror),
  });
}

/**
 * @param {FileSystemDirectoryEntry} directory
 * @param {string} path
 * @param {OnError} onerror
 * @returns {Promise<Picked[]>}
 */
async function walkEntry(directory, path, onerror) {
  /** @type {FileSystemEntry[]} */
  const inside = [];
  try {
    const reader = directory.createReader();
    /** @type {FileSystemEntry[]} */
    let some;
    // Chromium gives at most a hundred at a time; an empty answer is the end.
    do {
      some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      append(inside, some);
    } while (some.length > 0);
  } catch (error) {
    onerror(path, error);
  }
  return walk(inside, path, onerror, {
    isFolder,
    open: async (entry) => ({
      file: await new Promise((resolve, reject) =>
        /** @type {FileSystemFileEntry} */ (entry).file(resolve, reject),
      ),
    }),
    enter: (entry, inner) =>
      walkEntry(/** @type {FileSystemDirectoryEntry} */ (entry), inner, onerror),
  });
}

/**
 * @template {{name: string}} Entry
 * @param {Entry[]} inside what a folder holds
 * @param {string} path of the folder
 * @param {OnError} onerror
 * @param {object} way
 * @param {(entry: Entry) => boolean} way.isFolder
 * @param {(entry: Entry) => Promise<{file: File, handle?: FileSystemFileHandle}>} way.open
 * @param {(entry: Entry, path: string) => Promise<Picked[]>} way.enter
 * @returns {Promise<Picked[]>}
 */
async function walk(inside, path, onerror, { isFolder, open, enter }) {
  inside.sort((a, b) => (a.name < b.name ? -1 : 1));
  /** @type {Picked[]} */
  const picked = [];
  for (let index = 0; index < inside.length; index += BATCH) {
    const batch = inside.slice(index, index + BATCH);
    const parts = await Promise.all(
      batch.map(async (entry) => {
        const inner = `${path}/${entry.name}`;
        if (isFolder(entry)) {
          return enter(entry, inner);
        }
        try {
          return [{ ...(await open(entry)), path: inner }];
        } catch (error) {
          onerror(inner, error);
          return [];
        }
      }),
    );
    for (const part of parts) {
      append(picked, part);
    }
  }
  return picked;
}

/**
 * Not `push(...more)`: a folder may hold more files than a call may have arguments.
 *
 * @template T
 * @param {T[]} list
 * @param {T[]} more
 */
function append(list, more) {
  for (const each of more) {
    list.push(each);
  }
}
