//! No log, answer, error, command output or file holds a secret, in whichever disguise (I6).

mod support;

use std::path::Path;

use hyper::Method;
use hyper::body::Bytes;
use serde_json::json;
use support::canary::{Canary, found_below, found_in};
use support::daemon::{Config, freshctl, grant_path};
use support::{Answer, Connection, Freshd, Reply, Rotating, ScriptedServer};

/// Special characters, so that each escaping shows; all of them allowed in a token (RFC 6749 §A.12).
const MARK: &str = "canary\"\\/+%:&=~ ";

/// Everything a test got to see that is not the token route's answer.
#[derive(Default)]
struct Seen(Vec<(String, String)>);

impl Seen {
    fn reply(&mut self, place: &str, reply: &Reply) {
        self.0.push((
            place.to_owned(),
            format!("{:?}\n{}", reply.headers, reply.text),
        ));
    }

    async fn freshctl(&mut self, freshd: &Freshd, args: &[&str], stdin: &str) {
        let said = freshd.freshctl(args, stdin).await;
        let place = format!("freshctl {}", args.join(" "));
        self.0
            .push((place, format!("{}\n{}", said.stdout, said.stderr)));
    }
}

/// A daemon that says all it can, and the secrets that it must not say.
async fn talkative(server: &ScriptedServer, secret: &str) -> Freshd {
    let (token, revocation) = (server.token_endpoint(), server.revocation_endpoint());
    let config = Config::new().daemon("log-level = \"trace\"").provider_at(
        "acme",
        &token,
        &revocation,
        "client-acme",
        secret,
        "rotation = \"strict\"",
    );
    Freshd::start(config).await
}

/// The key in both forms it could take: as its file spells it, and as the bytes that stand for.
fn key_canaries(file: &Path) -> Vec<Canary> {
    use base64::Engine;
    let bytes = std::fs::read(file).expect("the key is ours");
    let mut canaries = vec![Canary::new("the key file", bytes.trim_ascii().to_vec())];
    for line in String::from_utf8_lossy(&bytes).lines().map(str::trim) {
        let standard = base64::engine::general_purpose::STANDARD.decode(line);
        let url = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(line);
        let hex = (0..line.len() / 2)
            .map(|at| u8::from_str_radix(line.get(at * 2..at * 2 + 2)?, 16).ok())
            .collect::<Option<Vec<u8>>>();
        for decoded in [standard.ok(), url.ok(), hex].into_iter().flatten() {
            if decoded.len() == 32 {
                canaries.push(Canary::new("the key", decoded));
            }
        }
    }
    canaries
}

async fn assert_nothing_leaked(freshd: &mut Freshd, seen: &Seen, canaries: &[Canary]) {
    let mut canaries = canaries.to_vec();
    canaries.extend(key_canaries(&freshd.config.key_file()));
    let (key, secrets) = (
        freshd.config.key_file(),
        freshd.config.path().join("secrets"),
    );
    let but_for = [key.as_path(), secrets.as_path()];

    // With the write-ahead log and its index there, and once more after a stop has folded them in.
    let mut found = found_below(freshd.config.path(), &but_for, &canaries);
    freshd.stop().await;
    found.extend(found_below(freshd.config.path(), &but_for, &canaries));
    found.extend(found_in("the log", freshd.logs().as_bytes(), &canaries));
    for (place, text) in &seen.0 {
        found.extend(found_in(place, text.as_bytes(), &canaries));
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
    assert!(
        freshd.logs().lines().count() > 5,
        "a silent daemon proves nothing"
    );
}

/// What an admin, an app and a curious neighbour can look at.
async fn look_everywhere(freshd: &Freshd, seen: &mut Seen) {
    let grant = grant_path("anna", "acme");
    for path in [
        grant.as_str(),
        "/v1/users/anna",
        "/healthz",
        "/v1/status",
        "/nowhere",
    ] {
        seen.reply(path, &freshd.get(path).await);
    }
    for path in [
        grant.as_str(),
        "/v1/users/anna",
        "/v1/status",
        "/v1/providers",
        "/v1/grants",
        "/v1/nowhere",
    ] {
        seen.reply(path, &freshd.admin(Method::GET, path).await);
    }
    for args in [
        &["status"][..],
        &["status", "--json"],
        &["grants"],
        &["grants", "--json"],
        &["show", "anna"],
        &["show", "anna", "--json"],
        &["providers"],
        &["providers", "--json"],
        &["check-config"],
    ] {
        seen.freshctl(freshd, args, "").await;
    }
}

#[tokio::test]
async fn a_grants_whole_life_leaves_no_secret_anywhere() {
    let rotating = Rotating::new(3600).with_prefix(MARK);
    let server = ScriptedServer::start(rotating.script()).await;
    let secret = format!("{MARK}client-secret");
    let mut freshd = talkative(&server, &secret).await;
    let mut seen = Seen::default();
    let anna = rotating.issue("anna");
    let mut canaries = vec![
        Canary::new("client secret", secret),
        Canary::new("first access token", anna.access_token.clone()),
        Canary::new("first refresh token", anna.refresh_token.clone()),
        // What all tokens begin with: it finds the ones not named here.
        Canary::new("a token's beginning", MARK),
    ];

    let grant = grant_path("anna", "acme");
    seen.reply(
        "import",
        &freshd.import("anna", "acme", &anna.import()).await,
    );
    seen.reply(
        "import again",
        &freshd.put(&grant, &rotating.issue("anna").import()).await,
    );
    let refresh = format!("{grant}/refresh");
    let second = freshd.post(&refresh, &json!({ "generation": 1 })).await;
    canaries.push(Canary::new("second access token", second.token()));
    let second_refresh = anna.refresh_token.replace("-0-0", "-0-1");
    assert_ne!(second_refresh, anna.refresh_token);
    canaries.push(Canary::new("second refresh token", second_refresh));
    look_everywhere(&freshd, &mut seen).await;

    seen.reply(
        "import of bert",
        &freshd
            .import("bert", "acme", &rotating.issue("bert").import())
            .await,
    );
    seen.reply("delete", &freshd.delete(&grant_path("bert", "acme")).await);
    server.nth_revocation(1).await;
    // The server refuses; the access token lives on and is the answer, as it should be (I4).
    rotating.revoke("anna");
    let still = freshd.post(&refresh, &json!({})).await;
    assert_eq!(still.token(), second.token());
    freshd
        .wait_for_state("anna", "acme", "needs-authorization")
        .await;
    look_everywhere(&freshd, &mut seen).await;

    assert_nothing_leaked(&mut freshd, &seen, &canaries).await;
}

#[tokio::test]
async fn a_server_that_echoes_what_it_was_sent_makes_nothing_leak() {
    let rotating = Rotating::new(3600).with_prefix(MARK);
    let mut turn = 0;
    let server = ScriptedServer::start(move |request| {
        turn += 1;
        let echo = request.echo();
        let error = json!({
            "error": "server_error", "error_description": echo, "error_uri": echo, "status": echo,
        });
        let one_line = request.body.clone();
        match turn % 6 {
            0 => Answer::json(
                400,
                &json!({ "error": echo, "code": request.refresh_token() }),
            ),
            1 => Answer::json(500, &error),
            2 => Answer::raw(
                200,
                "application/json",
                format!("{{\"access_token\": {echo}"),
            ),
            3 => Answer::raw(502, "text/html", format!("<pre>{echo}</pre>")),
            4 => Answer::raw(200, "application/json", echo).cut_after(20),
            _ => Answer::json(302, &error)
                .header("location", &format!("http://127.0.0.1:1/?{one_line}")),
        }
        .header("x-echo", &one_line)
        .header("www-authenticate", &format!("Basic realm=\"{one_line}\""))
        .header("retry-after", &one_line)
    })
    .await;
    let secret = format!("{MARK}client-secret");
    let mut freshd = talkative(&server, &secret).await;
    let mut seen = Seen::default();
    let mut canaries = vec![
        Canary::new("client secret", secret),
        Canary::new("a token's beginning", MARK),
    ];

    // A grant for each kind of answer: the first attempt of each comes at once.
    for number in 0..12 {
        let user = format!("user-{number}");
        let issued = rotating.issue(&user);
        canaries.push(Canary::new("access token", issued.access_token.clone()));
        canaries.push(Canary::new("refresh token", issued.refresh_token.clone()));
        seen.reply(
            "import",
            &freshd.import(&user, "acme", &issued.import_expired()).await,
        );
        seen.reply("token", &freshd.token_with(&user, "acme", "wait=1").await);
        seen.reply("state", &freshd.get(&grant_path(&user, "acme")).await);
    }
    server.nth_refresh(6).await;
    let reply = freshd.delete(&grant_path("user-0", "acme")).await;
    seen.reply("delete", &reply);
    server.nth_revocation(1).await;
    look_everywhere(&freshd, &mut seen).await;

    assert_nothing_leaked(&mut freshd, &seen, &canaries).await;
}

#[tokio::test]
async fn a_request_that_is_refused_is_not_quoted() {
    let server = ScriptedServer::start(|_| Answer::error(400, "invalid_grant")).await;
    let mut freshd = talkative(&server, "the client's own secret").await;
    let mut seen = Seen::default();
    let token = "canary-in-a-bad-import";
    let bodies = [
        format!("{{\"refresh_token\": \"{token}\""),
        format!("{{\"refresh_token\": {{\"value\": \"{token}\"}}}}"),
        format!("[\"{token}\"]"),
        format!("\"{token}\""),
        format!("refresh_token={token}"),
        format!("{{\"refresh_token\": \"r-{token}\", \"expires_at\": \"{token}\"}}"),
        format!("{{\"refresh_token\": \"r-{token}\", \"expires_in\": \"{token}\"}}"),
        format!("{{\"refresh_token\": \"r-{token}\", \"scope\": {{\"{token}\": 1}}}}"),
        format!("{{\"refresh_token\": \"{token}\\u0000\"}}"),
    ];
    for body in &bodies {
        let mut connection = Connection::open(&freshd.config.socket()).await;
        let path = grant_path("anna", "acme");
        let sent = connection
            .try_send(Method::PUT, &path, Some(Bytes::from(body.clone())))
            .await;
        seen.reply("a bad import", &sent.unwrap());
        seen.freshctl(&freshd, &["import", "bert", "acme"], body)
            .await;
    }
    let refresh = format!("{}/refresh", grant_path("anna", "acme"));
    seen.reply(
        "a bad refresh",
        &freshd.post(&refresh, &json!({ "generation": token })).await,
    );
    seen.reply(
        "a bad refresh",
        &freshd.post(&refresh, &json!({ token: 1 })).await,
    );

    let canaries = [Canary::new("a token in a bad request", token)];
    assert_nothing_leaked(&mut freshd, &seen, &canaries).await;
}

#[tokio::test]
async fn a_bad_configuration_is_refused_without_quoting_the_secret_in_it() {
    let secret = "canary-client-secret";
    let sections = [
        format!("client-secret = \"{secret}\""),
        format!("client-secret = \"{secret}"),
        format!("client-secret = {{ value = \"{secret}\" }}"),
        format!("client-secret = {{ file = \"{secret}\" }}"),
        format!("client-secret = {{ credential = \"{secret}\", file = \"{secret}\" }}"),
        format!("client-secret = [\"{secret}\"]"),
        format!("client-secret = {secret}"),
        format!("client_secret = \"{secret}\""),
        format!("secret = \"{secret}\""),
        format!("client-secret = {{ file = \"/nowhere\" }}\nrefresh-token = \"{secret}\""),
    ];
    for section in sections {
        let mut config = Config::new();
        let rest = "client-id = \"id\"\ntoken-endpoint = \"http://127.0.0.1:1/token\"";
        config
            .providers
            .insert("acme".into(), format!("{rest}\n{section}"));
        config.write();
        let file = config.file();
        let said = freshctl(&["check-config", "--config", file.to_str().unwrap()], "").await;
        assert_ne!(said.code, Some(0), "{section} was taken: {}", said.stdout);
        assert!(
            said.stderr.contains("freshd.toml"),
            "it names the file: {}",
            said.stderr
        );
        let canaries = [Canary::new("client secret", secret)];
        let mut found = found_in("freshctl's stdout", said.stdout.as_bytes(), &canaries);
        found.extend(found_in(
            "freshctl's stderr",
            said.stderr.as_bytes(),
            &canaries,
        ));
        assert!(
            found.is_empty(),
            "{section}\n{}\n{}",
            found.join("\n"),
            said.stderr
        );
    }
}

#[tokio::test]
async fn a_reload_refused_for_a_pasted_secret_quotes_it_nowhere() {
    let server = ScriptedServer::start(|_| Answer::error(400, "invalid_grant")).await;
    let mut freshd = talkative(&server, "the client's own secret").await;
    let good = freshd.config.providers["acme"].clone();
    let secret = "canary-client-secret";
    let mut seen = Seen::default();
    for line in [
        format!("scret = \"{secret}\""),
        format!("margin = \"{secret}"),
    ] {
        freshd
            .config
            .providers
            .insert("acme".into(), format!("{good}\n{line}"));
        freshd
            .reload()
            .await
            .expect_err("it is no good configuration");
        seen.reply("status", &freshd.admin(Method::GET, "/v1/status").await);
    }
    freshd.config.providers.insert("acme".into(), good);
    freshd.config.write();
    let canaries = [Canary::new("client secret", secret)];
    assert_nothing_leaked(&mut freshd, &seen, &canaries).await;
}

/// A search that finds nothing because it looks for the wrong thing would pass everything above.
#[test]
fn the_search_finds_every_disguise() {
    use base64::Engine;
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
    let text = format!("{MARK}client-secret?>~");
    let secret = text.as_bytes();
    let canaries = [Canary::new("secret", secret)];
    let form: String = url::form_urlencoded::byte_serialize(secret).collect();
    let mut disguised = vec![
        text.clone(),
        json!({ "a": text }).to_string(),
        format!("{text:?}"),
        format!("{secret:?}"),
        secret.iter().map(|byte| format!("{byte:02x}")).collect(),
        percent_encoding::percent_encode(secret, percent_encoding::NON_ALPHANUMERIC).to_string(),
        format!("client_secret={form}&x=1"),
        format!("Basic {}", STANDARD.encode(format!("client-acme:{form}"))),
    ];
    for before in ["", "x", "xy", "xyz", "id:"] {
        let joined = format!("{before}{text} and more");
        disguised.push(STANDARD.encode(&joined));
        disguised.push(STANDARD_NO_PAD.encode(format!("{before}{text}")));
        disguised.push(URL_SAFE_NO_PAD.encode(&joined));
    }
    for haystack in &disguised {
        assert!(
            !found_in("here", haystack.as_bytes(), &canaries).is_empty(),
            "missed in {haystack}"
        );
    }
    assert!(found_in("here", b"nothing to see, move along, canary", &canaries).is_empty());
}
