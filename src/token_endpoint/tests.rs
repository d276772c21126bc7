//! Against a scripted server on loopback: what is sent byte by byte, and what each way of not answering means.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::rustls;
use url::Url;

use super::*;
use crate::profile::ClientAuth;
use crate::refresh::token::ClientSecret;

const NOW: UnixTime = UnixTime::from_secs(1_790_000_000);
const TOKEN: &str = "canary-refresh+/= &%ä";
const SECRET: &str = "canary-secret+%: é";
const GOOD: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 39\r\n\r\n\
    {\"access_token\":\"at\",\"expires_in\":\"60\"}";

/// What the server does once it has read a request and written its bytes.
#[derive(Clone, Copy)]
enum Then {
    Close,
    Reset,
    /// Waits until the client hangs up.
    Hold,
    /// Writes a byte every few milliseconds until the client hangs up.
    Drip,
}

/// A server for one connection.
struct Server {
    address: SocketAddr,
    /// The request, and the listener for a look at whether there was a second connection.
    served: JoinHandle<(String, TcpListener)>,
}

impl Server {
    async fn start(answer: impl Into<Vec<u8>>, then: Then) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = answer.into();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let request = read_request(&mut stream).await;
            // The client may have hung up already; what it makes of that is the test.
            let _ = stream.write_all(&answer).await;
            end(stream, then).await;
            (request, listener)
        });
        Server { address, served }
    }

    fn url(&self) -> Url {
        Url::parse(&format!("http://{}/token?tenant=1", self.address)).unwrap()
    }

    /// Returns the one request there was.
    async fn request(self) -> String {
        let (request, listener) = self.served.await.unwrap();
        untouched(listener);
        request
    }
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return text.into_owned();
            }
        }
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return String::from_utf8_lossy(&bytes).into_owned();
        }
    }
}

async fn end(mut stream: TcpStream, then: Then) {
    match then {
        Then::Close => {}
        Then::Reset => stream.set_zero_linger().unwrap(),
        Then::Hold => while stream.read_u8().await.is_ok() {},
        Then::Drip => {
            let mut tick = tokio::time::interval(Duration::from_millis(5));
            while stream.write_all(b" ").await.is_ok() {
                tick.tick().await;
            }
        }
    }
}

fn registration(token_endpoint: Url, client_auth: ClientAuth) -> Registration {
    Registration {
        provider: "p".into(),
        token_endpoint,
        revocation_endpoint: None,
        client_auth,
        client_id: "id: 1".into(),
        client_secret: (client_auth != ClientAuth::None).then(|| ClientSecret::new(SECRET)),
        dead_grant_codes: vec!["GONE".into()],
        connect_timeout: Duration::from_secs(10),
        deadline: Duration::from_secs(20),
    }
}

fn client(token_endpoint: Url) -> Client {
    Client::new(
        registration(token_endpoint, ClientAuth::Basic),
        &Outbound::default(),
    )
    .unwrap()
}

async fn refresh(client: &Client) -> Outcome {
    let outcome = client.refresh(&RefreshToken::new(TOKEN), NOW).await;
    let shown = format!("{client:?} {client:#?} {outcome:?}");
    assert!(!shown.contains("canary"), "{shown}");
    assert!(!format!("{outcome:?}").contains("127.0.0.1"), "{outcome:?}");
    outcome
}

/// Checks that nobody has connected. Asks the kernel: the runtime may not have noticed yet.
fn untouched(listener: TcpListener) {
    let error = listener
        .into_std()
        .unwrap()
        .accept()
        .expect_err("somebody connected");
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
}

/// Starts a server, presents the token once, and returns what came of it and what was sent.
async fn exchange(answer: impl Into<Vec<u8>>, then: Then) -> (Outcome, String) {
    let server = Server::start(answer, then).await;
    let outcome = refresh(&client(server.url())).await;
    (outcome, server.request().await)
}

const FORM: &str = "grant_type=refresh_token&refresh_token=canary-refresh%2B%2F%3D+%26%25%C3%A4";

#[tokio::test]
async fn each_client_authentication_sends_exactly_these_bytes() {
    let basic =
        base64::engine::general_purpose::STANDARD.encode("id%3A+1:canary-secret%2B%25%3A+%C3%A9");
    let cases = [
        (
            ClientAuth::Basic,
            format!("authorization: Basic {basic}\r\n"),
            FORM.to_owned(),
        ),
        (
            ClientAuth::Body,
            String::new(),
            format!("{FORM}&client_id=id%3A+1&client_secret=canary-secret%2B%25%3A+%C3%A9"),
        ),
        (
            ClientAuth::None,
            String::new(),
            format!("{FORM}&client_id=id%3A+1"),
        ),
    ];
    for (auth, header, body) in cases {
        let server = Server::start(GOOD, Then::Close).await;
        let address = server.address;
        let client = Client::new(registration(server.url(), auth), &Outbound::default()).unwrap();
        let Outcome::Tokens(tokens) = refresh(&client).await else {
            panic!("no tokens")
        };
        assert_eq!(tokens.access_token.expose(), "at");
        assert_eq!(tokens.expires_in, Some(Duration::from_secs(60)));
        let expected = format!(
            "POST /token?tenant=1 HTTP/1.1\r\n{header}content-type: application/x-www-form-urlencoded\r\n\
             user-agent: freshd/{}\r\naccept: application/json\r\nhost: {address}\r\n\
             content-length: {}\r\n\r\n{body}",
            env!("CARGO_PKG_VERSION"),
            body.len(),
        );
        assert_eq!(
            in_order(&server.request().await),
            in_order(&expected),
            "{auth:?}"
        );
    }
}

/// Sorts the header lines, whose order means nothing (RFC 9110 §5.3).
fn in_order(request: &str) -> (String, Vec<String>, String) {
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    let (first, headers) = head.split_once("\r\n").unwrap();
    let mut headers: Vec<String> = headers.split("\r\n").map(str::to_owned).collect();
    headers.sort();
    (first.into(), headers, body.into())
}

#[tokio::test]
async fn an_answer_without_its_end_is_of_unknown_fate_and_never_asked_for_twice() {
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n";
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{\"acc";
    for (answer, then, code) in [
        ("", Then::Close, "connection-lost"),
        ("", Then::Reset, "connection-lost"),
        ("HTTP/1.1 200", Then::Close, "connection-lost"),
        ("220 smtp.example ESMTP\r\n\r\n", Then::Hold, "malformed"),
        (head, Then::Reset, "truncated"),
        (&GOOD.replace(": 39", ": 40"), Then::Close, "truncated"),
        (&GOOD.replace(": 39", ": 40"), Then::Reset, "truncated"),
        (chunked, Then::Close, "truncated"),
    ] {
        let (outcome, request) = exchange(answer, then).await;
        assert_eq!(outcome, Outcome::Unknown(code), "{answer}");
        assert!(request.ends_with(FORM), "{request}");
    }
}

#[tokio::test]
async fn the_deadline_ends_a_server_that_hangs_or_drips() {
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let endless = "HTTP/1.1 200 OK\r\ncontent-length: 200000\r\n\r\n";
    for (answer, then) in [
        ("", Then::Hold),
        (head, Then::Hold),
        (endless, Then::Drip),
        ("HTTP/1.1 200 OK\r\nx:", Then::Drip),
    ] {
        let server = Server::start(answer, then).await;
        let mut registration = registration(server.url(), ClientAuth::Basic);
        registration.deadline = Duration::from_millis(300);
        let client = Client::new(registration, &Outbound::default()).unwrap();
        assert_eq!(
            refresh(&client).await,
            Outcome::Unknown("deadline"),
            "{answer}"
        );
        assert!(server.request().await.ends_with(FORM));
    }
}

#[tokio::test]
async fn a_refused_connection_is_not_sent() {
    // Bound, so that nobody else gets the port, but not listening.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}/", socket.local_addr().unwrap());
    assert_eq!(
        refresh(&client(Url::parse(&url).unwrap())).await,
        Outcome::NotSent("connect")
    );
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_not_sent() {
    // A label longer than 63 is refused by the resolver without asking anybody (RFC 1035 §2.3.4). Our own
    // client would not ask for such a name over https, nor for any name over http.
    let url = format!("http://{}.invalid/", "a".repeat(64));
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let error = http.get(url).send().await.unwrap_err();
    assert_eq!(failure::before_answer(&error), Outcome::NotSent("dns"));
}

#[tokio::test]
async fn no_redirect_is_followed() {
    for status in [301, 302, 303, 307, 308] {
        let canary = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let answer = format!(
            "HTTP/1.1 {status} Moved\r\nlocation: http://{}/\r\ncontent-length: 0\r\n\r\n",
            canary.local_addr().unwrap()
        );
        let (outcome, _) = exchange(answer, Then::Close).await;
        let refusal = Refusal { status, code: None };
        assert_eq!(
            outcome,
            Outcome::RefusedForNow {
                refusal,
                retry_after: None
            }
        );
        untouched(canary);
    }
}

#[tokio::test]
async fn a_body_over_the_cap_is_not_read_to_its_end() {
    let answer = |status: &str, length: usize| {
        let start = "{\"access_token\":\"at\",\"x\":\"";
        let body = format!("{start}{}\"}}", "x".repeat(length - start.len() - 2));
        format!("HTTP/1.1 {status}\r\nretry-after: 7\r\ncontent-length: {length}\r\n\r\n{body}")
    };
    let (outcome, _) = exchange(answer("200 OK", BODY_CAP), Then::Close).await;
    assert!(matches!(outcome, Outcome::Tokens(_)), "{outcome:?}");
    let (outcome, _) = exchange(answer("200 OK", BODY_CAP + 1), Then::Hold).await;
    assert_eq!(outcome, Outcome::Unknown("body-too-large"));
    let (outcome, _) = exchange(answer("503 Busy", BODY_CAP + 1), Then::Hold).await;
    let refusal = Refusal {
        status: 503,
        code: None,
    };
    let retry_after = Some(Duration::from_secs(7));
    assert_eq!(
        outcome,
        Outcome::RefusedForNow {
            refusal,
            retry_after
        }
    );
    // A body without a length, for ever.
    let endless = format!("HTTP/1.1 200 OK\r\n\r\n{}", " ".repeat(BODY_CAP));
    let (outcome, _) = exchange(endless, Then::Drip).await;
    assert_eq!(outcome, Outcome::Unknown("body-too-large"));
}

#[tokio::test]
async fn an_answer_is_classified_with_its_retry_after_and_the_profiles_codes() {
    let answer = "HTTP/1.1 429 Slow Down\r\nretry-after: 30\r\ncontent-length: 0\r\n\r\n";
    let (outcome, _) = exchange(answer, Then::Close).await;
    let refusal = Refusal {
        status: 429,
        code: None,
    };
    let retry_after = Some(Duration::from_secs(30));
    assert_eq!(
        outcome,
        Outcome::RefusedForNow {
            refusal,
            retry_after
        }
    );
    let answer = "HTTP/1.1 400 Bad\r\ncontent-length: 17\r\n\r\n{\"status\":\"GONE\"}";
    let (outcome, _) = exchange(answer, Then::Close).await;
    assert!(matches!(outcome, Outcome::RefusedForGood(_)), "{outcome:?}");
    // An informational answer before the real one is no answer (RFC 9110 §15.2).
    let (outcome, _) = exchange(format!("HTTP/1.1 103 Early\r\n\r\n{GOOD}"), Then::Close).await;
    assert!(matches!(outcome, Outcome::Tokens(_)), "{outcome:?}");
}

#[tokio::test]
async fn an_endpoint_that_is_not_secure_is_not_asked() {
    let canary = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = canary.local_addr().unwrap().port();
    let url = Url::parse(&format!("http://localhost:{port}/")).unwrap();
    assert_eq!(
        refresh(&client(url)).await,
        Outcome::NotSent("insecure-endpoint")
    );
    untouched(canary);
}

/// Runs one other test of this file in a process whose environment names a proxy.
#[tokio::test]
async fn proxies_in_the_environment_are_ignored() {
    let canary = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = format!("http://{}", canary.local_addr().unwrap());
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
    child.args([
        "--exact",
        "token_endpoint::tests::each_client_authentication_sends_exactly_these_bytes",
    ]);
    for name in [
        "HTTP_PROXY",
        "http_proxy",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
    ] {
        child.env(name, &proxy);
    }
    let output = child
        .env_remove("NO_PROXY")
        .env_remove("no_proxy")
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}"
    );
    untouched(canary);
}

/// Runs itself again in a process that logs everything, from the libraries too, to its standard output.
#[tokio::test]
async fn no_library_logs_a_secret_at_any_level() {
    const CHILD: &str = "FRESHD_TEST_LOGS_EVERYTHING";
    if std::env::var_os(CHILD).is_some() {
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_writer(std::io::stdout)
            .init();
        for auth in [ClientAuth::Basic, ClientAuth::Body] {
            let server = Server::start(GOOD.replace("\"at\"", "\"AT\""), Then::Close).await;
            let client =
                Client::new(registration(server.url(), auth), &Outbound::default()).unwrap();
            assert!(matches!(refresh(&client).await, Outcome::Tokens(_)));
            let (url, _, _served) = tls_server().await;
            let client = Client::new(registration(url, auth), &Outbound::default()).unwrap();
            assert_eq!(refresh(&client).await, Outcome::NotSent("tls"));
        }
        return;
    }
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
    let test = "token_endpoint::tests::no_library_logs_a_secret_at_any_level";
    child.args(["--exact", "--nocapture", test]).env(CHILD, "1");
    let output = child.output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("TRACE"), "{said}");
    // The secret's Basic form too, whose start does not depend on what follows.
    let basic = base64::engine::general_purpose::STANDARD.encode("id%3A+1:canary");
    for secret in [
        "canary",
        "Y2FuYXJ5",
        &basic[..basic.len() - 4],
        "access_token\":\"AT",
    ] {
        assert!(!said.contains(secret), "{secret} in {said}");
    }
}

#[tokio::test]
async fn a_configured_proxy_tunnels_https_and_sees_no_secret() {
    let refusal = "HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n";
    for (answer, then) in [
        (refusal, Then::Close),
        ("", Then::Close),
        ("HTTP/1.1 200 OK\r\n\r\n", Then::Close),
    ] {
        let proxy = Server::start(answer, then).await;
        let url = Url::parse(&format!("http://{}", proxy.address)).unwrap();
        let outbound = Outbound {
            proxy: Some(url),
            ca_bundle: None,
        };
        let endpoint = Url::parse("https://auth.invalid/token").unwrap();
        let client = Client::new(registration(endpoint, ClientAuth::Basic), &outbound).unwrap();
        let code = if answer.contains("200") {
            "tls"
        } else {
            "proxy"
        };
        assert_eq!(refresh(&client).await, Outcome::NotSent(code));
        let request = proxy.request().await;
        assert!(
            request.starts_with("CONNECT auth.invalid:443 HTTP/1.1\r\n"),
            "{request}"
        );
        assert!(!request.contains("uthorization"), "{request}");
    }
}

#[tokio::test]
async fn a_configured_proxy_is_not_asked_for_loopback_addresses() {
    let canary = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}", canary.local_addr().unwrap())).unwrap();
    let outbound = Outbound {
        proxy: Some(url),
        ca_bundle: None,
    };
    let server = Server::start(GOOD, Then::Close).await;
    let client = Client::new(registration(server.url(), ClientAuth::Body), &outbound).unwrap();
    assert!(matches!(refresh(&client).await, Outcome::Tokens(_)));
    untouched(canary);
}

#[tokio::test]
async fn tls_to_a_server_without_it_is_not_sent() {
    for answer in ["HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", ""] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/", listener.local_addr().unwrap());
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut hello = [0; 4096];
            let read = stream.read(&mut hello).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            hello[..read].to_vec()
        });
        assert_eq!(
            refresh(&client(Url::parse(&url).unwrap())).await,
            Outcome::NotSent("tls")
        );
        let hello = served.await.unwrap();
        assert!(!String::from_utf8_lossy(&hello).contains("canary"));
    }
}

#[tokio::test]
async fn a_handshake_that_hangs_ends_at_the_connect_timeout_and_is_not_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("https://{}/", listener.local_addr().unwrap())).unwrap();
    let held =
        tokio::spawn(async move { end(listener.accept().await.unwrap().0, Then::Hold).await });
    let mut registration = registration(url, ClientAuth::Basic);
    registration.connect_timeout = Duration::from_millis(200);
    let client = Client::new(registration, &Outbound::default()).unwrap();
    assert_eq!(refresh(&client).await, Outcome::NotSent("connect-timeout"));
    held.await.unwrap();
}

/// Serves one TLS connection with a certificate nobody signed; the request is `None` if the handshake failed.
async fn tls_server() -> (Url, String, JoinHandle<Option<String>>) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let pem = made.cert.pem();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("https://{}/", listener.local_addr().unwrap())).unwrap();
    let served = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let mut stream = acceptor.accept(stream).await.ok()?;
        let request = read_request(&mut stream).await;
        answer_and_close(&mut stream).await;
        Some(request)
    });
    (url, pem, served)
}

async fn answer_and_close(stream: &mut (impl AsyncWrite + Unpin)) {
    let _ = stream.write_all(GOOD.as_bytes()).await;
    let _ = stream.shutdown().await;
}

#[tokio::test]
async fn a_certificate_that_nobody_signed_is_trusted_through_the_ca_bundle_only() {
    let (url, _, served) = tls_server().await;
    assert_eq!(refresh(&client(url)).await, Outcome::NotSent("tls"));
    assert_eq!(
        served.await.unwrap().filter(|request| !request.is_empty()),
        None
    );

    let (url, pem, served) = tls_server().await;
    let outbound = Outbound {
        proxy: None,
        ca_bundle: Some(pem.into_bytes()),
    };
    let client = Client::new(registration(url, ClientAuth::Basic), &outbound).unwrap();
    assert!(matches!(refresh(&client).await, Outcome::Tokens(_)));
    assert!(served.await.unwrap().unwrap().ends_with(FORM));
}

#[test]
fn a_ca_bundle_without_a_certificate_is_refused() {
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for bundle in ["", "nonsense", broken] {
        let outbound = Outbound {
            proxy: None,
            ca_bundle: Some(bundle.into()),
        };
        let url = Url::parse("https://auth.invalid/").unwrap();
        let client = Client::new(registration(url, ClientAuth::Basic), &outbound);
        assert_eq!(client.err(), Some(ClientError::CaBundle), "{bundle}");
    }
}

async fn revoke(answer: impl Into<Vec<u8>>, then: Then) -> (Revocation, String) {
    let server = Server::start(answer, then).await;
    let mut registration = registration(server.url(), ClientAuth::Body);
    registration.revocation_endpoint = Some(server.url());
    registration.deadline = Duration::from_millis(500);
    let client = Client::new(registration, &Outbound::default()).unwrap();
    let ended = client.revoke(TOKEN, TokenKind::Refresh).await;
    (ended, server.request().await)
}

#[tokio::test]
async fn a_revocation_is_given_up_only_where_trying_again_cannot_help() {
    for (status, body, ended) in [
        (200, "", Revocation::Done),
        (204, "", Revocation::Done),
        (400, "{\"error\":\"invalid_token\"}", Revocation::Done),
        (
            400,
            "{\"error\":\"unsupported_token_type\"}",
            Revocation::Refused,
        ),
        (400, "{\"error\":\"invalid_request\"}", Revocation::Refused),
        (400, "{\"error\":\"invalid_client\"}", Revocation::Later),
        (400, "<html>", Revocation::Later),
        (401, "{\"error\":\"invalid_token\"}", Revocation::Later),
        (404, "", Revocation::Later),
        (302, "", Revocation::Later),
        (429, "", Revocation::Later),
        (500, "{\"error\":\"invalid_request\"}", Revocation::Later),
        (503, "", Revocation::Later),
    ] {
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        let (got, request) = revoke(answer, Then::Close).await;
        assert_eq!(got, ended, "{status} {body}");
        let form = "token=canary-refresh%2B%2F%3D+%26%25%C3%A4&token_type_hint=refresh_token\
            &client_id=id%3A+1&client_secret=canary-secret%2B%25%3A+%C3%A9";
        assert!(request.ends_with(&format!("\r\n\r\n{form}")), "{request}");
    }
    assert_eq!(revoke("", Then::Close).await.0, Revocation::Later);
    assert_eq!(revoke("", Then::Hold).await.0, Revocation::Later);
}

#[tokio::test]
async fn without_a_revocation_endpoint_nothing_is_sent() {
    let canary = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}/", canary.local_addr().unwrap())).unwrap();
    assert_eq!(
        client(url).revoke(TOKEN, TokenKind::Access).await,
        Revocation::Refused
    );
    untouched(canary);
}
