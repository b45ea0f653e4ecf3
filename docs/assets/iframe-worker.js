// The search runs in a worker, which browsers refuse to pages that are read from disk.
// There, a hidden frame does the work of the worker.
"use strict";

class FrameWorker extends EventTarget {
  constructor(url) {
    super();
    const frame = document.body.appendChild(document.createElement("iframe"));
    frame.hidden = true;
    this.inside = frame.contentWindow;
    this.inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
    this.inside.importScripts = (...scripts) => Promise.all(scripts.map((each) => this.load(each)));
    this.ready = this.load(url);
  }

  load(url) {
    const script = this.inside.document.createElement("script");
    script.src = url;
    return new Promise((resolve, reject) => {
      script.onload = resolve;
      script.onerror = reject;
      this.inside.document.body.append(script);
    });
  }

  postMessage(data) {
    const event = new this.inside.MessageEvent("message", { data });
    this.ready.then(() => this.inside.dispatchEvent(event));
  }
}

if (location.protocol === "file:") {
  window.Worker = FrameWorker;
}
