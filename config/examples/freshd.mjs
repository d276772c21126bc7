// Access tokens from freshd, for apps in Node 18 or newer; nothing but the standard library.

import http from "node:http";

const socketPath = process.env.FRESHD_SOCKET ?? "/run/freshd/shared/freshd.sock";

/** What freshd says instead of a token: problem.type, .detail, .reason, .retry_after. */
export class NoToken extends Error {
  constructor(problem) {
    super(problem.detail);
    this.problem = problem;
  }
}

async function ask(...what) {
  for (let tries = 500; ; tries--) {
    try {
      return await askOnce(...what);
    } catch (error) {
      // The socket's queue is full, as in a storm of others' connections: nothing was asked yet.
      if (error.code !== "EAGAIN" || tries === 0) throw error;
      await new Promise((resume) => setTimeout(resume, 10));
    }
  }
}

function askOnce(method, user, provider, verb, body) {
  const path = `/v1/users/${encodeURIComponent(user)}/grants/${encodeURIComponent(provider)}/${verb}`;
  return new Promise((resolve, reject) => {
    const request = http.request({ socketPath, path, method, timeout: 30_000 }, (answer) => {
      let text = "";
      answer.setEncoding("utf8");
      answer.on("data", (part) => (text += part));
      answer.on("error", reject);
      answer.on("end", () => {
        try {
          const value = JSON.parse(text);
          if (answer.statusCode === 200) resolve(value);
          else reject(new NoToken(value));
        } catch (error) {
          reject(error);
        }
      });
    });
    request.on("timeout", () => request.destroy(new Error("freshd did not answer in time")));
    request.on("error", reject);
    request.end(body && JSON.stringify(body));
  });
}

export const token = (user, provider) => ask("GET", user, provider, "token");

/** The API answered 401 to old: a newer token, or null if there is none. */
export async function refused(user, provider, old) {
  const fresh = await ask("POST", user, provider, "refresh", { generation: old.generation });
  return fresh.generation > old.generation ? fresh : null;
}
