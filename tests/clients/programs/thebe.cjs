// Opens the page, runs its cell, moves the slider a step, and waits for what the kernel says to that.

const [url, chromium, library, requirejs, expected] = process.argv.slice(2);
const SECONDS = 1000;
const options = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
  "--disable-background-networking", "--disable-component-update",
];

async function main() {
  const browser = await require(library).chromium.launch({ executablePath: chromium, args: options });
  try {
    const page = await browser.newPage();
    page.setDefaultTimeout(90 * SECONDS);
    page.on("console", (message) => console.log(message.type(), message.text()));
    page.on("pageerror", (error) => console.log("error", error.message));
    // Nothing comes from elsewhere: neither Binder, nor the copy of require.js that thebe asks for.
    await page.route(
      (address) => address.hostname !== "127.0.0.1",
      (route) =>
        route.request().url().endsWith("/require.min.js")
          ? route.fulfill({ path: requirejs, headers: { "Access-Control-Allow-Origin": "*" } })
          : route.abort(),
    );
    await page.goto(url);
    await page.waitForFunction("window.thebe !== undefined");
    await page.evaluate("window.thebe.bootstrap({ useBinder: false, requestKernel: true })");
    await page.waitForFunction("window.thebe.session?.kernel?.connectionStatus === 'connected'");
    await page.locator(".thebe-run-button").click();
    await page.getByText("not moved", { exact: true }).waitFor();
    await page.locator(".noUi-handle").press("ArrowRight");
    await page.getByText(expected, { exact: true }).waitFor();
  } finally {
    await browser.close();
  }
}

main().then(
  () => process.exit(0),
  (error) => {
    console.log(error.message);
    process.exit(1);
  },
);
