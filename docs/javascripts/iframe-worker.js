/* Browsers start no web worker from a file. Pages that are opened from disk run its script in a hidden frame instead,
   which is all that the search needs: messages in both directions, and further scripts. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super();
      const base = new URL(address, location.href);
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const scope = frame.contentWindow;
      const load = (source) => new Promise((resolve, reject) => {
        const script = scope.document.createElement("script");
        script.src = new URL(source, base).href;
        script.onload = resolve;
        script.onerror = reject;
        scope.document.body.append(script);
      });
      scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      scope.importScripts = (...sources) => Promise.all(sources.map(load));
      this.frame = frame;
      this.loaded = load(base);
    }

    postMessage(data) {
      const scope = this.frame.contentWindow;
      this.loaded.then(() => scope.dispatchEvent(new scope.MessageEvent("message", { data })));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
