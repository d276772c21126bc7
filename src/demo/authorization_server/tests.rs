//! The server's rules, each over real HTTP on loopback. The clock stands still until a test moves it.

use std::sync::atomic::{AtomicI64, Ordering};

use http_body_util::Full;
use hyper::Request;
use serde_json::Value;

use super::*;
use crate::demo::client::{self, Address};

const SECRET: &str = "a+b%c: d/é";

struct Bench {
    server: AuthorizationServer,
    events: UnboundedReceiver<Event>,
    hands: Arc<AtomicI64>,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Bench {
    async fn start() -> Bench {
        let hands = Arc::new(AtomicI64::new(1_790_000_000_000));
        let clients = [("app", SECRET), ("other", "other-secret")];
        let settings = Settings {
            port: 0,
            lifetime: Duration::from_secs(20),
            answer_after: Duration::ZERO,
            clients: clients
                .map(|(id, s)| (id.to_owned(), ClientSecret::new(s)))
                .into(),
        };
        let seen = Arc::clone(&hands);
        let clock: Clock = Arc::new(move || UnixTime::from_millis(seen.load(Ordering::SeqCst)));
        let (server, events) = AuthorizationServer::start(settings, clock).await.unwrap();
        Bench {
            server,
            events,
            hands,
        }
    }

    fn pass(&self, length: Duration) {
        self.hands
            .fetch_add(length.as_millis() as i64, Ordering::SeqCst);
    }

    async fn post(&self, path: &str, basic: Option<(&str, &str)>, form: &[(&str, &str)]) -> Answer {
        let encode =
            |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let body = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(form)
            .finish();
        let mut request = Request::post(path)
            .header("host", "localhost")
            .header("content-type", "application/x-www-form-urlencoded");
        if let Some((id, secret)) = basic {
            let pair = STANDARD.encode(format!("{}:{}", encode(id), encode(secret)));
            request = request.header("authorization", format!("Basic {pair}"));
        }
        let request = request.body(Full::new(Bytes::from(body))).unwrap();
        let to = Address::Loopback(self.server.address());
        let response = client::send(&to, request).await.unwrap();
        Answer {
            status: response.status.as_u16(),
            headers: response.headers,
            body: serde_json::from_slice(&response.body).unwrap_or(Value::Null),
        }
    }

    async fn refresh(&self, refresh_token: &str) -> Answer {
        let form = [
            ("grant_type", "refresh_token"),
            ("refresh_token", refresh_token),
        ];
        self.post("/token", Some(("app", SECRET)), &form).await
    }

    async fn active(&self, token: &str) -> bool {
        let answer = self
            .post(
                "/introspect",
                Some(("other", "other-secret")),
                &[("token", token)],
            )
            .await;
        assert_eq!(answer.status, 200);
        answer.body["active"].as_bool().unwrap()
    }

    fn next_event(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }
}

fn text(answer: &Answer, member: &str) -> String {
    answer.body[member]
        .as_str()
        .unwrap_or_else(|| panic!("no {member}"))
        .to_owned()
}

#[tokio::test]
async fn a_refresh_gives_a_new_access_token_and_a_new_refresh_token() {
    let mut bench = Bench::start().await;
    let first = bench.server.grant("ann", "app", "read");
    bench.pass(Duration::from_secs(15));
    let answer = bench.refresh(first.refresh_token.expose()).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["cache-control"], "no-store");
    assert_eq!(answer.body["expires_in"], 20);
    assert_eq!(answer.body["token_type"], "Bearer");
    assert_eq!(answer.body["scope"], "read");
    assert_ne!(text(&answer, "access_token"), first.access_token.expose());
    assert_ne!(text(&answer, "refresh_token"), first.refresh_token.expose());
    assert!(bench.active(&text(&answer, "access_token")).await);
    assert!(
        bench.active(first.access_token.expose()).await,
        "the old one lives to its end"
    );
    let user = "ann".to_owned();
    assert_eq!(
        bench.next_event(),
        Some(Event::Refreshed {
            user,
            before_expiry_ms: 5_000
        })
    );
    let counted = Requests {
        all: 1,
        refreshes: 1,
        replays: 0,
    };
    assert_eq!(bench.server.requests("ann"), counted);
    assert_eq!(bench.server.all_requests(), counted);
}

#[tokio::test]
async fn a_replayed_refresh_token_revokes_its_family_and_no_other() {
    let mut bench = Bench::start().await;
    let first = bench.server.grant("ann", "app", "read");
    let bystander = bench.server.grant("bob", "app", "read");
    let second = bench.refresh(first.refresh_token.expose()).await;
    let replay = bench.refresh(first.refresh_token.expose()).await;
    assert_eq!(
        (replay.status, text(&replay, "error").as_str()),
        (400, "invalid_grant")
    );
    assert!(!bench.active(first.access_token.expose()).await);
    assert!(!bench.active(&text(&second, "access_token")).await);
    let newest = bench.refresh(&text(&second, "refresh_token")).await;
    assert_eq!(
        (newest.status, text(&newest, "error").as_str()),
        (400, "invalid_grant")
    );
    assert!(bench.active(bystander.access_token.expose()).await);
    assert_eq!(
        bench.refresh(bystander.refresh_token.expose()).await.status,
        200
    );
    assert_eq!(
        bench.server.requests("ann"),
        Requests {
            all: 3,
            refreshes: 1,
            replays: 1
        }
    );
    assert!(matches!(bench.next_event(), Some(Event::Refreshed { .. })));
    assert_eq!(
        bench.next_event(),
        Some(Event::Replayed { user: "ann".into() })
    );
    assert_eq!(
        bench.next_event(),
        Some(Event::Refused { user: "ann".into() })
    );
}

#[tokio::test]
async fn an_access_token_is_active_until_its_last_moment_and_not_after() {
    let bench = Bench::start().await;
    let first = bench.server.grant("ann", "app", "read");
    bench.pass(Duration::from_millis(19_999));
    assert!(bench.active(first.access_token.expose()).await);
    bench.pass(Duration::from_millis(1));
    assert!(!bench.active(first.access_token.expose()).await);
    assert!(!bench.active("never issued").await);
    assert!(
        !bench.active(first.refresh_token.expose()).await,
        "no access token"
    );
}

#[tokio::test]
async fn introspection_says_whose_token_it_is_and_until_when() {
    let bench = Bench::start().await;
    let first = bench.server.grant("ann", "app", "read write");
    let form = [("token", first.access_token.expose())];
    let answer = bench
        .post("/introspect", Some(("other", "other-secret")), &form)
        .await;
    assert_eq!(answer.body["sub"], "ann");
    assert_eq!(answer.body["client_id"], "app");
    assert_eq!(answer.body["scope"], "read write");
    assert_eq!(answer.body["exp"], 1_790_000_020);
}

#[tokio::test]
async fn revoking_a_refresh_token_revokes_its_access_tokens() {
    let mut bench = Bench::start().await;
    let first = bench.server.grant("ann", "app", "read");
    let form = [
        ("token", first.refresh_token.expose()),
        ("token_type_hint", "refresh_token"),
    ];
    assert_eq!(
        bench
            .post("/revoke", Some(("app", SECRET)), &form)
            .await
            .status,
        200
    );
    assert!(!bench.active(first.access_token.expose()).await);
    assert_eq!(
        bench.refresh(first.refresh_token.expose()).await.status,
        400
    );
    assert_eq!(
        bench.next_event(),
        Some(Event::Revoked { user: "ann".into() })
    );
    assert!(bench.server.is_revoked("ann"));
}

#[tokio::test]
async fn revoking_an_access_token_leaves_the_grant() {
    let bench = Bench::start().await;
    let first = bench.server.grant("ann", "app", "read");
    let form = [("token", first.access_token.expose())];
    assert_eq!(
        bench
            .post("/revoke", Some(("app", SECRET)), &form)
            .await
            .status,
        200
    );
    assert!(!bench.active(first.access_token.expose()).await);
    assert_eq!(
        bench.refresh(first.refresh_token.expose()).await.status,
        200
    );
}

#[tokio::test]
async fn revocation_answers_200_for_unknown_tokens_and_spares_other_clients_tokens() {
    let mut bench = Bench::start().await;
    let first = bench.server.grant("ann", "app", "read");
    let unknown = bench
        .post("/revoke", Some(("app", SECRET)), &[("token", "x")])
        .await;
    assert_eq!(unknown.status, 200);
    let form = [("token", first.refresh_token.expose())];
    let foreign = bench
        .post("/revoke", Some(("other", "other-secret")), &form)
        .await;
    assert_eq!(foreign.status, 200);
    assert!(bench.active(first.access_token.expose()).await);
    assert_eq!(bench.next_event(), None);
}

#[tokio::test]
async fn the_owner_revokes_all_of_a_user() {
    let mut bench = Bench::start().await;
    let first = bench.server.grant("cleo", "app", "read");
    bench.server.grant("cleo", "app", "read");
    assert!(!bench.server.is_revoked("cleo"));
    assert_eq!(bench.server.revoke_user("cleo"), 2);
    assert_eq!(bench.server.revoke_user("cleo"), 0);
    assert!(bench.server.is_revoked("cleo"));
    assert!(!bench.server.is_revoked("nobody"));
    assert!(!bench.active(first.access_token.expose()).await);
    assert_eq!(
        bench.next_event(),
        Some(Event::Revoked {
            user: "cleo".into()
        })
    );
    assert_eq!(bench.next_event(), None);
}

#[tokio::test]
async fn a_client_authenticates_by_basic_or_by_body_but_not_by_both() {
    let bench = Bench::start().await;
    let first = bench.server.grant("ann", "app", "read");
    let token = ("refresh_token", first.refresh_token.expose());
    let kind = ("grant_type", "refresh_token");
    let credentials = [("client_id", "app"), ("client_secret", SECRET)];

    let both = [kind, token, credentials[0], credentials[1]];
    let answer = bench.post("/token", Some(("app", SECRET)), &both).await;
    assert_eq!(
        (answer.status, text(&answer, "error").as_str()),
        (400, "invalid_request")
    );

    let by_body = bench.post("/token", None, &both).await;
    assert_eq!(by_body.status, 200);
    let next = text(&by_body, "refresh_token");
    assert_eq!(
        bench.refresh(&next).await.status,
        200,
        "by basic, its secret form-encoded"
    );
}

#[tokio::test]
async fn a_bad_client_is_refused_and_costs_the_grant_nothing() {
    let bench = Bench::start().await;
    let first = bench.server.grant("ann", "app", "read");
    let token = ("refresh_token", first.refresh_token.expose());
    let form = [("grant_type", "refresh_token"), token];
    for basic in [("app", "wrong"), ("nobody", SECRET), ("app", "")] {
        let answer = bench.post("/token", Some(basic), &form).await;
        assert_eq!(
            (answer.status, text(&answer, "error").as_str()),
            (401, "invalid_client")
        );
        assert_eq!(
            answer.headers["www-authenticate"],
            "Basic realm=\"freshd demo\""
        );
    }
    let in_body = [
        form[0],
        form[1],
        ("client_id", "app"),
        ("client_secret", "wrong"),
    ];
    for form in [&in_body[..], &in_body[..3]] {
        let answer = bench.post("/token", None, form).await;
        assert_eq!(
            (answer.status, text(&answer, "error").as_str()),
            (401, "invalid_client")
        );
        assert!(!answer.headers.contains_key("www-authenticate"));
    }
    for path in ["/revoke", "/introspect"] {
        let answer = bench.post(path, Some(("app", "wrong")), &[token]).await;
        assert_eq!(answer.status, 401, "{path}");
    }
    assert_eq!(bench.server.requests("ann"), Requests::default());
    assert_eq!(
        bench.refresh(first.refresh_token.expose()).await.status,
        200
    );
}

#[tokio::test]
async fn a_refresh_token_works_for_its_own_client_only() {
    let bench = Bench::start().await;
    let first = bench.server.grant("ann", "app", "read");
    let form = [
        ("grant_type", "refresh_token"),
        ("refresh_token", first.refresh_token.expose()),
    ];
    let answer = bench
        .post("/token", Some(("other", "other-secret")), &form)
        .await;
    assert_eq!(
        (answer.status, text(&answer, "error").as_str()),
        (400, "invalid_grant")
    );
    assert_eq!(
        bench.refresh(first.refresh_token.expose()).await.status,
        200
    );
}

#[tokio::test]
async fn malformed_requests_are_told_apart() {
    let bench = Bench::start().await;
    let table: [(&[(&str, &str)], &str); 5] = [
        (&[], "invalid_request"),
        (&[("grant_type", "refresh_token")], "invalid_request"),
        (
            &[("grant_type", "refresh_token"), ("refresh_token", "")],
            "invalid_request",
        ),
        (
            &[("grant_type", "password"), ("grant_type", "password")],
            "invalid_request",
        ),
        (&[("grant_type", "password")], "unsupported_grant_type"),
    ];
    for (form, error) in table {
        let answer = bench.post("/token", Some(("app", SECRET)), form).await;
        assert_eq!(
            (answer.status, text(&answer, "error").as_str()),
            (400, error),
            "{form:?}"
        );
    }
    let unknown = bench.refresh("never issued").await;
    assert_eq!(
        (unknown.status, text(&unknown, "error").as_str()),
        (400, "invalid_grant")
    );
}

#[tokio::test]
async fn the_front_page_says_that_it_is_a_demo() {
    let bench = Bench::start().await;
    let request = Request::get("/")
        .header("host", "localhost")
        .body(Full::default())
        .unwrap();
    let to = Address::Loopback(bench.server.address());
    let response = client::send(&to, request).await.unwrap();
    let page = String::from_utf8(response.body.to_vec()).unwrap();
    assert!(
        page.contains("demo") && page.contains("no real accounts"),
        "{page}"
    );
}
