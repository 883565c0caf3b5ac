// Places orders at the page of order-service with a headless Chromium, while the service is killed and the network cut.
//
//     CALLBACK_TEST_NPM=FOLDER node scripts/foreign/browser.mjs PATH_OF_ORDER_SERVICE FOLDER_OF_SCREENSHOTS
//
// CALLBACK_TEST_NPM is where `npm install puppeteer-core` was run; CALLBACK_TEST_CHROMIUM is the browser, default `chromium`
// on the path. Prints a line a check; exits 1 if one fails.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

const puppeteer = createRequire(`${process.env.CALLBACK_TEST_NPM}/`)("puppeteer-core");
const [program, screenshots] = process.argv.slice(2);
const PATIENCE = 60_000; // ms that anything may take
const WORK = "1500"; // ms that an order takes: time to cut the network meanwhile

const ok = (sentence) => console.log(`ok ${sentence}`);

/** order-service on a store that outlives it. */
class Service {
  constructor(folder) {
    this.folder = folder;
  }

  async start() {
    const store = `sqlite:${join(this.folder, "orders.db")}`;
    const command = ["serve", "--listen", "127.0.0.1:0", "--store", store, "--work", WORK];
    this.process = spawn(program, command, { stdio: ["ignore", "pipe", "inherit"] });
    this.ended = once(this.process, "exit");
    for await (const line of createInterface(this.process.stdout)) {
      const port = /^listening on http:\/\/127\.0\.0\.1:(\d+)\//.exec(line)?.[1];
      if (port) return Number(port);
    }
    throw new Error("order-service did not start");
  }

  /** Loses what was stored, sessions too. */
  forget() {
    for (const name of readdirSync(this.folder)) if (name.startsWith("orders.db")) rmSync(join(this.folder, name));
  }

  async kill() {
    this.process.kill("SIGKILL");
    await this.ended;
  }
}

/** A network between browser and service that can be cut, and can lose what is on its way. */
class Network {
  #pairs = new Set();
  #isUp = true;
  /** What is done with bytes on their way to the `browser` or the `service`: true lets them through. */
  passes = () => true;

  async start() {
    this.server = net.createServer((browser) => this.#join(browser)).listen(0, "127.0.0.1");
    await once(this.server, "listening");
    return this.server.address().port;
  }

  #join(browser) {
    if (!this.#isUp || !this.to) return browser.resetAndDestroy();
    const service = net.connect(this.to, "127.0.0.1");
    const pair = [browser, service];
    this.#pairs.add(pair);
    const copy = (from, to, name) => {
      from.on("data", (bytes) => this.passes(name, bytes) && to.write(bytes));
      from.on("error", () => {});
      from.on("close", () => {
        to.destroy();
        this.#pairs.delete(pair);
      });
    };
    copy(browser, service, "service");
    copy(service, browser, "browser");
  }

  cut() {
    this.#isUp = false;
    for (const pair of this.#pairs) for (const socket of pair) socket.resetAndDestroy();
  }

  mend() {
    this.passes = () => true;
    this.#isUp = true;
  }

  /** Loses all bytes to this end, from the first that is no HTTP; resolves when that came. */
  lose(end) {
    return new Promise((resolve) => {
      let hasLost = false;
      this.passes = (name, bytes) => {
        hasLost ||= name === end && !/^(HTTP|GET|POST)/.test(bytes.toString("latin1"));
        if (hasLost) resolve();
        return !(hasLost && name === end);
      };
    });
  }
}

/** The page, by what it shows. */
class Shop {
  constructor(page) {
    this.page = page;
    page.setDefaultTimeout(PATIENCE);
  }

  connected = () => this.page.waitForSelector('[data-state="open"]');

  /** With the keyboard alone. */
  async place(number, { isInStock = true } = {}) {
    const { page } = this;
    await page.focus("#order");
    await page.keyboard.down("Control");
    await page.keyboard.press("a");
    await page.keyboard.up("Control");
    await page.keyboard.type(number);
    await page.keyboard.press("Tab");
    await page.keyboard.type(isInStock ? "In stock" : "Out of stock");
    await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
  }

  async reaches(number, status) {
    const reached = (title, status) => [...document.querySelectorAll(".card")]
      .some((card) => card.querySelector("h3").textContent === title && card.dataset.status === status);
    await this.page.waitForFunction(reached, {}, `Order ${number}`, status);
  }

  /** What an order went through, one step a line. */
  steps(number) {
    return this.page.evaluate((title) => {
      const card = [...document.querySelectorAll(".card")].find((card) => card.querySelector("h3").textContent === title);
      return [...card.querySelectorAll(".steps li")].map((item) => item.lastChild.textContent.trim());
    }, `Order ${number}`);
  }

  async resulted(number, result = "Completed") {
    await this.reaches(number, result.toLowerCase());
    const steps = await this.steps(number);
    assert.equal(steps.filter((step) => step === result).length, 1, `order ${number}: ${steps}`);
    assert.equal(steps.at(-1), result);
  }

  address = () => this.page.evaluate(() => JSON.parse(sessionStorage.getItem("orders")).at(-1).dsn);
}

/** What a browser makes of a page that breaks the rules: external loads, errors, sizes for fingers, names for screen readers. */
async function inspect(page, port) {
  const csp = (await (await fetch(`http://127.0.0.1:${port}/`)).headers).get("content-security-policy");
  assert.match(csp, /default-src 'none'/);
  const small = await page.$$eval("input, select, button, summary", (controls) => controls
    .filter((control) => control.checkVisibility() && control.getBoundingClientRect().height < 44)
    .map((control) => control.outerHTML));
  assert.deepEqual(small, [], "controls are 44 px high");
  const unnamed = await page.$$eval("input, select", (fields) => fields.filter((field) => !field.labels.length).length);
  assert.equal(unnamed, 0, "fields have labels");
  await page.focus("#order");
  await page.keyboard.press("Tab");
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  assert.equal(outline, "solid", "the focus of the keyboard can be seen");
}

/** The example of callback-ws/README.md, on a page with nothing else. */
async function example(browser, origin) {
  const readme = readFileSync(new URL("../../callback-ws/README.md", import.meta.url), "utf8");
  const code = /```js\n([^]*?)```/.exec(readme)[1].replace(/import (.*) from "\.(.*)";/, 'const $1 = await import("$2");');
  const context = await browser.createBrowserContext();
  const page = await context.newPage();
  await page.goto(`${origin}page.css`);
  const result = await page.evaluate(`(async () => {${code}; return order("20"); })()`);
  assert.equal(result.orderId, "20");
  await context.close();
}

async function photograph(page, name, viewport, scheme) {
  await page.setViewport(viewport); // which may load the page again
  await page.waitForSelector('[data-state="open"]');
  await page.$eval("details", (details) => (details.open = true));
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.equal(overflow, 0, `${name} is not wider than the screen`);
  const path = join(screenshots, `${name}.png`);
  await page.screenshot({ path, fullPage: true });
  console.log(`screenshot ${path}`);
}

async function play(browser, service, network) {
  network.to = await service.start();
  const port = await network.start();
  const origin = `http://127.0.0.1:${port}/`;
  const page = await browser.newPage();
  const faults = [];
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("request", (request) => request.url().startsWith(origin) || request.url().startsWith("data:") || faults.push(request.url()));
  page.on("console", (message) => /Content Security Policy/.test(message.text()) && faults.push(message.text()));
  const shop = new Shop(page);
  await page.goto(origin);
  await shop.connected();
  ok("the page opens a session");
  await inspect(page, port);
  ok("it has labels, a visible focus, room for fingers, and a content security policy");

  await shop.place("1");
  await shop.resulted("1");
  assert.deepEqual(await shop.steps("1"), ["Sent", "Acknowledged, in progress", "Completed"]);
  const news = await page.$eval("#news", (news) => news.textContent);
  assert.match(news, /^Order 1: Completed\. /);
  ok("an order that is placed by the keyboard is acknowledged, and its result is shown and announced");
  await shop.place("2", { isInStock: false });
  await shop.resulted("2", "Failed");
  ok("a failure is shown as one");
  const dsn = await shop.address();

  await shop.place("3");
  await shop.reaches("3", "acknowledged");
  await service.kill();
  await page.waitForSelector('[data-state="away"]');
  network.to = await service.start();
  await shop.resulted("3");
  ok("the service is killed with SIGKILL after the acknowledgment: the result is shown once");

  await shop.place("4");
  await shop.reaches("4", "acknowledged");
  await network.lose("browser");
  network.cut();
  await page.waitForSelector('[data-state="away"]');
  network.mend();
  await shop.resulted("4");
  ok("the network is cut while the result is on its way: it is shown once");

  await shop.place("5");
  await shop.reaches("5", "acknowledged");
  await network.lose("service");
  await shop.resulted("5");
  network.cut();
  await page.waitForSelector('[data-state="away"]');
  network.mend();
  await shop.connected();
  await shop.place("6");
  await shop.resulted("6");
  await shop.resulted("5");
  ok("the network is cut while the acknowledgment of a result is on its way: the result is shown once");

  await page.setOfflineMode(true);
  await shop.place("7");
  await shop.reaches("7", "unsent");
  network.cut();
  network.mend();
  await page.waitForSelector('[data-state="away"]');
  await page.setOfflineMode(false);
  await shop.connected();
  await page.click('.card[data-status="unsent"] .again');
  await shop.resulted("7");
  ok("an order that is placed offline can be sent again");

  await shop.place("8");
  await shop.reaches("8", "acknowledged");
  await page.reload();
  await shop.connected();
  await shop.resulted("8");
  for (const number of ["1", "3", "4", "5", "6", "7"]) await shop.resulted(number);
  assert.equal(await shop.address(), dsn, "it is the same session still");
  ok("the page is loaded again meanwhile: it resumes, and shows each result once");

  await shop.place("9");
  await shop.reaches("9", "acknowledged");
  await page.goto("about:blank");
  await service.kill();
  network.to = await service.start();
  await page.goto(origin);
  await shop.resulted("9");
  ok("page and service are both away: the result is shown once");

  const opened = once(page, "popup");
  await page.evaluate(() => void open("/")); // with a copy of what is stored
  const [other] = await opened;
  await new Shop(other).connected();
  await page.waitForSelector('[data-state="closed"]');
  await shop.place("10");
  await shop.reaches("10", "unsent");
  await other.close();
  await page.reload();
  await shop.connected();
  await page.click('.card[data-status="unsent"] .again');
  await shop.resulted("10");
  assert.equal(await shop.address(), dsn, "it is the same session still");
  ok("another tab takes the session over, and the first one says so and gets it back");

  await shop.place("11");
  await shop.reaches("11", "acknowledged");
  await service.kill();
  service.forget();
  network.to = await service.start();
  await shop.reaches("11", "lost");
  await shop.place("12");
  await shop.resulted("12");
  assert.notEqual(await shop.address(), dsn);
  ok("a session that is over is told so, and another one begins");

  await example(browser, origin);
  ok("the README's example gets its result");

  assert.deepEqual(faults, []);
  ok("the page threw nothing and loaded nothing from elsewhere");
  const phone = { width: 390, height: 844, deviceScaleFactor: 2, isMobile: true, hasTouch: true };
  await photograph(page, "order-service-phone", phone, "light");
  await photograph(page, "order-service-phone-dark", phone, "dark");
  await photograph(page, "order-service-narrow", { ...phone, width: 320, height: 568 }, "light");
  await photograph(page, "order-service-desktop", { width: 1280, height: 800 }, "light");
  await photograph(page, "order-service-desktop-dark", { width: 1280, height: 800 }, "dark");
}

const folder = mkdtempSync(join(tmpdir(), "callback-browser-"));
const service = new Service(folder);
const network = new Network();
let browser;
try {
  mkdirSync(screenshots, { recursive: true });
  const executablePath = process.env.CALLBACK_TEST_CHROMIUM ?? execFileSync("which", ["chromium"], { encoding: "utf8" }).trim();
  // Without its sandbox, since root has none; the page is ours. Without /dev/shm, which is small in containers.
  const args = ["--no-sandbox", "--disable-dev-shm-usage", "--no-proxy-server"];
  browser = await puppeteer.launch({ executablePath, args, userDataDir: join(folder, "profile") });
  await play(browser, service, network);
} catch (error) {
  console.log(`FAILED ${error.stack ?? error}`);
  process.exitCode = 1;
} finally {
  await browser?.close();
  await service.kill();
  network.server?.close();
  network.cut();
  rmSync(folder, { recursive: true, force: true });
}
