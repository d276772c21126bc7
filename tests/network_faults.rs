//! Whatever breaks between the daemon and a token endpoint, the token that lives is served, nobody is asked to
//! authorize again, and the refresh succeeds when the fault has passed (I4, I5).

mod support;

use std::time::Duration;

use futures_util::future::join_all;
use support::faulty_server::{Authority, Ending, FaultyServer, Script, Transport, self_signed};
use support::{Config, Freshd, Issued, Rotating, eventually};

const GOOD: &str =
    r#"{"access_token":"new","refresh_token":"also new","token_type":"Bearer","expires_in":3600}"#;
const HTML: &str = "<!doctype html><title>Sign in to this network</title>";

struct Case {
    name: &'static str,
    transport: Transport,
    script: Script,
    /// What the grant's state says of it.
    failure: &'static str,
}

fn case(name: &'static str, failure: &'static str, transport: Transport, script: Script) -> Case {
    Case {
        name,
        transport,
        script,
        failure,
    }
}

fn good() -> Script {
    Script::http("200 OK\r\ncontent-type: application/json", GOOD)
}

fn plain(name: &'static str, failure: &'static str, script: Script) -> Case {
    case(name, failure, Transport::Plain, script)
}

fn http(name: &'static str, failure: &'static str, head: &str, body: &str) -> Case {
    plain(name, failure, Script::http(head, body))
}

fn below_http() -> Vec<Case> {
    let part = || {
        let whole = good().answer;
        Script::answering(&whole[..whole.len() - 20])
    };
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n";
    let huge = format!("{head}{}", "x".repeat(1 << 20));
    let nothing = || Script::answering("");
    vec![
        case("refused", "connect", Transport::Refused, good()),
        plain("silent", "unknown-connection-lost", nothing()),
        plain(
            "reset-before",
            "unknown-connection-lost",
            nothing().then(Ending::Reset),
        ),
        plain(
            "reset-within",
            "unknown-truncated",
            part().then(Ending::Reset),
        ),
        plain("truncated", "unknown-truncated", part()),
        plain(
            "slow-drip",
            "unknown-deadline",
            good().dripping(Duration::from_millis(100)),
        ),
        plain(
            "hang-after",
            "unknown-deadline",
            nothing().then(Ending::Held),
        ),
        plain("hang-within", "unknown-deadline", part().then(Ending::Held)),
        plain("huge", "unknown-body-too-large", Script::answering(huge)),
        plain(
            "not-http",
            "unknown-malformed",
            Script::answering("220 smtp ready\r\n"),
        ),
    ]
}

fn answers() -> Vec<Case> {
    let json = |status: &str| format!("{status}\r\ncontent-type: application/json");
    let redirect = |status: &str| format!("{status}\r\nlocation: http://127.0.0.1:1/elsewhere");
    vec![
        http("html", "html", "200 OK\r\ncontent-type: text/html", HTML),
        http(
            "form-encoded",
            "unknown-unreadable",
            "200 OK\r\ncontent-type: application/x-www-form-urlencoded",
            "access_token=new&token_type=bearer",
        ),
        http("empty", "unknown-unreadable", "200 OK", ""),
        http("no-content", "unknown-unreadable", "204 No Content", ""),
        http(
            "no-token",
            "http-200",
            &json("200 OK"),
            "{\"access_token\":\"\"}",
        ),
        http(
            "error-in-200",
            "server_error",
            &json("200 OK"),
            "{\"error\":\"server_error\"}",
        ),
        http(
            "moved-301",
            "http-301",
            &redirect("301 Moved Permanently"),
            "",
        ),
        http("moved-302", "http-302", &redirect("302 Found"), ""),
        http(
            "moved-307",
            "http-307",
            &redirect("307 Temporary Redirect"),
            "",
        ),
        http(
            "moved-308",
            "http-308",
            &redirect("308 Permanent Redirect"),
            "",
        ),
        http("empty-400", "http-400", "400 Bad Request", ""),
        http(
            "html-403",
            "http-403",
            "403 Forbidden\r\ncontent-type: text/html",
            HTML,
        ),
        http("missing-404", "http-404", "404 Not Found", "no such page"),
        http("timeout-408", "http-408", "408 Request Timeout", ""),
        http(
            "unexplained",
            "invalid_request",
            &json("400 Bad Request"),
            "{\"error\":\"invalid_request\"}",
        ),
        http(
            "many-429",
            "http-429",
            "429 Too Many Requests\r\nretry-after: 1",
            "",
        ),
        http("error-500", "http-500", "500 Internal Server Error", ""),
        http(
            "gateway-502",
            "unknown-http-502",
            "502 Bad Gateway\r\ncontent-type: text/html",
            HTML,
        ),
        http(
            "later-503",
            "http-503",
            "503 Service Unavailable\r\nretry-after: 1",
            "",
        ),
        // A 5xx is no verdict, whatever its body says.
        http(
            "confused-500",
            "invalid_grant",
            &json("500 Internal Server Error"),
            "{\"error\":\"invalid_grant\"}",
        ),
    ]
}

fn broken_tls(authority: &Authority) -> Vec<Case> {
    let tls = |certificate| Transport::Tls(certificate);
    vec![
        case("tls-hang", "connect-timeout", Transport::Hanging, good()),
        case(
            "tls-plain",
            "tls",
            Transport::Plain,
            Script::answering("HTTP/1.1 400 Plain\r\n\r\n").unread(),
        ),
        case(
            "tls-name",
            "tls",
            tls(authority.sign("elsewhere.example", 2100)),
            good(),
        ),
        case(
            "tls-expired",
            "tls",
            tls(authority.sign("127.0.0.1", 2020)),
            good(),
        ),
        case(
            "tls-self-signed",
            "tls",
            tls(self_signed("127.0.0.1")),
            good(),
        ),
    ]
}

/// A fault, its server, and the grant that suffers.
struct Suffering {
    case: Case,
    server: FaultyServer,
    issued: Issued,
}

/// Puts each case's server into the configuration, as a provider of its name.
async fn servers(cases: Vec<Case>, scheme: &str, config: Config) -> (Vec<Suffering>, Config) {
    let rotating = Rotating::new(3600);
    let (mut all, mut config) = (Vec::new(), config);
    for case in cases {
        let server = FaultyServer::start(case.transport.clone(), case.script.clone()).await;
        let endpoint = format!("{scheme}://127.0.0.1:{}/token", server.port());
        // Where each failure is followed by a retry; the rotation classes have tests of their own.
        let toml = "rotation = \"overlap\"\nmargin = \"30m\"\ndeadline = \"1s\"\nconnect-timeout = \"500ms\"";
        config = config.provider_at(case.name, &endpoint, &endpoint, "client", "secret", toml);
        all.push(Suffering {
            issued: rotating.issue(case.name),
            case,
            server,
        });
    }
    (all, config)
}

impl Suffering {
    /// Imports a grant that is due at once and lives for ten more minutes.
    async fn import(&self, freshd: &Freshd) {
        let body = self.issued.import_aged(3000, 600);
        freshd.import("anna", self.case.name, &body).await;
    }

    /// The first failures: told by name, paced, and no reader's matter.
    async fn fails_twice(&self, freshd: &Freshd) {
        let name = self.case.name;
        let grant = eventually(&format!("two failures of {name}"), || async {
            // I4, all the time.
            let reply = freshd.token_with("anna", name, "wait=0").await;
            assert_eq!(reply.token(), self.issued.access_token, "{name}");
            let grant = freshd.grant("anna", name).await;
            (grant["failures"].as_u64() >= Some(2)).then_some(grant)
        })
        .await;
        assert_eq!(grant["state"], "active", "{name}: {grant}");
        assert_eq!(grant["last_failure"], self.case.failure, "{name}");
        for pair in self.server.connections().windows(2) {
            let gap = pair[1].duration_since(pair[0]);
            assert!(
                gap >= Duration::from_millis(990),
                "{name}: again after {gap:?}"
            );
        }
    }

    /// The fault passes.
    fn mend(&mut self, transport: &Transport) {
        self.server.behave(transport.clone(), good());
    }

    async fn recovers(&self, freshd: &Freshd) {
        let name = self.case.name;
        let grant = freshd.wait_for_generation("anna", name, 2).await;
        assert_eq!(
            (&grant["state"], &grant["failures"]),
            (&"active".into(), &0.into()),
            "{name}"
        );
        assert_eq!(freshd.token("anna", name).await.token(), "new", "{name}");
    }
}

async fn outlasts(cases: Vec<Case>, scheme: &str, config: Config, mended: &Transport) {
    let (mut all, config) = servers(cases, scheme, config).await;
    let freshd = Freshd::start(config).await;
    join_all(all.iter().map(|one| one.import(&freshd))).await;
    join_all(all.iter().map(|one| one.fails_twice(&freshd))).await;
    all.iter_mut().for_each(|one| one.mend(mended));
    join_all(all.iter().map(|one| one.recovers(&freshd))).await;
}

#[tokio::test]
async fn connections_that_break_are_outlasted() {
    outlasts(below_http(), "http", Config::new(), &Transport::Plain).await;
}

#[tokio::test]
async fn answers_that_are_no_verdict_are_outlasted() {
    outlasts(answers(), "http", Config::new(), &Transport::Plain).await;
}

#[tokio::test]
async fn broken_tls_is_outlasted_and_never_trusted() {
    let authority = Authority::new();
    let mut config = Config::new();
    let bundle = config.path().join("ca.pem");
    std::fs::write(&bundle, authority.pem()).unwrap();
    config.outbound = format!("ca-bundle = {bundle:?}");
    let mended = Transport::Tls(authority.sign("127.0.0.1", 2100));
    outlasts(broken_tls(&authority), "https", config, &mended).await;
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_outlasted() {
    let there = FaultyServer::start(Transport::Plain, good()).await;
    let nowhere = "https://freshd-test.invalid/token";
    let toml = "rotation = \"strict\"\nmargin = \"30m\"";
    let config = Config::new().provider_at("acme", nowhere, nowhere, "client", "secret", toml);
    let mut freshd = Freshd::start(config).await;
    let anna = Rotating::new(3600).issue("anna");
    freshd
        .import("anna", "acme", &anna.import_aged(3000, 600))
        .await;

    let grant = eventually("two failures", || async {
        let grant = freshd.grant("anna", "acme").await;
        (grant["failures"].as_u64() >= Some(2)).then_some(grant)
    })
    .await;
    assert_eq!(
        (&grant["state"], &grant["last_failure"]),
        (&"active".into(), &"dns".into())
    );
    assert_eq!(
        freshd.token_with("anna", "acme", "wait=0").await.token(),
        anna.access_token
    );

    // It was never sent, so even a strict server's refresh token may be presented again.
    let endpoint = format!("http://127.0.0.1:{}/token", there.port());
    let config = std::mem::replace(&mut freshd.config, Config::new());
    freshd.config = config.provider_at("acme", &endpoint, &endpoint, "client", "secret", toml);
    freshd.reload().await.unwrap();
    freshd.wait_for_generation("anna", "acme", 2).await;
}

#[tokio::test]
async fn a_reset_behind_a_whole_answer_costs_nothing() {
    let script = good().then(Ending::Reset);
    let server = FaultyServer::start(Transport::Plain, script).await;
    let endpoint = format!("http://127.0.0.1:{}/token", server.port());
    let toml = "rotation = \"overlap\"\nmargin = \"30m\"";
    let config = Config::new().provider_at("acme", &endpoint, &endpoint, "client", "secret", toml);
    let freshd = Freshd::start(config).await;
    let anna = Rotating::new(3600).issue("anna");
    freshd
        .import("anna", "acme", &anna.import_aged(3000, 600))
        .await;
    let grant = freshd.wait_for_generation("anna", "acme", 2).await;
    assert_eq!(grant["state"], "active");
}
