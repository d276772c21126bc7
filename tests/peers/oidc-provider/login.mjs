// Logs users in at server.mjs by the authorization code flow with PKCE (RFC 6749 §4.1, RFC 7636).
//   node login.mjs USER…   with the server's announcement (JSON) on standard input
// Prints one line of JSON per user: {"user": …, "tokens": <the token response>}.

import crypto from 'node:crypto';

const users = process.argv.slice(2);
let announcement = '';
for await (const chunk of process.stdin) announcement += chunk;
const server = JSON.parse(announcement);

// As much of a browser as a login needs: redirects by hand, and a jar for cookies.
class Browser {
  #cookies = new Map();

  async get(url) {
    const cookie = [...this.#cookies].map(([name, value]) => `${name}=${value}`).join('; ');
    const answer = await fetch(url, { redirect: 'manual', headers: { cookie } });
    for (const line of answer.headers.getSetCookie()) {
      const [, name, value] = /^([^=]+)=([^;]*)/.exec(line);
      if (value === '') this.#cookies.delete(name);
      else this.#cookies.set(name, value);
    }
    const location = answer.headers.get('location');
    if (!location) throw new Error(`${url}: ${answer.status} ${await answer.text()}`);
    return new URL(location, url);
  }
}

// RFC 6749 §2.3.1: both halves are form-encoded before they are joined.
const formEncoded = (text) => new URLSearchParams({ x: text }).toString().slice(2);
const basic = `Basic ${Buffer.from(
  `${formEncoded(server.client_id)}:${formEncoded(server.client_secret)}`,
).toString('base64')}`;

async function login(user) {
  const verifier = crypto.randomBytes(32).toString('base64url');
  const state = crypto.randomUUID();
  let url = new URL(`${server.issuer}/auth`);
  url.search = new URLSearchParams({
    client_id: server.client_id,
    response_type: 'code',
    redirect_uri: server.redirect_uri,
    scope: 'openid offline_access',
    prompt: 'consent',
    login_hint: user,
    state,
    code_challenge: crypto.createHash('sha256').update(verifier).digest('base64url'),
    code_challenge_method: 'S256',
  }).toString();

  const browser = new Browser();
  for (let hops = 0; !url.href.startsWith(server.redirect_uri); hops += 1) {
    if (hops > 10) throw new Error(`${user}: too many redirects`);
    url = await browser.get(url);
  }
  if (url.searchParams.get('state') !== state) throw new Error(`${user}: ${url.search}`);

  const answer = await fetch(server.token_endpoint, {
    method: 'POST',
    headers: { authorization: basic },
    body: new URLSearchParams({
      grant_type: 'authorization_code',
      code: url.searchParams.get('code'),
      redirect_uri: server.redirect_uri,
      code_verifier: verifier,
    }),
  });
  if (!answer.ok) throw new Error(`${user}: ${answer.status} ${await answer.text()}`);
  return { user, tokens: await answer.json() };
}

for (const answer of await Promise.all(users.map(login))) console.log(JSON.stringify(answer));
