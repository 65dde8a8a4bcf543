/**
 * The page in a real browser, against a real controller: `npm run e2e`.
 *
 * It starts target/debug/cvlan-api in a temporary folder, or takes the one of CVLAN_URL, CVLAN_PASSWORD and CVLAN_USER
 * (admin). CHROMIUM is the browser (/usr/bin/chromium), CVLAN_SHOTS the folder for screenshots (test-results). CVLAN_DIST
 * is a folder to take the page from, under the controller's headers, where the program has an older one built in.
 * The controller's CA is not in the browser's store; here, and only here, its certificate is taken as it is.
 */
import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { extname, join } from "node:path";
import { after, before, test } from "node:test";
import { chromium } from "playwright-core";
import { controllerStart } from "./controller.mjs";

const { CHROMIUM = "/usr/bin/chromium", CVLAN_SHOTS = "test-results", CVLAN_DIST } = process.env;

/** How soon a change must be on the page. */
const LIVE_MS = 2_000;
/** What the page may load: nothing but itself. */
const POLICY = {
  "default-src": "'none'",
  "script-src": "'self'",
  "style-src": "'self'",
  "img-src": "'self' data:",
  "connect-src": "'self'",
  "font-src": "'self'",
  "base-uri": "'none'",
  "form-action": "'self'",
  "frame-ancestors": "'none'",
};

const run = Date.now().toString(36);
const slug = `e2e-${run}`;

let controller;
let origin;
let browser;
let page;
/** Everything that must not happen. */
const complaints = [];

const shot = (name) => page.screenshot({ path: join(CVLAN_SHOTS, `${name}.png`) });
const timeline = () => page.getByRole("region", { name: "Timeline" });
const leaf = () =>
  page
    .getByRole("listitem")
    .filter({ has: page.getByRole("link", { name: /^prod 10\.77\.0\.0/ }) })
    .last();
const said = (text) => timeline().getByRole("article").filter({ hasText: text }).first();

/** One step of the story. After a failure the rest would only say the same again. */
let failed = false;
function step(name, action) {
  test(name, async (context) => {
    if (failed) return context.skip("an earlier step failed");
    try {
      await action();
    } catch (error) {
      failed = true;
      await shot("failed").catch(() => undefined);
      throw error;
    }
  });
}

function watch(target) {
  target.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) complaints.push(`console: ${message.text()}`);
  });
  target.on("pageerror", (error) => complaints.push(`page: ${error.message}`));
  target.on("request", (request) => {
    const url = new URL(request.url());
    if (url.protocol !== "data:" && url.origin !== origin) complaints.push(`request to ${url.origin}`);
  });
}

const KINDS = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml" };

/** The page from CVLAN_DIST, under the headers that the controller sends with its own. */
async function pageFrom(context) {
  if (!CVLAN_DIST) return;
  const policy = (await context.request.get(controller.url)).headers()["content-security-policy"];
  await context.route(
    (url) => url.origin === origin && !url.pathname.startsWith("/api/"),
    (route) => {
      const name = new URL(route.request().url()).pathname.slice(1) || "index.html";
      const headers = { "content-type": `${KINDS[extname(name)]}; charset=utf-8`, "content-security-policy": policy };
      return route.fulfill({ body: readFileSync(join(CVLAN_DIST, name)), headers });
    },
  );
}

/** An API call with the page's own login, as another administrator elsewhere would make it. */
async function elsewhere(method, path, body) {
  const login = await page.request.post(`${origin}/api/v1/auth/login`, {
    data: { name: controller.user, password: controller.password },
  });
  const { accessToken } = await login.json();
  const response = await page.request.fetch(`${origin}/api/v1${path}`, {
    method,
    data: body,
    headers: { Authorization: `Bearer ${accessToken}` },
  });
  assert(response.ok(), `${method} ${path}: ${response.status()} ${await response.text()}`);
  return response.status() === 204 ? undefined : response.json();
}

before(async () => {
  mkdirSync(CVLAN_SHOTS, { recursive: true });
  controller = await controllerStart();
  origin = new URL(controller.url).origin;
  browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
  const context = await browser.newContext({
    ignoreHTTPSErrors: true,
    viewport: { width: 1440, height: 900 },
    colorScheme: "dark",
  });
  await pageFrom(context);
  page = await context.newPage();
  page.setDefaultTimeout(10_000);
  watch(page);
});

after(async () => {
  await browser?.close();
  await controller?.stop();
});

step("the page comes with a policy that lets nothing else in", async () => {
  const response = await page.goto(controller.url);
  assert.equal(response.status(), 200);
  const policy = response.headers()["content-security-policy"] ?? "";
  const directives = Object.fromEntries(
    policy
      .split(";")
      .map((directive) => directive.trim())
      .filter(Boolean)
      .map((directive) => {
        const [name, ...sources] = directive.split(/\s+/);
        return [name, sources.join(" ")];
      }),
  );
  assert.deepEqual(directives, POLICY);
  assert.equal(await page.locator("style, script:not([src]), [style]").count(), 0, "nothing inline");
});

step("a wrong password is refused in the controller's words", async () => {
  await page.getByLabel("Name").fill(controller.user);
  await page.getByLabel("Password").fill("not the password");
  await page.getByRole("button", { name: "Log in" }).click();
  await page.getByRole("alert").waitFor();
  // The browser itself reports a 401 on its console.
  assert(
    complaints.every((complaint) => complaint.includes("401")),
    complaints.join("\n"),
  );
  complaints.length = 0;
});

step("log in", async () => {
  await page.getByLabel("Password").fill(controller.password);
  await page.keyboard.press("Enter");
  await page.getByRole("navigation", { name: "Tenants and CVLANs" }).waitFor();
  await page.getByRole("banner").getByText("Live", { exact: true }).waitFor();
  await shot("overview");
});

step("a tenant created on the page is in the tree and in the timeline", async () => {
  await page.getByRole("button", { name: "New tenant" }).first().click();
  const dialog = page.getByRole("dialog", { name: "New tenant" });
  await dialog.getByLabel("Slug").fill(slug);
  await dialog.getByLabel("Name").fill("End to end");
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: slug, level: 2 }).waitFor();
  await page.getByRole("navigation").getByRole("link", { name: slug }).waitFor({ timeout: LIVE_MS });
  await said(`created tenant ${slug}`).waitFor({ timeout: LIVE_MS });
});

step("a CVLAN created on the page is in the tree and in the timeline", async () => {
  await page.getByRole("main").getByRole("button", { name: "New CVLAN" }).first().click();
  const dialog = page.getByRole("dialog", { name: `New CVLAN in ${slug}` });
  await dialog.getByLabel("Name").fill("prod");
  await dialog.getByLabel("IPv4 range").fill("10.77.0.0/24");
  await dialog.getByRole("button", { name: "Create CVLAN" }).click();
  await page.getByRole("heading", { name: `${slug} / prod` }).waitFor();
  await page
    .getByRole("navigation")
    .getByRole("link", { name: /prod.*10\.77\.0\.0\/24/ })
    .waitFor({ timeout: LIVE_MS });
  await said("created CVLAN prod, 10.77.0.0/24").waitFor({ timeout: LIVE_MS });
  await page.getByText("No machine is in prod yet").waitFor();
});

step("a refusal keeps the dialog open and shows the problem", async () => {
  await page.getByRole("button", { name: `New CVLAN in ${slug}` }).click({ force: true });
  const dialog = page.getByRole("dialog", { name: `New CVLAN in ${slug}` });
  await dialog.getByLabel("Name").fill("clash");
  await dialog.getByLabel("IPv4 range").fill("10.77.0.0/25");
  await dialog.getByRole("button", { name: "Create CVLAN" }).click();
  const code = await dialog.getByRole("alert").locator("code").textContent();
  assert.match(code, /^[a-z][a-z0-9_]+$/);
  await page.keyboard.press("Escape");
  assert(
    complaints.every((complaint) => complaint.includes("409")),
    complaints.join("\n"),
  );
  complaints.length = 0;
});

step("a token's text is shown once, with the machine's command", async () => {
  await page.getByRole("button", { name: "Add machine" }).click();
  await page.getByRole("dialog", { name: "Let machines in" }).getByLabel("Note").fill("end to end");
  await page.getByRole("button", { name: "Make token" }).click();
  const dialog = page.getByRole("dialog", { name: "A machine for prod" });
  await dialog.getByText(/cvlan-ctrl --token cvj_[A-Za-z0-9_-]{100,}/).waitFor();
  await shot("token");
  await dialog.getByRole("button", { name: "Done" }).click();
  await said("made a token for one machine in prod (end to end)").waitFor({ timeout: LIVE_MS });
  await page.getByRole("region", { name: "About prod" }).getByText("end to end").waitFor();
});

step("a node made elsewhere appears by itself", async () => {
  const wgPublicKey = Buffer.from(crypto.getRandomValues(new Uint8Array(32))).toString("base64");
  await elsewhere("POST", `/tenants/${slug}/nodes`, { cvlan: "prod", name: "printer", wgPublicKey });
  const row = page.getByRole("row").filter({ hasText: "printer" });
  await row.waitFor({ timeout: LIVE_MS });
  await said("added device printer to prod").waitFor({ timeout: LIVE_MS });
  await page.getByRole("img", { name: "prod: 1 nodes, 0 online" }).waitFor();
  await leaf().getByText("1", { exact: true }).waitFor({ timeout: LIVE_MS });
});

step("an event opens to its JSON", async () => {
  const line = said("added device printer to prod");
  await line.getByRole("button").first().click();
  const event = JSON.parse(await line.locator("pre").textContent());
  assert.equal(event.node.created.name, "printer");
  assert.equal(event.actor.name, controller.user);
  await line.getByRole("button").first().click();
});

step("the timeline is filtered by text", async () => {
  const lines = timeline().getByRole("article");
  const total = await lines.count();
  await page.keyboard.press("e");
  await page.keyboard.type("printer");
  await page.waitForFunction(
    (n) => document.querySelectorAll("section[aria-label=Timeline] article").length < n,
    total,
  );
  assert.equal(await lines.count(), 1);
  await page.keyboard.press("Escape");
});

step("a node is deleted by keyboard, after a question", async () => {
  await page.getByRole("row").filter({ hasText: "printer" }).getByRole("link").focus();
  await page.keyboard.press("Enter");
  await page.getByRole("region", { name: "Node printer" }).waitFor();
  await shot("node");
  await page.getByRole("row").filter({ hasText: "printer" }).getByRole("link").focus();
  await page.keyboard.press("Delete");
  const dialog = page.getByRole("dialog", { name: "Delete printer?" });
  await dialog.getByLabel("Reason").fill("retired: e2e – ä");
  await dialog.getByRole("button", { name: "Delete node" }).click();
  await page.getByText("No machine is in prod yet").waitFor({ timeout: LIVE_MS });
  await said("deleted node printer").waitFor({ timeout: LIVE_MS });
  await said("“retired: e2e – ä”").waitFor({ timeout: LIVE_MS });
  await leaf().getByText("0", { exact: true }).waitFor({ timeout: LIVE_MS });
});

/** A member's row in the table of the cluster's page. */
const memberRow = (name) =>
  page.getByRole("table", { name: "Members of the cluster" }).getByRole("row").filter({ hasText: name });

step("the cluster of one says what three would bring", async () => {
  await page.getByRole("navigation").getByRole("link", { name: "Cluster" }).click();
  await page.getByRole("heading", { name: "Cluster", level: 2 }).waitFor();
  const quorum = page.getByRole("region", { name: "Quorum" });
  await quorum.getByText("One member decides alone; none may be lost").waitFor();
  await quorum.getByText("founder leads in term").waitFor();
  await page.getByRole("img", { name: /^One member decides alone.* founder leads\.$/ }).waitFor();
  await memberRow("founder").getByText("leads", { exact: true }).waitFor();
  await page.getByRole("heading", { name: "What three members bring" }).waitFor();
  assert(await page.getByRole("button", { name: "Hand over leadership" }).isDisabled(), "nobody to hand over to");
  await shot("cluster");
});

step("a member is added: its join token is shown once, with the line that starts it", async () => {
  await page.getByRole("button", { name: "Add member" }).first().click();
  const dialog = page.getByRole("dialog", { name: "Add a member" });
  await dialog.getByLabel("Name").fill("m2");
  await dialog.getByText("1 day").click();
  await dialog.getByRole("button", { name: "Make join token" }).click();
  const started = page.getByRole("dialog", { name: "Start m2" });
  await started
    .getByText(/CVLAN_JOIN_TOKEN=cvm_[A-Za-z0-9_-]{60,} \\\s+cvlan-api [\s\S]*--advertise-cluster HOST:8445/)
    .waitFor();
  await started.getByLabel("Where the others reach m2").fill("m2.example");
  await started
    .getByText(/--advertise-node https:\/\/m2\.example:8444 \\\s+--advertise-cluster m2\.example:8445$/)
    .waitFor();
  await started.getByRole("status").getByText("m2 is expected").waitFor();
  await started.getByRole("button", { name: "Copy the command" }).waitFor();
  await shot("cluster-token");
  await started.getByRole("button", { name: "Done" }).click();
});

step("who is admitted and has not joined is listed, drawn and said aloud", async () => {
  await memberRow("m2").getByText("expected", { exact: true }).waitFor({ timeout: LIVE_MS });
  await memberRow("m2")
    .getByText(/^its token is good for 2[34]h$/)
    .waitFor();
  await page.getByRole("img", { name: /founder leads; m2 expected\.$/ }).waitFor();
  await page
    .getByRole("region", { name: "To look at" })
    .getByRole("listitem")
    .getByText("m2 is admitted and has not joined yet")
    .waitFor();
  await said("admitted member m2").waitFor({ timeout: LIVE_MS });
  await shot("cluster-admitted");
});

step("the last member is not removed: the controller's refusal is shown as it is", async () => {
  await memberRow("founder").getByRole("button", { name: "Remove founder" }).click();
  const dialog = page.getByRole("dialog", { name: "Remove member founder?" });
  const remove = dialog.getByRole("button", { name: "Remove member" });
  assert(await remove.isDisabled(), "not before its name is typed");
  await dialog.getByLabel("Type founder to confirm").fill("founder");
  await remove.click();
  assert.equal(await dialog.getByRole("alert").locator("code").textContent(), "last_member");
  await shot("cluster-refused");
  await page.keyboard.press("Escape");
  assert(
    complaints.every((complaint) => complaint.includes("409")),
    complaints.join("\n"),
  );
  complaints.length = 0;
});

step("a member is removed by keyboard, after its name was typed", async () => {
  await memberRow("m2").getByRole("button", { name: "Remove m2" }).focus();
  await page.keyboard.press("Enter");
  const dialog = page.getByRole("dialog", { name: "Remove member m2?" });
  await dialog.getByLabel("Type m2 to confirm").waitFor();
  await page.keyboard.type("m2");
  await page.keyboard.press("Enter");
  await dialog.waitFor({ state: "detached" });
  await memberRow("m2").waitFor({ state: "detached", timeout: LIVE_MS });
  await said("removed member m2").waitFor({ timeout: LIVE_MS });
});

step("the cluster's page in light and dark, and in a small window, does not scroll sideways", async () => {
  for (const [scheme, width, height] of [
    ["light", 1440, 900],
    ["light", 1024, 700],
    ["dark", 800, 700],
  ]) {
    await page.emulateMedia({ colorScheme: scheme });
    await page.setViewportSize({ width, height });
    await shot(`cluster-${scheme}-${width}`);
    const wide = await page.evaluate(() =>
      [document.documentElement, ...document.querySelectorAll("main, main > * > *")].some(
        (element) => element.scrollWidth > element.clientWidth,
      ),
    );
    assert(!wide, `no sideways scrolling at ${width}`);
  }
  await page.emulateMedia({ colorScheme: "dark" });
  await page.setViewportSize({ width: 1440, height: 900 });
  await page.getByRole("navigation").getByRole("link", { name: /^prod/ }).click();
  await page.getByRole("heading", { name: `${slug} / prod` }).waitFor();
});

step("the controller dies and comes back; the page says so, and goes on where it was", async () => {
  if (!controller.kill) return;
  const banner = page.getByRole("banner");
  await controller.kill();
  await banner.getByText("Reconnecting", { exact: true }).waitFor();
  await shot("reconnecting");
  await page.getByRole("heading", { name: `${slug} / prod` }).waitFor();
  await controller.start();
  await banner.getByText("Live", { exact: true }).waitFor({ timeout: 15_000 });
  // The browser itself reports requests that nobody answered.
  assert(
    complaints.every((complaint) => /ERR_(CONNECTION|INCOMPLETE|HTTP2|NETWORK|EMPTY)/.test(complaint)),
    complaints.join("\n"),
  );
  complaints.length = 0;
  await elsewhere("POST", `/tenants/${slug}/cvlans`, { name: "afterwards" });
  await page
    .getByRole("navigation")
    .getByRole("link", { name: /^afterwards/ })
    .waitFor({ timeout: LIVE_MS });
  await said("created CVLAN afterwards").waitFor({ timeout: LIVE_MS });
});

step("who may only look is offered nothing else", async () => {
  const password = "correct horse battery";
  await elsewhere("POST", `/tenants/${slug}/users`, { name: "eve", role: "readonly", password });
  const context = await browser.newContext({ ignoreHTTPSErrors: true, viewport: { width: 1440, height: 900 } });
  await pageFrom(context);
  const looking = await context.newPage();
  await looking.goto(controller.url);
  await looking.getByLabel("Name").fill("eve");
  await looking.getByLabel("Password").fill(password);
  await looking.getByLabel("Tenant").fill(slug);
  await looking.keyboard.press("Enter");
  await looking.getByRole("navigation").getByRole("link", { name: /^prod/ }).click();
  await looking.getByText("No machine is in prod yet").waitFor();
  await looking.getByText("Your role may not read the log").waitFor();
  await looking.getByRole("banner").getByText("Polling", { exact: true }).waitFor();
  assert.equal(await looking.getByRole("button", { name: /New|Add|Delete|Revoke|Make/ }).count(), 0);
  assert.equal(await looking.getByRole("link", { name: "Cluster" }).count(), 0);
  await looking.goto(`${controller.url}#/~cluster`);
  await looking.getByText("Your role may not see the cluster").waitFor();
  await looking.screenshot({ path: join(CVLAN_SHOTS, "readonly.png") });
  await context.close();
});

step("an auditor of the whole cluster sees its members and changes nothing", async () => {
  const [name, password] = [`aud-${run}`, "correct horse battery"];
  await elsewhere("POST", "/users", { name, role: "auditor", password });
  const context = await browser.newContext({ ignoreHTTPSErrors: true, viewport: { width: 1440, height: 900 } });
  await pageFrom(context);
  const looking = await context.newPage();
  await looking.goto(`${controller.url}#/~cluster`);
  await looking.getByLabel("Name").fill(name);
  await looking.getByLabel("Password").fill(password);
  await looking.keyboard.press("Enter");
  await looking.getByRole("table", { name: "Members of the cluster" }).getByText("founder", { exact: true }).waitFor();
  await looking.getByRole("heading", { name: "What three members bring" }).waitFor();
  assert.equal(await looking.getByRole("button", { name: /Add|Remove|Hand over|Let / }).count(), 0);
  await context.close();
});

step("a reload keeps the session and the place", async () => {
  await page.reload();
  await page.getByRole("heading", { name: `${slug} / prod` }).waitFor();
  await said("deleted node printer").waitFor();
});

step("light, and a small window", async () => {
  for (const [scheme, width, height] of [
    ["light", 1440, 900],
    ["light", 1024, 700],
    ["dark", 1024, 700],
  ]) {
    await page.emulateMedia({ colorScheme: scheme });
    await page.setViewportSize({ width, height });
    await shot(`cvlan-${scheme}-${width}`);
    const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
    assert(!wide, `no sideways scrolling at ${width}`);
  }
});

step("log out", async () => {
  await page.getByRole("button", { name: "Log out" }).click();
  await page.getByRole("heading", { name: "Log in to CVLAN" }).waitFor();
  assert.equal(await page.evaluate(() => sessionStorage.length), 0);
});

step("nothing was blocked, and nobody complained", () => {
  assert.deepEqual(complaints, []);
});
