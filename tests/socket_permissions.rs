//! Who gets what on which socket, with real users: real uids and groups, as the kernel tells them (I7).
//!
//! Needs root, `setpriv` and `curl`, and says so where they are missing: only root can be somebody else.

mod support;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use support::daemon::{Config, grant_path, token_path};
use support::{Connection, Freshd, Issued, Rotating, ScriptedServer, within};

/// Uids and groups that nobody on the host has.
const CRM: u32 = 61_001;
const WIKI: u32 = 61_002;
const STRANGER: u32 = 61_003;
const STAFF: u32 = 61_100;
/// The kernel's "somebody I can't name here".
const OVERFLOW: u32 = 65_534;

/// Says why the tests of this file can't run here, if so.
fn cannot_run() -> bool {
    let missing = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        !std::env::split_paths(&path).any(|dir| dir.join(program).exists())
    };
    let why = if !rustix::process::getuid().is_root() {
        "not root, so nobody else can be asked to connect"
    } else if missing("setpriv") {
        "setpriv (util-linux) is missing"
    } else if missing("curl") {
        "curl is missing"
    } else {
        return false;
    };
    eprintln!("SKIPPED, NOT TESTED: who gets what on the sockets: {why}");
    true
}

/// Somebody on this host.
#[derive(Clone, Copy)]
struct Person {
    uid: u32,
    gid: u32,
    groups: &'static [u32],
}

const fn person(uid: u32) -> Person {
    Person {
        uid,
        gid: uid,
        groups: &[],
    }
}

/// What curl got.
struct Got {
    /// 0 where nothing was answered.
    status: u16,
    text: String,
    json: Value,
}

impl Person {
    /// Sends a request as this person, with a real process that really has these credentials.
    async fn curl(self, socket: &Path, method: &str, path: &str) -> Got {
        let groups: Vec<String> = self.groups.iter().map(u32::to_string).collect();
        let mut command = tokio::process::Command::new("setpriv");
        command
            .arg(format!("--reuid={}", self.uid))
            .arg(format!("--regid={}", self.gid))
            .arg(match self.groups {
                [] => "--clear-groups".to_owned(),
                _ => format!("--groups={}", groups.join(",")),
            })
            .args(["curl", "--silent", "--noproxy", "*", "--request", method])
            .args(["--write-out", "\n%{http_code}", "--unix-socket"])
            .arg(socket)
            .arg(format!("http://freshd{path}"))
            .current_dir("/")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = within("curl", command.output())
            .await
            .expect("setpriv runs");
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let (text, status) = stdout.rsplit_once('\n').unwrap_or((&stdout, "0"));
        Got {
            status: status.parse().expect("curl prints a number"),
            json: serde_json::from_str(text).unwrap_or(Value::Null),
            text: format!("{text}{}", String::from_utf8_lossy(&output.stderr)),
        }
    }

    async fn get(self, socket: &Path, path: &str) -> Got {
        self.curl(socket, "GET", path).await
    }
}

struct Host {
    freshd: Freshd,
    anna: Issued,
    _server: ScriptedServer,
}

impl Host {
    /// A daemon whose sockets everybody can reach as far as directories go, with one grant of Anna's
    /// in the namespace `default`.
    async fn start(apps: impl FnOnce(Config) -> Config) -> Host {
        let rotating = Rotating::new(3600);
        let server = ScriptedServer::start(rotating.script()).await;
        let mut config = apps(Config::new().provider("acme", &server, ""));
        config.apps.remove("test");
        // The test's own directories are ours alone; on a host they are open.
        for directory in ["", "shared", "admin", "backup"] {
            let directory = config.path().join(directory);
            if directory.exists() {
                std::fs::set_permissions(directory, PermissionsExt::from_mode(0o755))
                    .expect("it is our own");
            }
        }
        let freshd = Freshd::start(config).await;
        let anna = rotating.issue("anna");
        let mut admin = Connection::open(&freshd.config.admin_socket()).await;
        let reply = admin
            .send(
                hyper::Method::PUT,
                &grant_path("anna", "acme"),
                Some(&anna.import()),
            )
            .await;
        assert_eq!(reply.status, 201, "{}", reply.text);
        Host {
            freshd,
            anna,
            _server: server,
        }
    }

    fn shared(&self) -> PathBuf {
        self.freshd.config.socket()
    }

    async fn reads(&self, person: Person, socket: &Path) -> Got {
        person.get(socket, &token_path("anna", "acme", "")).await
    }

    async fn assert_reads(&self, person: Person, socket: &Path) {
        let got = self.reads(person, socket).await;
        assert_eq!(got.status, 200, "{}", got.text);
        assert_eq!(got.json["access_token"], self.anna.access_token);
    }

    async fn assert_refused(&self, person: Person, socket: &Path) -> Got {
        let got = self.reads(person, socket).await;
        assert_eq!(got.status, 403, "{}", got.text);
        assert_eq!(got.json["type"], "urn:freshd:forbidden", "{}", got.text);
        assert!(!got.text.contains(&self.anna.access_token));
        got
    }
}

const READ: &str = "may = [\"read\"]";

// By uid.

#[tokio::test]
async fn a_uids_rule_admits_that_uid_and_no_other() {
    if cannot_run() {
        return;
    }
    let host = Host::start(|config| config.app("crm", &format!("unix-uid = {CRM}\n{READ}"))).await;
    let shared = host.shared();
    host.assert_reads(person(CRM), &shared).await;
    host.assert_refused(person(WIKI), &shared).await;
    // The uid decides, not a group of the same number.
    let same_group = Person {
        uid: WIKI,
        gid: CRM,
        groups: &[CRM],
    };
    host.assert_refused(same_group, &shared).await;
}

#[tokio::test]
async fn a_rule_allows_its_verbs_providers_and_namespace_and_no_more() {
    if cannot_run() {
        return;
    }
    let host = Host::start(|config| {
        let other = config.providers["acme"].clone();
        let mut config = config
            .app(
                "crm",
                &format!("unix-uid = {CRM}\n{READ}\nproviders = [\"acme\"]"),
            )
            .app(
                "wiki",
                &format!("unix-uid = {WIKI}\n{READ}\nnamespace = \"wiki\""),
            );
        config.providers.insert("beta".into(), other);
        config
    })
    .await;
    let shared = host.shared();
    let grant = grant_path("anna", "acme");
    host.assert_reads(person(CRM), &shared).await;
    for (method, path) in [
        ("PUT", grant.as_str()),
        ("DELETE", &grant),
        ("DELETE", "/v1/users/anna"),
        ("GET", "/v1/users/anna/grants/beta/token"),
        ("POST", "/v1/users/anna/grants/beta/refresh"),
    ] {
        let got = person(CRM).curl(&shared, method, path).await;
        assert_eq!(got.status, 403, "{method} {path}: {}", got.text);
    }
    // Another namespace's Anna is another Anna.
    let got = host.reads(person(WIKI), &shared).await;
    assert_eq!(got.status, 404, "{}", got.text);
}

// By group.

#[tokio::test]
async fn a_groups_rule_admits_by_primary_and_by_supplementary_group() {
    if cannot_run() {
        return;
    }
    // The configuration names groups, not numbers: any group of the host will do.
    let line = "unix-group = \"daemon\"";
    let group = nix::unistd::Group::from_name("daemon")
        .unwrap()
        .expect("every Debian has it");
    assert_eq!(group.gid.as_raw(), 1, "as Debian numbers it");
    let host = Host::start(|config| config.app("staff", &format!("{line}\n{READ}"))).await;
    let shared = host.shared();
    let primary = Person {
        gid: 1,
        ..person(STRANGER)
    };
    let supplementary = Person {
        groups: &[STAFF, 1],
        ..person(STRANGER)
    };
    let neither = Person {
        groups: &[STAFF],
        ..person(STRANGER)
    };
    host.assert_reads(primary, &shared).await;
    host.assert_reads(supplementary, &shared).await;
    host.assert_refused(neither, &shared).await;
}

// A stranger.

#[tokio::test]
async fn of_ever_new_strangers_the_log_names_sixty_four() {
    if cannot_run() {
        return;
    }
    let host = Host::start(|config| config.app("crm", &format!("unix-uid = {CRM}\n{READ}"))).await;
    for nth in 0..70 {
        host.assert_refused(person(70_000 + nth), &host.shared())
            .await;
    }
    // A reload makes them no news: whoever has many uids would fill the log with them each time.
    let freshd = host.freshd;
    freshd.reload().await.unwrap();
    let named = freshd.logs().matches("peer-refused").count();
    assert_eq!(named, 64);
    let page = freshd.admin(hyper::Method::GET, "/metrics").await.text;
    let counted = page
        .lines()
        .find_map(|line| line.strip_prefix("freshd_peers_refused_total "));
    assert_eq!(counted, Some("70"));
}

#[tokio::test]
async fn a_stranger_is_told_who_it_is_and_the_log_shows_the_rule_that_would_admit_it() {
    if cannot_run() {
        return;
    }
    let host = Host::start(|config| config.app("crm", &format!("unix-uid = {CRM}\n{READ}"))).await;
    let stranger = Person {
        uid: STRANGER,
        gid: WIKI,
        groups: &[STAFF, WIKI],
    };
    let got = host.assert_refused(stranger, &host.shared()).await;
    for number in [STRANGER, WIKI, STAFF] {
        assert!(
            got.text.contains(&number.to_string()),
            "{number}: {}",
            got.text
        );
    }
    assert!(
        !got.text.contains("crm"),
        "it learns nothing of the apps: {}",
        got.text
    );
    let line = host.freshd.wait_for_log("peer-refused").await;
    assert!(line.contains("[app.NAME] unix-uid = 61003"), "{line}");
    // One line for each uid, however often it asks.
    host.assert_refused(stranger, &host.shared()).await;
    host.assert_refused(person(WIKI), &host.shared()).await;
    // The last of the three to be told is here, so the others are.
    host.freshd.wait_for_log("unix-uid = 61002").await;
    let told = host.freshd.logs().matches("peer-refused").count();
    assert_eq!(told, 2);

    // The rule that the log shows does admit it.
    let mut freshd = host.freshd;
    freshd.config.apps.insert(
        "new".into(),
        format!("unix-uid = {STRANGER}\nproviders = [\"*\"]\n{READ}"),
    );
    freshd.reload().await.unwrap();
    let got = stranger
        .get(&freshd.config.socket(), &token_path("anna", "acme", ""))
        .await;
    assert_eq!(got.status, 200, "{}", got.text);
}

// uid 0 and the overflow uid.

#[tokio::test]
async fn root_is_a_uid_like_others_on_the_shared_socket() {
    if cannot_run() {
        return;
    }
    let host = Host::start(|config| config.app("crm", &format!("unix-uid = {CRM}\n{READ}"))).await;
    let got = host.assert_refused(person(0), &host.shared()).await;
    assert!(got.text.contains("uid 0"), "{}", got.text);
}

#[tokio::test]
async fn the_overflow_uid_is_denied_on_every_socket() {
    if cannot_run() {
        return;
    }
    let host = Host::start(|config| {
        let group = "unix-group = \"daemon\"";
        config
            .app("staff", &format!("{group}\n{READ}"))
            .app_with_socket("backup", READ)
    })
    .await;
    let nobody = Person {
        uid: OVERFLOW,
        gid: OVERFLOW,
        groups: &[1],
    };
    for socket in [host.shared(), host.freshd.app_socket("backup")] {
        host.assert_refused(nobody, &socket).await;
    }
    // On the admin socket even if somebody opened its mode to all.
    let admin = host.freshd.config.admin_socket();
    std::fs::set_permissions(&admin, PermissionsExt::from_mode(0o666)).unwrap();
    host.assert_refused(nobody, &admin).await;
    // And no rule can be written for it.
    let mut freshd = host.freshd;
    freshd.config.apps.insert(
        "nobody".into(),
        format!("unix-uid = {OVERFLOW}\nproviders = [\"*\"]\n{READ}"),
    );
    let error = freshd.reload().await.expect_err("it stands for anybody");
    assert!(error.contains("65534"), "{error}");
}

// Sockets of apps.

#[tokio::test]
async fn on_an_apps_own_socket_whoever_can_connect_is_that_app_and_only_that() {
    if cannot_run() {
        return;
    }
    let host = Host::start(|config| {
        config
            .app("crm", &format!("unix-uid = {CRM}\n{READ}"))
            .app_with_socket("backup", &format!("{READ}\nproviders = [\"acme\"]"))
    })
    .await;
    let own = host.freshd.app_socket("backup");
    // Its directory says who: here everybody, whatever the uid.
    for uid in [STRANGER, CRM, 0] {
        host.assert_reads(person(uid), &own).await;
    }
    // And uid 0 gets what the app gets, not more.
    for (method, path) in [
        ("DELETE", grant_path("anna", "acme")),
        ("PUT", grant_path("anna", "acme")),
    ] {
        let got = person(0).curl(&own, method, &path).await;
        assert_eq!(got.status, 403, "{method}: {}", got.text);
    }
    // A closed directory keeps others out, and an app that is gone has no socket any more.
    std::fs::set_permissions(own.parent().unwrap(), PermissionsExt::from_mode(0o700)).unwrap();
    assert_eq!(host.reads(person(STRANGER), &own).await.status, 0);
    let mut freshd = host.freshd;
    freshd.config.apps.remove("backup");
    freshd.reload().await.unwrap();
    assert!(!own.exists());
}

// The admin socket.

#[tokio::test]
async fn the_admin_socket_keeps_others_out_by_its_mode() {
    if cannot_run() {
        return;
    }
    let host = Host::start(|config| config.app("crm", &format!("unix-uid = {CRM}\n{READ}"))).await;
    let admin = host.freshd.config.admin_socket();
    let mode = std::fs::metadata(&admin).unwrap().mode() & 0o777;
    assert_eq!(mode & 0o007, 0, "{mode:o}");
    for uid in [CRM, STRANGER] {
        let got = person(uid).get(&admin, "/v1/status").await;
        assert_eq!(got.status, 0, "no connection: {}", got.text);
    }
    let got = person(0).get(&admin, "/v1/status").await;
    assert_eq!(
        (got.status, &got.json["state"]),
        (200, &json!("running")),
        "{}",
        got.text
    );
    // The shared one is for all: its rules decide.
    let mode = std::fs::metadata(host.shared()).unwrap().mode() & 0o777;
    assert_eq!(mode, 0o666);
}

#[tokio::test]
async fn admin_verbs_are_not_there_on_any_other_socket() {
    if cannot_run() {
        return;
    }
    let host = Host::start(|config| {
        let all = "may = [\"read\", \"import\", \"revoke\"]";
        config
            .app("root", &format!("unix-uid = 0\n{all}"))
            .app_with_socket("backup", all)
    })
    .await;
    let grant = grant_path("anna", "acme");
    for socket in [host.shared(), host.freshd.app_socket("backup")] {
        for (method, path) in [
            ("GET", "/v1/grants".to_owned()),
            ("GET", "/v1/status".to_owned()),
            ("GET", "/v1/providers".to_owned()),
            ("POST", format!("{grant}/pause")),
            ("POST", format!("{grant}/resume")),
            ("POST", "/v1/users/anna/pause".to_owned()),
            ("POST", "/v1/providers/acme/pause".to_owned()),
            ("POST", "/v1/providers/acme/resume".to_owned()),
        ] {
            let got = person(0).curl(&socket, method, &path).await;
            assert_eq!(got.status, 404, "{method} {path}: {}", got.text);
            assert_eq!(got.json["type"], "urn:freshd:no-such-route", "{}", got.text);
        }
        host.assert_reads(person(0), &socket).await;
    }
}

// Restarts. A second daemon, and a socket that a kill left behind, are in `survives_restart.rs` too.

#[tokio::test]
async fn after_a_kill_the_sockets_are_new_and_as_closed_as_before() {
    if cannot_run() {
        return;
    }
    let host = Host::start(|config| {
        config
            .app("crm", &format!("unix-uid = {CRM}\n{READ}"))
            .app_with_socket("backup", READ)
    })
    .await;
    let (shared, admin) = (host.shared(), host.freshd.config.admin_socket());
    let own = host.freshd.app_socket("backup");
    let all = [&shared, &admin, &own];
    let modes = || all.map(|path| std::fs::metadata(path).unwrap().mode());
    let inodes = || all.map(|path| std::fs::metadata(path).unwrap().ino());
    let (modes_before, inodes_before) = (modes(), inodes());
    let (code, log) = host.freshd.run_another().await;
    assert_eq!(code, Some(75), "a second daemon is refused: {log}");
    assert_eq!(inodes(), inodes_before, "and touches no socket");
    host.assert_reads(person(CRM), &shared).await;

    let Host {
        mut freshd,
        anna,
        _server,
    } = host;
    freshd.kill().await;
    assert!(
        all.iter().all(|path| path.exists()),
        "a kill leaves them behind"
    );
    freshd.start_again().await;

    assert_eq!(modes(), modes_before);
    let host = Host {
        freshd,
        anna,
        _server,
    };
    host.assert_reads(person(CRM), &shared).await;
    host.assert_reads(person(STRANGER), &own).await;
    host.assert_refused(person(STRANGER), &shared).await;
    assert_eq!(person(STRANGER).get(&admin, "/v1/status").await.status, 0);
}
