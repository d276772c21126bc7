//! No log, answer, error, command output or file holds a secret, in whichever disguise (I6).

mod support;

use std::path::Path;

use hyper::Method;
use hyper::body::Bytes;
use serde_json::json;
use support::canary::{Canary, found_below, found_in};
use support::daemon::{Config, freshctl, grant_path};
use support::{Answer, Connection, Freshd, Listener, Reply, Rotating, ScriptedServer, eventually};

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
        &["events"],
        &["events", "--json"],
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

    // One that listens all the while, and may see everything.
    let mut listener = Listener::now(&freshd.config.admin_socket()).await;
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
    while listener.next().await.expect("it goes on").event != "needs-authorization" {}
    for event in ["connected", "refreshed", "revoked", "needs-authorization"] {
        let line = format!("event: {event}\n");
        assert!(listener.raw.contains(&line), "{event}: {}", listener.raw);
    }
    seen.0.push(("the events".to_owned(), listener.raw.clone()));

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

// Panics.

/// Everything a panic of `work` prints, through the hook that prints it and the one who joins it.
fn panic_of(work: impl FnOnce() + Send + 'static) -> String {
    use std::sync::{Arc, Mutex};
    let printed = Arc::new(Mutex::new(String::new()));
    let printing = printed.clone();
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let backtrace = std::backtrace::Backtrace::force_capture();
        printing
            .lock()
            .unwrap()
            .push_str(&format!("{info}\n{info:?}\n{backtrace}"));
    }));
    let joined = std::thread::spawn(work).join();
    std::panic::set_hook(before);
    let payload = joined.expect_err("it panics");
    let text = payload.downcast_ref::<String>().expect("it has a message");
    format!("{}\n{text}", printed.lock().unwrap())
}

/// Every public type that holds a secret, holding one, as `{:?}` and `{:#?}` show it.
fn everything_shown(canary: &str) -> Vec<(&'static str, String)> {
    use freshd::profile::{ClientAuth, Registration};
    use freshd::refresh::grant::{GrantId, Standing};
    use freshd::refresh::time::UnixTime;
    use freshd::refresh::token::{AccessToken, ClientSecret, RefreshToken, TokenKind, TokenSet};
    use freshd::refresh::token_response::{Answer, classify};
    use freshd::store::{RevocationId, RevocationJob, TokenCommit};
    use std::time::Duration;

    let (access, refresh) = (AccessToken::new(canary), RefreshToken::new(canary));
    let secret = ClientSecret::new(canary);
    let set = TokenSet {
        access_token: Some(access.clone()),
        token_type: "Bearer".into(),
        expires_at: None,
        obtained_at: UnixTime::EPOCH,
        refresh_token: Some(refresh.clone()),
        refresh_token_end: None,
        scope: None,
    };
    let body =
        json!({ "access_token": canary, "refresh_token": canary, "expires_in": 60 }).to_string();
    let answer = Answer {
        status: 200,
        retry_after: None,
        body: body.as_bytes(),
    };
    let refused_body = json!({ "error": canary, "error_description": canary }).to_string();
    let refused = Answer {
        status: 400,
        retry_after: Some(canary),
        body: refused_body.as_bytes(),
    };
    let registration = Registration {
        provider: "acme".into(),
        token_endpoint: "http://127.0.0.1:1/token".parse().unwrap(),
        revocation_endpoint: None,
        client_auth: ClientAuth::Basic,
        client_id: "client".into(),
        client_secret: Some(secret.clone()),
        dead_grant_codes: Vec::new(),
        connect_timeout: Duration::from_secs(1),
        deadline: Duration::from_secs(2),
    };
    let client =
        freshd::token_endpoint::Client::new(registration.clone(), &Default::default()).unwrap();
    let job = RevocationJob {
        id: RevocationId(1),
        provider: "acme".into(),
        kind: TokenKind::Refresh,
        token: canary.to_owned().into(),
        tries: 0,
        created_at: UnixTime::EPOCH,
    };
    let commit = TokenCommit {
        id: GrantId(1),
        provider: "acme".into(),
        presented_generation: 1,
        tokens: std::sync::Arc::new(set.clone()),
        due_at: None,
        standing: Standing::Active,
        unused_refreshes: 0,
        at: UnixTime::EPOCH,
    };
    let now = UnixTime::EPOCH;
    vec![
        ("AccessToken", format!("{access:?}{access:#?}")),
        ("RefreshToken", format!("{refresh:?}{refresh:#?}")),
        ("ClientSecret", format!("{secret:?}{secret:#?}")),
        ("TokenSet", format!("{set:?}{set:#?}")),
        (
            "Outcome of tokens",
            format!("{0:?}{0:#?}", classify(&answer, &[], now)),
        ),
        (
            "Outcome of a refusal",
            format!("{0:?}{0:#?}", classify(&refused, &[], now)),
        ),
        ("Registration", format!("{registration:?}{registration:#?}")),
        ("Client", format!("{client:?}{client:#?}")),
        ("RevocationJob", format!("{job:?}{job:#?}")),
        ("TokenCommit", format!("{commit:?}{commit:#?}")),
    ]
}

#[test]
fn no_debug_print_of_anything_that_holds_a_secret_shows_it() {
    let secret = format!("{MARK}in-debug");
    let canaries = [Canary::new("a secret", secret.as_bytes())];
    for (name, shown) in everything_shown(&secret) {
        let found = found_in(name, shown.as_bytes(), &canaries);
        assert!(found.is_empty(), "{}\n{shown}", found.join("\n"));
        assert!(shown.len() > 10, "{name} shows nothing at all");
    }
}

#[test]
fn a_key_shows_nothing_of_itself() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    let kek = freshd::store::Kek::generate();
    kek.write_new(&file).unwrap();
    let shown = format!("{kek:?}{kek:#?}");
    let found = found_in("Kek", shown.as_bytes(), &key_canaries(&file));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// The ways in which a panic's message gets hold of a value, each with a value that holds a secret.
#[test]
fn a_panic_with_a_secret_in_hand_prints_none() {
    use freshd::refresh::token::{AccessToken, RefreshToken};
    let secret = format!("{MARK}in-a-panic");
    let canaries = [Canary::new("a secret", secret.as_bytes())];
    let (one, two, three) = (secret.clone(), secret.clone(), secret.clone());
    let panics = [
        panic_of(move || {
            let refused: Result<(), _> = std::hint::black_box(Err(RefreshToken::new(one)));
            refused.expect("a refresh token in an error")
        }),
        panic_of(move || assert_eq!(AccessToken::new(two), AccessToken::new("another"))),
        panic_of(move || {
            let held = RefreshToken::new(three);
            let none: Option<&RefreshToken> = None;
            panic!("held {held:?}, wanted {none:?}");
        }),
    ];
    for printed in &panics {
        let found = found_in("a panic", printed.as_bytes(), &canaries);
        assert!(found.is_empty(), "{}\n{printed}", found.join("\n"));
        assert!(
            printed.contains("redacted"),
            "the value was printed: {printed}"
        );
    }
}

// Cores.

#[tokio::test]
async fn a_crash_leaves_no_core_even_where_cores_are_wanted() {
    use std::os::unix::process::ExitStatusExt;
    for signal in [
        rustix::process::Signal::SEGV,
        rustix::process::Signal::ABORT,
    ] {
        let rotating = Rotating::new(3600);
        let server = ScriptedServer::start(rotating.script()).await;
        let config = Config::new().provider("acme", &server, "");
        let key = config.key_file();
        let made = freshctl(&["key", "generate", key.to_str().unwrap()], "").await;
        assert_eq!(made.code, Some(0), "{}", made.stderr);
        config.write();
        // A host whose administrator collects cores: without the daemon's own doing there would be one.
        let dir = config.path().join("cwd");
        std::fs::create_dir(&dir).unwrap();
        let mut child = tokio::process::Command::new("sh")
            .args(["-c", "ulimit -c unlimited && exec \"$0\" --config \"$1\""])
            .arg(env!("CARGO_BIN_EXE_freshd"))
            .arg(config.file())
            .current_dir(&dir)
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        eventually("freshd to listen", || async {
            Connection::try_open(&config.socket()).await.ok().map(drop)
        })
        .await;
        let pid = child.id().expect("it runs");
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits
            .lines()
            .find(|line| line.starts_with("Max core file size"))
            .unwrap();
        let core: Vec<&str> = core.split_whitespace().collect();
        assert_eq!(core[4..6], ["0", "0"], "soft and hard: {core:?}");

        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        // Again, because the first SIGSEGV only takes away Rust's own handler for stack overflows.
        let mut ended = None;
        while ended.is_none() {
            rustix::process::kill_process(pid, signal).unwrap();
            let waiting = tokio::time::timeout(support::LOOK_AGAIN, child.wait());
            ended = waiting.await.ok();
        }
        let status = ended.expect("the loop says so").unwrap();
        assert_eq!(status.signal(), Some(signal.as_raw()));
        assert!(!status.core_dumped(), "{signal:?} left a core");
        let left: Vec<_> = std::fs::read_dir(&dir).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// The kernel gives `/proc/PID` of a process that is not dumpable to root (`proc(5)`), so that no debugger of
/// the same user can attach; that shows only where the process is somebody else.
#[tokio::test]
async fn the_daemon_is_not_dumpable() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    const USER: u32 = 61_004;
    let root = rustix::process::getuid().is_root();
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let config = Config::new().provider("acme", &server, "");
    let key = config.key_file();
    let made = freshctl(&["key", "generate", key.to_str().unwrap()], "").await;
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    config.write();
    let program = config.path().join("freshd");
    std::fs::copy(env!("CARGO_BIN_EXE_freshd"), &program).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = if root {
        let mut paths = vec![
            config.path().to_owned(),
            key,
            config.file(),
            config.secret_file("acme"),
        ];
        paths.extend(["state", "secrets", "shared", "admin"].map(|name| config.path().join(name)));
        for path in paths {
            chown(path, Some(USER), Some(USER)).unwrap();
        }
        let mut command = tokio::process::Command::new("setpriv");
        command.args([
            &format!("--reuid={USER}"),
            &format!("--regid={USER}"),
            "--clear-groups",
        ]);
        command.arg(&program);
        command
    } else {
        tokio::process::Command::new(&program)
    };
    let spawned = command
        .arg("--config")
        .arg(config.file())
        .current_dir("/")
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let child = match spawned {
        Err(error) if root && error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("SKIPPED, NOT TESTED: that the daemon is not dumpable: setpriv is missing");
            return;
        }
        spawned => spawned.unwrap(),
    };
    eventually("freshd to listen", || async {
        Connection::try_open(&config.socket()).await.ok().map(drop)
    })
    .await;
    let pid = child.id().expect("it runs");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let uids = status
        .lines()
        .find(|line| line.starts_with("Uid:"))
        .unwrap();
    let runs_as = if root {
        USER
    } else {
        rustix::process::getuid().as_raw()
    };
    assert!(uids.contains(&runs_as.to_string()), "{uids}");
    let owner = std::fs::metadata(format!("/proc/{pid}/mem")).unwrap().uid();
    assert_eq!(
        owner, 0,
        "a process that is dumpable has a mem of its own uid"
    );
}

// Names of users.

#[tokio::test]
async fn with_log_users_hash_no_log_line_names_a_user() {
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let config = Config::new()
        .daemon("log-level = \"trace\"\nlog-users = \"hash\"")
        .refresh("margin = \"60s\"")
        .provider("acme", &server, "rotation = \"strict\"");
    let mut freshd = Freshd::start(config).await;
    let (anna, bert) = ("canary-anna", "canary-bert");
    // A life with everything that is told: import, refresh, failure, death, pause, resume, delete, nonsense.
    for user in [anna, bert] {
        freshd
            .import(user, "acme", &rotating.issue(user).import())
            .await;
        freshd.token(user, "acme").await.token();
    }
    let grant = grant_path(anna, "acme");
    let refresh = format!("{grant}/refresh");
    freshd.post(&refresh, &json!({})).await.token();
    server.answer_with(|_| Answer::error(503, "temporarily_unavailable"));
    let bert_refresh = format!("{}/refresh?wait=5", grant_path(bert, "acme"));
    freshd.post(&bert_refresh, &json!({})).await;
    freshd.wait_for_log("refresh-failed").await;
    server.answer_with(rotating.script());
    freshd.post(&bert_refresh, &json!({})).await;
    freshd.wait_for_log("recovered").await;
    for verb in ["pause", "resume"] {
        freshd.admin(Method::POST, &format!("{grant}/{verb}")).await;
    }
    freshd
        .post(&format!("/v1/users/{anna}/activity"), &json!({}))
        .await;
    freshd
        .import(anna, "acme:work", &rotating.issue("work").import_expired())
        .await;
    rotating.revoke(bert);
    freshd.post(&bert_refresh, &json!({})).await;
    freshd
        .wait_for_state(bert, "acme", "needs-authorization")
        .await;
    freshd
        .put(&grant, &json!({ "expires_in": "nonsense" }))
        .await;
    freshd
        .get("/v1/users/canary-nobody/grants/acme/token")
        .await;
    freshd.get("/v1/users/canary-nobody/nonsense").await;
    freshd.delete(&format!("/v1/users/{anna}")).await;
    server.nth_revocation(1).await;
    freshd.restart().await;
    freshd.stop().await;

    let log = freshd.logs();
    let naming: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("canary-"))
        .collect();
    assert!(naming.is_empty(), "{}", naming.join("\n"));
    for event in [
        "imported",
        "refreshed",
        "refresh-failed",
        "recovered",
        "paused",
        "resumed",
        "needs-authorization",
        "deleted",
    ] {
        assert!(log.contains(event), "{event} was not told:\n{log}");
    }
    // The hash tells lines of one user from those of another.
    let hashes = |event: &str| -> Vec<String> {
        let lines = log.lines().filter(|line| line.contains(event));
        lines
            .filter_map(|line| line.split("user=").nth(1)?.split(' ').next())
            .map(str::to_owned)
            .collect()
    };
    let imported = hashes(" imported ");
    assert!(
        imported[0].starts_with("u-") && imported[0] != imported[1],
        "{imported:?}"
    );
    assert_eq!(hashes(" needs-authorization "), [imported[1].clone()]);
    assert_eq!(hashes(" paused "), [imported[0].clone()]);
}
