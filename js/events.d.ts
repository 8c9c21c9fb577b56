/** Events with their types, on the client's classes, on the element and on whatever it bubbles to. */
import type { Progress, Result, Upload, UploadError, UploadState } from "./client.js";
import type { AsyncUploadProgressElement, Standing } from "./progress.js";
import type { AsyncUploadElement } from "./widget.js";

export interface UploadEvents {
  progress: CustomEvent<Progress>;
  state: CustomEvent<{ state: UploadState; previous: UploadState }>;
  completed: CustomEvent<{ result: Result }>;
  error: CustomEvent<{ error: UploadError }>;
}

export interface UploaderEvents {
  upload: CustomEvent<{ upload: Upload }>;
  connection: CustomEvent<{
    state: "idle" | "connecting" | "open" | "waiting" | "closed";
    retryIn?: number;
    error?: UploadError;
  }>;
  unreachable: CustomEvent<{ unreachable: boolean }>;
  warning: CustomEvent<{ code: string; message: string }>;
}

export interface AsyncUploadEvents {
  "async-upload-add": CustomEvent<{ file: File; path: string; handle?: FileSystemFileHandle }>;
  "async-upload-progress": CustomEvent<{ upload: Upload; progress: Progress }>;
  "async-upload-state": CustomEvent<{ upload: Upload; state: UploadState; previous: UploadState }>;
  "async-upload-completed": CustomEvent<{ upload: Upload; result: Result }>;
  "async-upload-error": CustomEvent<{ upload: Upload; error: UploadError }>;
  "async-upload-warning": CustomEvent<{ code: string; message: string }>;
}

export interface AsyncUploadProgressEvents {
  "async-upload-standing": CustomEvent<{ standing: Standing | null }>;
}

export interface WatcherEvents {
  changed: CustomEvent<{ standings: Standing[]; missing: string[] }>;
  live: CustomEvent<{ live: boolean }>;
}

declare module "./client/upload.js" {
  interface Upload {
    addEventListener<Name extends keyof UploadEvents>(
      type: Name,
      listener: (event: UploadEvents[Name]) => void,
      options?: boolean | AddEventListenerOptions,
    ): void;
    addEventListener(
      type: string,
      listener: EventListenerOrEventListenerObject | null,
      options?: boolean | AddEventListenerOptions,
    ): void;
    removeEventListener<Name extends keyof UploadEvents>(
      type: Name,
      listener: (event: UploadEvents[Name]) => void,
      options?: boolean | EventListenerOptions,
    ): void;
    removeEventListener(
      type: string,
      listener: EventListenerOrEventListenerObject | null,
      options?: boolean | EventListenerOptions,
    ): void;
  }
}

declare module "./client/uploader.js" {
  interface Uploader {
    addEventListener<Name extends keyof UploaderEvents>(
      type: Name,
      listener: (event: UploaderEvents[Name]) => void,
      options?: boolean | AddEventListenerOptions,
    ): void;
    addEventListener(
      type: string,
      listener: EventListenerOrEventListenerObject | null,
      options?: boolean | AddEventListenerOptions,
    ): void;
    removeEventListener<Name extends keyof UploaderEvents>(
      type: Name,
      listener: (event: UploaderEvents[Name]) => void,
      options?: boolean | EventListenerOptions,
    ): void;
    removeEventListener(
      type: string,
      listener: EventListenerOrEventListenerObject | null,
      options?: boolean | EventListenerOptions,
    ): void;
  }
}

declare module "./client/watcher.js" {
  interface Watcher {
    addEventListener<Name extends keyof WatcherEvents>(
      type: Name,
      listener: (event: WatcherEvents[Name]) => void,
      options?: boolean | AddEventListenerOptions,
    ): void;
    addEventListener(
      type: string,
      listener: EventListenerOrEventListenerObject | null,
      options?: boolean | AddEventListenerOptions,
    ): void;
    removeEventListener<Name extends keyof WatcherEvents>(
      type: Name,
      listener: (event: WatcherEvents[Name]) => void,
      options?: boolean | EventListenerOptions,
    ): void;
    removeEventListener(
      type: string,
      listener: EventListenerOrEventListenerObject | null,
      options?: boolean | EventListenerOptions,
    ): void;
  }
}

declare global {
  interface HTMLElementTagNameMap {
    "async-upload": AsyncUploadElement;
    "async-upload-progress": AsyncUploadProgressElement;
  }
  interface GlobalEventHandlersEventMap extends AsyncUploadEvents, AsyncUploadProgressEvents {}
}
