/** The controller that the test runs against: the one of CVLAN_URL, or one of its own in a temporary folder. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { get } from "node:https";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";

const READY_MS = 60_000;
const STOP_MS = 15_000;

async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  return port;
}

/** Does the page answer, under a certificate of the controller's own CA? */
function answers(url, caFile) {
  return new Promise((resolve) => {
    if (!existsSync(caFile)) return resolve(false);
    get(url, { ca: readFileSync(caFile) }, (response) => {
      response.resume();
      resolve(response.statusCode === 200);
    }).on("error", () => resolve(false));
  });
}

/** A process of the controller; `stop` ends it orderly, `kill` as a power cut would. */
async function controllerSpawn(program, args, ready) {
  const child = spawn(program, args, { stdio: ["ignore", "pipe", "pipe"] });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.on("data", (chunk) => {
      output = (output + chunk).slice(-20_000);
    });
  }
  const running = () => child.exitCode === null && child.signalCode === null;
  const ended = once(child, "exit");
  const end = async (signal) => {
    child.kill(signal);
    const forced = setTimeout(() => child.kill("SIGKILL"), STOP_MS);
    if (running()) await ended;
    clearTimeout(forced);
  };
  for (const until = Date.now() + READY_MS; !(await ready()); await pause(100)) {
    if (running() && Date.now() < until) continue;
    await end("SIGTERM");
    throw new Error(`cvlan-api did not come up:\n${output}`);
  }
  return { stop: () => end("SIGTERM"), kill: () => end("SIGKILL") };
}

/** `kill` and `start` are there where the controller is the test's own. */
export async function controllerStart() {
  const { CVLAN_URL, CVLAN_USER = "admin", CVLAN_PASSWORD, CARGO_TARGET_DIR } = process.env;
  if (CVLAN_URL) {
    if (!CVLAN_PASSWORD) throw new Error("CVLAN_URL is set, so CVLAN_PASSWORD must be too");
    return { url: CVLAN_URL, user: CVLAN_USER, password: CVLAN_PASSWORD, stop: async () => {} };
  }
  const target = CARGO_TARGET_DIR ?? new URL("../../target", import.meta.url).pathname;
  const program = join(target, "debug/cvlan-api");
  if (!existsSync(program)) throw new Error(`${program} is not there: make build, or set CVLAN_URL and CVLAN_PASSWORD`);

  const data = mkdtempSync(join(tmpdir(), "cvlan-e2e-"));
  const [api, node, metrics] = await Promise.all([freePort(), freePort(), freePort()]);
  const url = `https://127.0.0.1:${api}/`;
  const args = [
    `--data-dir=${data}`,
    `--listen=127.0.0.1:${api}`,
    `--node-listen=127.0.0.1:${node}`,
    `--metrics-listen=127.0.0.1:${metrics}`,
    "--cluster-listen=127.0.0.1:0",
  ];
  const start = () => controllerSpawn(program, args, () => answers(url, join(data, "ca.pem")));
  const remove = () => rmSync(data, { recursive: true, force: true });

  let running = await start().catch((error) => {
    remove();
    throw error;
  });
  const { user, password } = JSON.parse(readFileSync(join(data, "keys/bootstrap"), "utf8"));
  return {
    url,
    user,
    password,
    kill: () => running.kill(),
    start: async () => {
      running = await start();
    },
    stop: async () => {
      await running.stop();
      remove();
    },
  };
}
