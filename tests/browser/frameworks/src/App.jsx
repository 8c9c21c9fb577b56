import { useState } from "react";
import { AsyncUpload, useUploads } from "django-resumable-upload/react";

export function App() {
  const [isShown, show] = useState(true);
  const [done, setDone] = useState([]);
  return (
    <main>
      <label htmlFor="attachment">Attachment</label>
      {isShown && (
        <AsyncUpload
          id="attachment"
          name="attachment"
          multiple
          onCompleted={({ result }) => setDone((before) => [...before, result.name])}
        />
      )}
      <button id="toggle" onClick={() => show(!isShown)}>Toggle</button>
      <output id="completed">{done.join(", ")}</output>
      <Own />
      <Conditional />
    </main>
  );
}

function Own() {
  const { uploads, add, remove } = useUploads({ url: "/ws/uploads/" });
  return (
    <section>
      <input type="file" id="own" aria-label="Own" onChange={({ target }) => add(target.files, { metadata: { taker: "api" } })} />
      <ul>
        {uploads.map(({ key, upload, name, state, progress, result }) => (
          <li key={key} data-state={state}>
            {name} <progress value={progress.fraction} aria-label={name} />
            {state === "uploading" && <button onClick={() => upload.pause()}>Pause</button>}
            {state === "paused" && <button onClick={() => upload.resume()}>Resume</button>}
            {result && <code>{result.receipt}</code>}
            <button className="remove" onClick={() => remove(upload)}>Remove</button>
          </li>
        ))}
      </ul>
    </section>
  );
}

function Conditional() {
  const [isOpen, open] = useState(true);
  return (
    <section>
      <async-upload url="/ws/uploads/" taker="api">
        {isOpen && <input type="file" name="conditional" aria-label="Conditional" />}
      </async-upload>
      <button id="conditional" onClick={() => open(!isOpen)}>{isOpen ? "Close" : "Open"}</button>
    </section>
  );
}
