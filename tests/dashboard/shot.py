"""Opens the page in a headless Chromium until its server has told it some events, checks what it drew and
takes a picture.

Speaks the DevTools protocol over the browser's pipes, so that it needs nothing but Python:
shot.py CHROMIUM URL OUT.png WIDTH HEIGHT light|dark EVENTS
"""

import base64
import json
import os
import subprocess
import sys
import tempfile

# What the page must have drawn, as an expression that says what is missing.
CHECK = """(() => {
  const text = (id) => document.getElementById(id).textContent;
  const missing = [];
  if (text("state") !== "serving") missing.push("state: " + text("state"));
  if (!(parseFloat(text("out")) > 0)) missing.push("tokens a second: " + text("out"));
  if (!text("first").includes("s")) missing.push("first token: " + text("first"));
  if (document.querySelectorAll("#memory .bar").length !== 3) missing.push("three bars of memory");
  if (!document.querySelector("#models tr")) missing.push("models");
  if (!document.querySelector("#tree li")) missing.push("a tree");
  if (document.querySelectorAll("#recent tr").length < 5) missing.push("recent requests");
  if (document.querySelector("#out-line polyline").getAttribute("points").length < 20) missing.push("a line");
  if (document.documentElement.scrollWidth > innerWidth) missing.push("a page no wider than the screen");
  return missing.join("; ");
})()"""


# Kept when as many events have come as it says; fails if they stop coming.
HEARD = """new Promise((resolve, reject) => {
  const events = new EventSource("/events");
  let left = %d;
  events.onmessage = () => {
    left -= 1;
    if (left > 0) return;
    events.close();
    resolve();
  };
  events.onerror = () => reject(new Error("the events have ended, expected " + left + " more"));
})"""


class Browser:
    """A headless Chromium, driven through file descriptors 3 and 4 of its process."""

    def __init__(self, program, profile):
        to_browser, self.commands = os.pipe()
        self.answers, from_browser = os.pipe()
        flags = [
            "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--hide-scrollbars", "--disable-lcd-text", f"--user-data-dir={profile}",
            # Nothing but the page's own server.
            "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
        ]

        def pipes():
            # Out of the way first: either may already have one of the numbers.
            reading, writing = os.dup(to_browser), os.dup(from_browser)
            os.dup2(reading, 3)
            os.dup2(writing, 4)

        self.process = subprocess.Popen(
            [program, *flags], preexec_fn=pipes, pass_fds=(3, 4, to_browser, from_browser),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self.number, self.rest, self.problems, self.loaded = 0, b"", [], set()

    def call(self, method, session=None, **parameters):
        """The result of a command; problems that the page reports meanwhile are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.next()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise SystemExit(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.note(answer)

    def note(self, event):
        """Keeps what matters of something that the browser tells by itself."""
        told = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.problems.append(described(told["exceptionDetails"]))
            case "Log.entryAdded":
                self.problems.append(told["entry"]["text"])
            case "Page.lifecycleEvent" if told["name"] == "load":
                self.loaded.add(told["loaderId"])

    def wait_for_load(self, loader):
        """Until the document of a navigation is there with its scripts."""
        while loader not in self.loaded:
            self.note(self.next())

    def next(self):
        while b"\0" not in self.rest:
            read = os.read(self.answers, 1 << 16)
            if not read:
                raise SystemExit("the browser has ended")
            self.rest += read
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)


def described(details):
    """What an exception of the page says."""
    return details.get("exception", {}).get("description", details["text"])


def main():
    program, url, out, width, height, scheme, events = sys.argv[1:]
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(program, profile)
        try:
            page = browser.call("Target.createTarget", url="about:blank")["targetId"]
            session = browser.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]

            def call(method, **parameters):
                return browser.call(method, session, **parameters)

            def evaluate(expression):
                found = call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
                if "exceptionDetails" in found:
                    raise SystemExit(described(found["exceptionDetails"]))
                return found["result"].get("value")

            for domain in ("Page", "Runtime", "Log"):
                call(f"{domain}.enable")
            call("Page.setLifecycleEventsEnabled", enabled=True)
            call("Emulation.setDeviceMetricsOverride", width=int(width), height=int(height),
                 deviceScaleFactor=1, mobile=int(width) < 600)
            scheme = [{"name": "prefers-color-scheme", "value": scheme}]
            call("Emulation.setEmulatedMedia", features=scheme)
            browser.wait_for_load(call("Page.navigate", url=url)["loaderId"])
            evaluate(HEARD % int(events))
            missing = evaluate(CHECK)
            picture = call("Page.captureScreenshot", format="png")["data"]
            with open(out, "wb") as file:
                file.write(base64.b64decode(picture))
            for problem in browser.problems + ([f"missing: {missing}"] if missing else []):
                print(problem, file=sys.stderr)
            if browser.problems or missing:
                raise SystemExit(1)
            print(f"{out}: {os.path.getsize(out)} bytes")
        finally:
            browser.process.terminate()
            browser.process.wait()


main()
