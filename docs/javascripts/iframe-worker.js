// Search runs in a Worker, which browsers refuse to pages opened from a file: there, a hidden frame does its work.
(() => {
  if (location.protocol !== "file:") return;

  class FrameWorker extends EventTarget {
    constructor(url) {
      super();
      this.queue = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inner = this.frame.contentWindow;
      inner.postToPage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      inner.isReady = () => {
        const queued = this.queue;
        this.queue = null;
        queued.forEach((data) => this.postMessage(data));
      };
      inner.document.open();
      inner.document.write(this.page(new URL(url, location.href).href));
      inner.document.close();
    }

    page(url) {
      return `<script>
        const [toPage, ready] = [window.postToPage, window.isReady];
        window.postMessage = (data) => toPage(data);
        window.importScripts = (...urls) => urls.reduce((last, src) => last.then(() => new Promise((done) => {
          document.head.append(Object.assign(document.createElement("script"), { src, async: false, onload: done }));
        })), Promise.resolve());
      </script><script src="${url}"></script><script>ready();</script>`;
    }

    postMessage(data) {
      if (this.queue) this.queue.push(data);
      else this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }));
    }

    terminate() {
      this.frame.remove();
    }
  }

  window.Worker = FrameWorker;
})();
