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

function ask(method, user, provider, verb, body) {
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
