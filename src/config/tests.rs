use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::profile::{ClientAuth, PROFILES};
use crate::refresh::policy::{Mode, Rotation};

const CANARY: &str = "canary-5ecret+%: ä";

struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    /// A directory with a client secret at `secret` and in `credentials/hubspot`.
    fn new() -> Self {
        let fixture = Fixture {
            dir: tempfile::tempdir().unwrap(),
        };
        std::fs::create_dir(fixture.path("credentials")).unwrap();
        std::fs::create_dir(fixture.path("conf.d")).unwrap();
        for name in ["secret", "credentials/hubspot", "credentials/example"] {
            fixture.write(name, &format!("{CANARY}\n"), 0o600);
        }
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str, mode: u32) {
        std::fs::write(self.path(name), text).unwrap();
        std::fs::set_permissions(self.path(name), PermissionsExt::from_mode(mode)).unwrap();
    }

    fn defaults(&self) -> Defaults {
        Defaults {
            credentials_dir: Some(self.path("credentials")),
            ..Defaults::system(&|_| None)
        }
    }

    /// Loads `text`, in which `DIR` stands for the directory.
    fn load(&self, text: &str) -> Result<Config, Vec<ConfigError>> {
        self.write("freshd.toml", &self.fill(text), 0o644);
        load(&self.path("freshd.toml"), &self.defaults())
    }

    fn fill(&self, text: &str) -> String {
        text.replace("DIR", &self.dir.path().display().to_string())
    }

    /// Loads `text` and returns its errors as an admin reads them, without the directory.
    fn errors(&self, text: &str) -> Vec<String> {
        let errors = self.load(text).expect_err("must be refused");
        let dir = self.dir.path().display().to_string();
        errors
            .iter()
            .map(|error| error.to_string().replace(&dir, "DIR"))
            .collect()
    }
}

/// A provider that is right, but for what a test adds.
fn provider(lines: &str) -> String {
    format!(
        "[provider.a]\nclient-id = \"id\"\nclient-secret = {{ file = \"DIR/secret\" }}\n\
         token-endpoint = \"https://a.example/token\"\n{lines}"
    )
}

/// An app that is right, but for what a test adds.
fn app(lines: &str) -> String {
    format!("[app.crm]\nproviders = [\"*\"]\nmay = [\"read\"]\n{lines}")
}

#[test]
fn the_annotated_example_loads() {
    let fixture = Fixture::new();
    let example = include_str!("../../config/freshd.toml");
    let config = fixture.load(example).unwrap();
    assert_eq!(
        config.providers.keys().collect::<Vec<_>>(),
        ["example", "hubspot"]
    );
    let hubspot = &config.providers["hubspot"];
    assert_eq!(hubspot.profile.as_deref(), Some("hubspot"));
    assert_eq!(hubspot.pace.rate, Some(50.0));
    assert_eq!(hubspot.policy.margin, Duration::from_secs(300));
    assert_eq!(
        hubspot
            .registration
            .client_secret
            .as_ref()
            .unwrap()
            .expose(),
        CANARY
    );
    let example = &config.providers["example"];
    assert_eq!(
        example.policy.rotation,
        Rotation::Grace(Duration::from_secs(30))
    );
    assert_eq!(config.apps["crm"].peer, AppPeer::Uid(1001));
    assert_eq!(
        config.apps["nightly"].peer,
        AppPeer::Socket("/run/freshd/app/nightly/freshd.sock".into())
    );
    assert!(!config.apps["nightly"].counts_as_activity);
}

/// Drops the `#` of each `#key = …` line.
fn uncommented(example: &str) -> String {
    let key = |line: &str| {
        line.starts_with('#') && line.as_bytes().get(1).is_some_and(u8::is_ascii_lowercase)
    };
    example
        .lines()
        .map(|line| if key(line) { &line[1..] } else { line })
        .fold(String::new(), |text, line| text + line + "\n")
}

#[test]
fn every_commented_key_of_the_example_is_right_and_no_key_is_missing_from_it() {
    let fixture = Fixture::new();
    let example = uncommented(include_str!("../../config/freshd.toml"));
    fixture.load(&example).unwrap();
    let keys = [
        shape::keys_of::<shape::DaemonShape>(),
        shape::keys_of::<shape::RefreshShape>(),
        shape::keys_of::<shape::QuotaShape>(),
        shape::keys_of::<shape::MaintenanceShape>(),
        shape::keys_of::<shape::OutboundShape>(),
        shape::keys_of::<shape::ProviderShape>(),
        shape::keys_of::<shape::AppShape>(),
    ];
    for key in keys.concat() {
        assert!(
            example.contains(&format!("{key} = ")),
            "{key} is not in the example"
        );
    }
}

#[test]
fn the_defaults_that_the_example_names_are_the_defaults() {
    let fixture = Fixture::new();
    let bare = fixture.load("").unwrap();
    let mut named = fixture
        .load(&uncommented(include_str!("../../config/freshd.toml")))
        .unwrap();
    named.providers.clear();
    // The examples of the other two are not defaults: they are off.
    let limits = Quota {
        alarm_users_per_hour: None,
        users_per_hour: None,
        ..named.apps["nightly"].quota
    };
    assert_eq!(limits, Quota::USUAL);
    named.apps.clear();
    named.outbound = Outbound::default();
    // The example names a directory; without one there is no backup.
    let keep = fixture
        .load("[maintenance]\nbackup-dir = \"/var/backups/freshd\"")
        .unwrap();
    assert_eq!(named.maintenance.backup, keep.maintenance.backup);
    named.maintenance.backup = None;
    // So with the metrics: the example's address is the usual one.
    assert!(named.daemon.metrics_listen.take().is_some());
    assert_eq!(named, bare);
}

#[test]
fn an_app_overrides_the_limits_key_by_key() {
    let fixture = Fixture::new();
    let app = "unix-uid = 1\nproviders = [\"*\"]\nmay = [\"read\"]";
    let text = format!(
        "[limits]\nmax-connections = 7\nmax-users-per-hour = 100\n\
         [app.a]\n{app}\nmax-connections = 9\nalarm-users-per-hour = 50\n[app.b]\n{}",
        app.replace('1', "2")
    );
    let apps = fixture.load(&text).unwrap().apps;
    let usual = Quota {
        connections: 7,
        users_per_hour: Some(100),
        ..Quota::USUAL
    };
    let own = Quota {
        connections: 9,
        alarm_users_per_hour: Some(50),
        ..usual
    };
    assert_eq!((apps["a"].quota, apps["b"].quota), (own, usual));
    let bare = fixture.load(&format!("[app.a]\n{app}")).unwrap();
    assert_eq!(bare.apps["a"].quota, Quota::USUAL);
}

#[test]
fn a_limit_that_lets_nothing_through_or_an_alarm_beyond_its_cap_is_refused_by_name() {
    let fixture = Fixture::new();
    let app = "[app.a]\nunix-uid = 1\nproviders = [\"*\"]\nmay = [\"read\"]\n";
    for (line, message) in [
        (
            "max-requests-per-second = 0",
            "app.a.max-requests-per-second is 0 but must be from 1 to 1000000",
        ),
        (
            "max-connections = -1",
            "app.a.max-connections is -1 but must be from 1 to 1000000",
        ),
        (
            "alarm-users-per-hour = 5\nmax-users-per-hour = 5",
            "app.a.alarm-users-per-hour is 5 but must be under max-users-per-hour (5)",
        ),
    ] {
        let errors = fixture.load(&format!("{app}{line}")).unwrap_err();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].to_string().contains(message), "{}", errors[0]);
    }
}

#[test]
fn each_profile_loads_and_is_honest_about_rotation() {
    let fixture = Fixture::new();
    for (name, source) in PROFILES {
        for own in ["client-id", "client-secret", "profile"] {
            assert!(
                !source.parse::<toml::Table>().unwrap().contains_key(own),
                "{name} has {own}"
            );
        }
        let text = format!(
            "[provider.p]\nprofile = {name:?}\nclient-id = \"id\"\nclient-secret = {{ file = \"DIR/secret\" }}"
        );
        let config = fixture.load(&text).unwrap();
        let rotation = match name {
            "google" => Rotation::None,
            "box" => Rotation::Strict,
            _ => Rotation::Unknown,
        };
        let provider = &config.providers["p"];
        assert_eq!(provider.policy.rotation, rotation, "{name}");
        assert_eq!(provider.registration.client_auth, ClientAuth::Body);
        assert!(provider.registration.revocation_endpoint.is_some());
    }
}

#[test]
fn a_provider_overrides_its_profile_key_by_key() {
    let fixture = Fixture::new();
    let config = fixture
        .load(
            "[refresh]\nmargin = \"2m\"\n[provider.p]\nprofile = \"box\"\nclient-id = \"id\"\n\
             client-secret = { file = \"DIR/secret\" }\nrotation = \"grace\"\ngrace = \"20s\"\n\
             token-endpoint = \"http://127.0.0.1:9/token\"\nfloor = \"3s\"",
        )
        .unwrap();
    let Provider {
        registration,
        policy,
        pace,
        ..
    } = &config.providers["p"];
    assert_eq!(
        registration.token_endpoint.as_str(),
        "http://127.0.0.1:9/token"
    );
    assert_eq!(
        registration.revocation_endpoint.as_ref().unwrap().as_str(),
        "https://api.box.com/oauth2/revoke"
    );
    assert_eq!(policy.rotation, Rotation::Grace(Duration::from_secs(20)));
    assert_eq!(policy.margin, Duration::from_secs(120));
    assert_eq!(policy.floor, Duration::from_secs(3));
    assert_eq!(
        policy.refresh_token_idle_lifetime,
        Some(Duration::from_secs(60 * 86_400))
    );
    // Cut to half the grace, so that a second request fits into it.
    assert_eq!(registration.deadline, Duration::from_secs(10));
    assert!(registration.connect_timeout < registration.deadline);
    assert_eq!(pace.max_in_flight, 32);
}

/// What is written, and what is said about it.
#[test]
fn each_wrong_value_is_refused_with_file_line_key_value_and_rule() {
    let fixture = Fixture::new();
    let grace = "rotation = \"grace\"\ngrace = \"30s\"\n";
    for (text, said) in [
        ("[refresh]\nmargin = 300".to_owned(), "DIR/freshd.toml:2: refresh.margin is 300 but must be a length of time in quotes and with its unit, such as \"90s\" or \"5m\""),
        ("[refresh]\nmargin = \"300\"".into(), "DIR/freshd.toml:2: refresh.margin is \"300\" but must be numbers with units ms, s, m, h, d or w, such as \"90s\", \"5m\" or \"1h30m\""),
        ("[refresh]\nmargin = \"0s\"".into(), "DIR/freshd.toml:2: refresh.margin is \"0s\" but must be more than zero"),
        ("[refresh]\nmagrin = \"5m\"".into(), "DIR/freshd.toml:2: refresh.magrin is not a key; did you mean margin?"),
        ("[refresh]\nmax-in-flight = 0".into(), "DIR/freshd.toml:2: refresh.max-in-flight is 0 but must be from 1 to 1000000"),
        ("[refresh]\nmax-in-flight = \"many\"".into(), "DIR/freshd.toml:2: refresh.max-in-flight is \"many\" but must be a whole number"),
        ("[refresh]\nmax-in-flight = 99999999999999999999".into(), "DIR/freshd.toml:2: refresh.max-in-flight is a number too large to be read"),
        ("[deamon]".into(), "DIR/freshd.toml:1: deamon is not a section; did you mean daemon?"),
        ("daemon = 1".into(), "DIR/freshd.toml:1: daemon must be a section"),
        ("[provider]\na = 1".into(), "DIR/freshd.toml:2: provider.a must be a section"),
        ("[daemon]\nstate-dir = \"state\"".into(), "DIR/freshd.toml:2: daemon.state-dir is \"state\" but must be an absolute path without \"..\""),
        ("[daemon]\ncache = \"16\"".into(), "DIR/freshd.toml:2: daemon.cache is \"16\" but must be \"off\" or a whole number above 0 with KiB, MiB or GiB, such as \"16MiB\""),
        ("[daemon]\nlog-users = \"none\"".into(), "DIR/freshd.toml:2: daemon.log-users is \"none\" but must be \"plain\" or \"hash\""),
        ("[daemon]\nlog-format = \"xml\"".into(), "DIR/freshd.toml:2: daemon.log-format is \"xml\" but must be \"auto\", \"text\" or \"json\""),
        ("[daemon]\nmetrics-listen = \"0.0.0.0:9464\"".into(), "DIR/freshd.toml:2: daemon.metrics-listen is \"0.0.0.0:9464\" but must be a loopback address and a port, such as \"127.0.0.1:9464\""),
        ("[daemon]\nmetrics-listen = \"localhost:9464\"".into(), "DIR/freshd.toml:2: daemon.metrics-listen is \"localhost:9464\" but must be a loopback address and a port, such as \"127.0.0.1:9464\""),
        ("[daemon]\nlog-level = \"loud\"".into(), "DIR/freshd.toml:2: daemon.log-level is \"loud\" but must be one of error, warn, info, debug, trace"),
        ("[daemon]\nsocket = \"/run/freshd/admin/freshd.sock\"".into(), "DIR/freshd.toml:1: daemon.admin-socket is \"/run/freshd/admin/freshd.sock\" but must be in a directory of its own, because containers mount directories; daemon.socket is there"),
        ("[maintenance]\nbackup = \"0 0 3 * * *\"".into(), "DIR/freshd.toml:2: maintenance.backup needs maintenance.backup-dir, where the copies go"),
        ("[maintenance]\nkeep = 3".into(), "DIR/freshd.toml:2: maintenance.keep needs maintenance.backup-dir, where the copies go"),
        ("[maintenance]\nbackup-dir = \"/var/backups\"\nkeep = 0".into(), "DIR/freshd.toml:3: maintenance.keep is 0 but must be from 1 to 1000000"),
        ("[maintenance]\npurge = \"nightly\"".into(), "DIR/freshd.toml:2: maintenance.purge is \"nightly\" but must be \"off\" or a cron expression of six fields, seconds first, such as \"0 30 3 * * *\""),
        ("[outbound]\nproxy = \"http://me:canary-5ecret@proxy:3128\"".into(), "DIR/freshd.toml:2: outbound.proxy is \"http://proxy:3128/\" but must be an http or https URL of a host and a port, without user name, password, path or query, such as \"http://proxy.example:3128\""),
        ("[outbound]\nproxy = \"socks5://proxy:1080\"".into(), "DIR/freshd.toml:2: outbound.proxy is \"socks5://proxy:1080\" but must be an http or https URL of a host and a port, without user name, password, path or query, such as \"http://proxy.example:3128\""),
        ("[outbound]\nproxy = \"http://proxy:3128/pac?canary-5ecret\"".into(), "DIR/freshd.toml:2: outbound.proxy is \"http://proxy:3128/pac\" but must be an http or https URL of a host and a port, without user name, password, path or query, such as \"http://proxy.example:3128\""),
        ("[outbound]\nproxy = \"me:canary-5ecret@proxy:3128\"".into(), "DIR/freshd.toml:2: outbound.proxy is not shown, for it may hold a password, but must be an http or https URL of a host and a port, without user name, password, path or query, such as \"http://proxy.example:3128\""),
        ("[outbound]\nproxy = \"http://me:12/canary-5ecret@proxy:3128\"".into(), "DIR/freshd.toml:2: outbound.proxy is not shown, for it may hold a password, but must be an http or https URL of a host and a port, without user name, password, path or query, such as \"http://proxy.example:3128\""),
        ("[outbound]\nproxy = \"//me:canary-5ecret@proxy\"".into(), "DIR/freshd.toml:2: outbound.proxy is not a URL, and must be an http or https URL of a host and a port, without user name, password, path or query, such as \"http://proxy.example:3128\""),
        ("[outbound]\nca-bundle = \"ca.pem\"".into(), "DIR/freshd.toml:2: outbound.ca-bundle is \"ca.pem\" but must be an absolute path without \"..\""),
        (provider("rate = \"50\""), "DIR/freshd.toml:5: provider.a.rate is \"50\" but must be a whole number above 0 with /s, /m, /h or /d, such as \"50/s\" or \"100/m\""),
        (provider("rotation = \"sometimes\""), "DIR/freshd.toml:5: provider.a.rotation is \"sometimes\" but must be one of none, overlap, grace, strict, periodic, unknown"),
        (provider("rotation = \"grace\""), "DIR/freshd.toml:1: provider.a.grace is missing but rotation is \"grace\"; say how long an old refresh token still works, such as grace = \"30s\""),
        (provider("rotation = \"strict\"\ngrace = \"30s\""), "DIR/freshd.toml:6: provider.a.grace is \"30s\" but must be left out where rotation is \"strict\", not \"grace\""),
        (provider(&format!("{grace}deadline = \"16s\"")), "DIR/freshd.toml:7: provider.a.deadline is 16s but must be at most half the grace (15s)"),
        (provider("connect-timeout = \"30s\""), "DIR/freshd.toml:5: provider.a.connect-timeout is 30s but must be under the deadline (30s)"),
        (provider("revocation-endpoint = \"http://localhost:1/r\""), "DIR/freshd.toml:5: provider.a.revocation-endpoint is \"http://localhost:1/r\" but plain http to the name localhost is refused, because a resolver may send it elsewhere; write 127.0.0.1 or [::1]"),
        (provider("revocation-endpoint = \"http://r.example\""), "DIR/freshd.toml:5: provider.a.revocation-endpoint is \"http://r.example/\" but must be https; plain http is for literal loopback addresses only, such as 127.0.0.1 or [::1]"),
        (provider("revocation-endpoint = \"https://me:canary-5ecret@r.example/r?canary-5ecret\""), "DIR/freshd.toml:5: provider.a.revocation-endpoint is \"https://r.example/r\" but must not hold a user name or password"),
        (provider("revocation-endpoint = \"https://me:canary-5ecret@\""), "DIR/freshd.toml:5: provider.a.revocation-endpoint is not a URL; it must be like https://auth.example.com/token"),
        (provider("client-auth = \"none\""), "DIR/freshd.toml:3: provider.a.client-secret must be left out where client-auth is \"none\""),
        (provider("client-auth = \"jwt\""), "DIR/freshd.toml:5: provider.a.client-auth is \"jwt\" but must be \"basic\", \"body\" or \"none\""),
        (provider("profile = \"hupspot\""), "DIR/freshd.toml:5: provider.a.profile is \"hupspot\" but must be one of box, google, hubspot; or leave it out and give the endpoints"),
        (provider("scopes = [\"a b\"]"), "DIR/freshd.toml:5: provider.a.scopes is \"a b\" but must be scopes of RFC 6749: one each, not empty, printable, without spaces"),
        (provider("scopes = \"a\""), "DIR/freshd.toml:5: provider.a.scopes is \"a\" but must be a list"),
        (provider("dead-grant-codes = [\"\"]"), "DIR/freshd.toml:5: provider.a.dead-grant-codes has \"\" but must be codes, none empty"),
        (provider("refresh = \"never\""), "DIR/freshd.toml:5: provider.a.refresh is \"never\" but must be \"scheduled\" or \"on-demand\""),
        (provider("refresh = \"on-demand\"\nrefresh-while-alive = true"), "DIR/freshd.toml:5: provider.a.refresh is \"on-demand\" but must be \"scheduled\" where refresh-while-alive is true: a grant that nobody reads in time would end"),
        (provider("refuse-after = \"0s\""), "DIR/freshd.toml:5: provider.a.refuse-after is \"0s\" but must be more than zero"),
        (provider("keep-alive = \"yes\""), "DIR/freshd.toml:5: provider.a.keep-alive is \"yes\" but must be true or false"),
        ("[provider.A]\nclient-id = \"id\"\ntoken-endpoint = \"https://a.example\"\nclient-auth = \"none\"".into(), "DIR/freshd.toml:1: provider.A is \"A\" but must be 1 to 64 of a-z, 0-9, \".\", \"_\" and \"-\", and begin with a letter or digit"),
        (app(""), "DIR/freshd.toml:1: app.crm has none of them but must have one of unix-user, unix-uid, unix-group and socket"),
        (app("unix-uid = 1\nsocket = true"), "DIR/freshd.toml:1: app.crm has unix-uid and socket but must have one of unix-user, unix-uid, unix-group and socket"),
        (app("unix-user = \"no-such-user\""), "DIR/freshd.toml:4: app.crm.unix-user is \"no-such-user\" but there is no such user on this host; create it, or give its number as unix-uid"),
        (app("unix-group = \"no-such-group\""), "DIR/freshd.toml:4: app.crm.unix-group is \"no-such-group\" but there is no such group on this host; create it"),
        (app("unix-uid = -1"), "DIR/freshd.toml:4: app.crm.unix-uid is -1 but must be a uid, from 0 to 4294967294"),
        (app("unix-uid = 65534"), "DIR/freshd.toml:4: app.crm.unix-uid is 65534, which is what the kernel says of anybody it cannot name; run the app as a user of its own, or give it socket = true"),
        (app("unix-user = \"nobody\""), "DIR/freshd.toml:4: app.crm.unix-user is 65534, which is what the kernel says of anybody it cannot name; run the app as a user of its own, or give it socket = true"),
        (app("unix-uid = \"crm\""), "DIR/freshd.toml:4: app.crm.unix-uid is \"crm\" but must be a whole number"),
        (app("socket = false"), "DIR/freshd.toml:4: app.crm.socket is false but must be true or an absolute path"),
        (app("socket = \"crm.sock\""), "DIR/freshd.toml:4: app.crm.socket is \"crm.sock\" but must be an absolute path without \"..\""),
        (app("socket = \"/run/freshd/shared/freshd.sock\""), "DIR/freshd.toml:4: app.crm.socket is \"/run/freshd/shared/freshd.sock\" but must be in a directory of its own, because containers mount directories; daemon.socket is there"),
        (app("socket = \"/run/freshd/admin/crm.sock\""), "DIR/freshd.toml:4: app.crm.socket is \"/run/freshd/admin/crm.sock\" but must be in a directory of its own, because containers mount directories; daemon.admin-socket is there"),
        (app("socket = \"/run/../run/freshd/admin/crm.sock\""), "DIR/freshd.toml:4: app.crm.socket is \"/run/../run/freshd/admin/crm.sock\" but must be an absolute path without \"..\""),
        (app("unix-uid = 1\nnamespace = \"A\""), "DIR/freshd.toml:5: app.crm.namespace is \"A\" but must be 1 to 64 of a-z, 0-9, \".\", \"_\" and \"-\", and begin with a letter or digit"),
        (format!("{}\n{}", app("unix-uid = 1"), "[app.web]\nunix-uid = 1\nproviders = [\"*\"]\nmay = [\"read\"]"), "DIR/freshd.toml:5: app.web has uid 1 but app.crm has it too; give one of them socket = true"),
        ("[app.crm]\nunix-uid = 1\nproviders = [\"*\"]".into(), "DIR/freshd.toml:1: app.crm.may is missing or empty but must be a list of read, import, revoke and authorize"),
        ("[app.crm]\nunix-uid = 1\nproviders = [\"*\"]\nmay = [\"write\"]".into(), "DIR/freshd.toml:4: app.crm.may has \"write\" but must be a list of read, import, revoke and authorize"),
        ("[app.crm]\nunix-uid = 1\nmay = [\"read\"]".into(), "DIR/freshd.toml:1: app.crm.providers is missing or empty but must be a list of providers, or [\"*\"]"),
        (format!("{}[app.crm]\nunix-uid = 1\nproviders = [\"b\"]\nmay = [\"read\"]", provider("")), "DIR/freshd.toml:7: app.crm.providers has \"b\" but each must be configured as [provider.NAME]"),
        (format!("{}[app.crm]\nunix-uid = 1\nproviders = [\"a\", \"*\"]\nmay = [\"read\"]", provider("")), "DIR/freshd.toml:7: app.crm.providers has \"*\" but \"*\" must stand alone"),
    ] {
        assert_eq!(fixture.errors(&text), [said], "{text}");
    }
}

#[test]
fn a_client_secret_is_read_from_a_closed_file_only() {
    let fixture = Fixture::new();
    fixture.write("open", CANARY, 0o604);
    fixture.write("empty", "\n", 0o600);
    let secret = |value: &str| provider("").replace("{ file = \"DIR/secret\" }", value);
    let prefix = "DIR/freshd.toml:3: provider.a.client-secret";
    let rule = "must be { credential = \"NAME\" } or { file = \"/PATH\" }, never the secret itself";
    for (value, said) in [
        ("\"canary-5ecret\"", rule),
        ("5", rule),
        ("{ value = \"canary-5ecret\" }", rule),
        ("{ file = [\"canary-5ecret\"] }", rule),
        ("{ file = \"/a\", credential = \"b\" }", rule),
        (
            "{ file = \"DIR/none\" }",
            "is in \"DIR/none\" but cannot be read: there is no such file",
        ),
        (
            "{ file = \"DIR/empty\" }",
            "is in \"DIR/empty\" but it is empty",
        ),
        (
            "{ file = \"DIR/conf.d\" }",
            "is in \"DIR/conf.d\" but it is not a file",
        ),
        (
            "{ file = \"DIR/open\" }",
            "is in \"DIR/open\" but other users may read or write it; chmod 0600, or 0640 with a group of its own",
        ),
        (
            "{ credential = \"none\" }",
            "is in \"DIR/credentials/none\" but cannot be read: there is no such file",
        ),
    ] {
        assert_eq!(
            fixture.errors(&secret(value)),
            [format!("{prefix} {said}")],
            "{value}"
        );
    }
    assert_eq!(
        fixture.errors(&secret("{ file = \"canary-5ecret\" }")),
        [format!(
            "{prefix}.file must be an absolute path, never the secret itself; its value is not shown here"
        )]
    );
    assert_eq!(
        fixture.errors(&secret("{ credential = \"../secret\" }")),
        [format!(
            "{prefix}.credential is \"../secret\" but must be the name of a systemd credential, without /"
        )]
    );
    let text = fixture.fill(&secret("{ credential = \"hubspot\" }"));
    fixture.write("freshd.toml", &text, 0o644);
    let errors = load(
        &fixture.path("freshd.toml"),
        &Defaults {
            credentials_dir: None,
            ..Defaults::system(&|_| None)
        },
    )
    .unwrap_err();
    assert!(
        errors[0]
            .message
            .contains("$CREDENTIALS_DIRECTORY is not set"),
        "{errors:?}"
    );
}

#[test]
fn a_path_longer_than_a_socket_address_is_refused() {
    let fixture = Fixture::new();
    let path = |length: usize| format!("/{}/s", "a".repeat(length - 3));
    let text = |length| app(&format!("socket = {:?}", path(length)));
    assert!(fixture.load(&text(107)).is_ok());
    let errors = fixture.errors(&text(108));
    assert!(
        errors[0].ends_with("must be at most 107 bytes long (unix(7))"),
        "{errors:?}"
    );
}

#[test]
fn a_check_outside_the_service_names_the_credentials_it_could_not_read() {
    let fixture = Fixture::new();
    fixture.write(
        "freshd.toml",
        include_str!("../../config/freshd.toml"),
        0o644,
    );
    let file = fixture.path("freshd.toml");
    let outside = Defaults {
        credentials_dir: None,
        ..Defaults::system(&|_| None)
    };
    let description = check(&file, &outside).unwrap();
    assert_eq!(description.unread_credentials, ["example", "hubspot"]);
    assert!(
        description
            .to_string()
            .ends_with("systemd credentials example, hubspot\n")
    );
    assert_eq!(load(&file, &outside).unwrap_err().len(), 2);
    let inside = check(&file, &fixture.defaults()).unwrap();
    assert_eq!(inside.unread_credentials, Vec::<String>::new());
    assert_eq!(
        inside,
        describe(
            &fixture
                .load(include_str!("../../config/freshd.toml"))
                .unwrap()
        )
    );
}

proptest::proptest! {
    /// Whatever is broken in it: an error or a configuration, and no panic.
    #[test]
    fn a_damaged_example_never_panics(at in 0usize..4500, cut in 0usize..60, put in ".{0,12}") {
        let example = uncommented(include_str!("../../config/freshd.toml"));
        let mut bytes = example.into_bytes();
        let start = at.min(bytes.len());
        let end = (start + cut).min(bytes.len());
        bytes.splice(start..end, put.into_bytes());
        let fixture = Fixture::new();
        std::fs::write(fixture.path("freshd.toml"), bytes).unwrap();
        for error in load(&fixture.path("freshd.toml"), &fixture.defaults()).err().unwrap_or_default() {
            proptest::prop_assert!(!error.key.is_empty() && !error.message.contains(CANARY));
        }
    }
}

#[test]
fn one_newline_is_cut_off_a_secret_and_nothing_else() {
    let fixture = Fixture::new();
    for (content, secret) in [
        ("s", "s"),
        ("s\n", "s"),
        ("s\r\n", "s"),
        ("s\n\n", "s\n"),
        (" s ", " s "),
    ] {
        fixture.write("secret", content, 0o640);
        let config = fixture.load(&provider("")).unwrap();
        let read = config.providers["a"]
            .registration
            .client_secret
            .as_ref()
            .unwrap();
        assert_eq!(read.expose(), secret);
    }
}

#[test]
fn many_errors_are_reported_at_once_in_the_order_of_the_files() {
    let fixture = Fixture::new();
    fixture.write("conf.d/10-app.toml", "[app.b]\nunix-uid = 1\n", 0o644);
    let errors = fixture.errors(
        "[refresh]\nmargin = \"x\"\nfloor = 1\nfoo = 1\n[provider.a]\nclient-auth = \"x\"\nrate = \"x\"\n",
    );
    let keys: Vec<&str> = errors
        .iter()
        .filter_map(|error| error.split(' ').nth(1))
        .collect();
    assert_eq!(
        keys,
        [
            "refresh.margin",
            "refresh.floor",
            "refresh.foo",
            "provider.a.token-endpoint",
            "provider.a.client-id",
            "provider.a.client-auth",
            "provider.a.rate",
            "app.b.may",
            "app.b.providers",
        ]
    );
    assert!(
        errors[8].starts_with("DIR/conf.d/10-app.toml:1: "),
        "{}",
        errors[8]
    );
}

#[test]
fn sections_come_from_any_file_but_a_key_from_one() {
    let fixture = Fixture::new();
    fixture.write(
        "conf.d/20-b.toml",
        &fixture.fill(&provider("").replace(".a]", ".b]")),
        0o644,
    );
    fixture.write("conf.d/10-a.toml", "[refresh]\nfloor = \"2s\"", 0o644);
    fixture.write("conf.d/.hidden.toml", "nonsense", 0o644);
    fixture.write("conf.d/README", "nonsense", 0o644);
    let config = fixture.load("[refresh]\nmargin = \"1m\"").unwrap();
    assert_eq!(
        config.files,
        ["freshd.toml", "conf.d/10-a.toml", "conf.d/20-b.toml"].map(|name| fixture.path(name))
    );
    assert_eq!(config.providers["b"].policy.floor, Duration::from_secs(2));
    assert_eq!(config.providers["b"].policy.margin, Duration::from_secs(60));

    assert_eq!(
        fixture.errors("[refresh]\nfloor = \"1s\""),
        ["DIR/conf.d/10-a.toml:2: refresh.floor is set in DIR/freshd.toml:2 already; set it once"]
    );
}

#[test]
fn broken_toml_names_the_line_and_the_key_but_quotes_nothing() {
    let fixture = Fixture::new();
    for (text, place) in [
        (
            "[provider.a]\nclient-id = canary-5ecret\n",
            "DIR/freshd.toml:2: provider.a.client-id is not TOML: ",
        ),
        (
            "[provider.a]\nclient-secret = \"canary-5ecret\n",
            "DIR/freshd.toml:2: provider.a.client-secret is not TOML: ",
        ),
        (
            "[provider.a]\nclient-secret = \"canary-5ecret\" x\n",
            "DIR/freshd.toml:2: provider.a.client-secret is not TOML: ",
        ),
        (
            "[provider.a]\nclient-secret = \"\\qcanary-5ecret\"\n",
            "DIR/freshd.toml:2: provider.a.client-secret is not TOML: ",
        ),
        (
            "[provider.a]\nclient-secret = { canary-5ecret }\n",
            "DIR/freshd.toml:2: provider.a.client-secret is not TOML: ",
        ),
        ("canary-5ecret\n", "DIR/freshd.toml:1: line is not TOML: "),
        (
            "[refresh]\nmargin = \"1s\"\nmargin = \"2s\"\n",
            "DIR/freshd.toml:3: refresh.margin is not TOML: ",
        ),
    ] {
        let errors = fixture.errors(text);
        assert!(errors[0].starts_with(place), "{text}: {errors:?}");
        assert!(!errors.concat().contains("canary"), "{errors:?}");
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let fixture = Fixture::new();
    let errors = load(&fixture.path("none.toml"), &fixture.defaults()).unwrap_err();
    assert_eq!(errors.len(), 1);
    assert!(errors[0].unopened);
    assert!(
        errors[0]
            .to_string()
            .ends_with("none.toml: file cannot be read: there is no such file")
    );
}

#[test]
fn a_file_that_is_no_text_is_wrong_and_one_that_names_a_missing_file_too() {
    let fixture = Fixture::new();
    let file = fixture.path("odd.toml");
    for (content, said) in [
        (b"\xff".as_slice(), "not UTF-8 text"),
        (
            b"[provider.x]\nprofile = \"hubspot\"\nclient-id = \"c\"\nclient-secret = { file = \"/nowhere/secret\" }",
            "/nowhere/secret",
        ),
    ] {
        std::fs::write(&file, content).unwrap();
        let errors = load(&file, &fixture.defaults()).unwrap_err();
        assert!(errors[0].to_string().contains(said), "{errors:?}");
        assert!(!errors[0].unopened, "it was opened: {errors:?}");
    }
}

#[test]
fn no_secret_shows_in_debug_or_in_the_description() {
    let fixture = Fixture::new();
    let config = fixture
        .load(include_str!("../../config/freshd.toml"))
        .unwrap();
    let description = describe(&config);
    let json = serde_json::to_string(&description).unwrap();
    let shown = format!("{config:?}{config:#?}{description}{description:?}{json}");
    assert!(!shown.contains("canary"), "{shown}");
    assert!(shown.contains("redacted"));
}

#[test]
fn the_description_says_what_was_understood() {
    let fixture = Fixture::new();
    let text = format!(
        "{}{}",
        provider("rate = \"100/m\"\nscopes = [\"a\", \"b\"]\n"),
        app("unix-uid = 33")
    );
    let config = fixture.load(&text).unwrap();
    let description = describe(&config).to_string();
    for line in [
        "state         /var/lib/freshd\n",
        "provider a\n  tokens      https://a.example/token\n  revocation  no endpoint\n",
        "  client      id, authentication basic\n  rotation    unknown\n",
        "  margin      5m, floor 1s\n  rests       after 3d or 100 unused refreshes\n",
        "  scopes      a b\n",
        "app crm\n  peer        uid 33\n  namespace   default\n  providers   *\n  may         read\n",
    ] {
        assert!(description.contains(line), "{description}");
    }
}

#[test]
fn without_root_everything_is_in_the_xdg_directories() {
    let env = |pairs: &'static [(&str, &str)]| {
        move |name: &str| {
            pairs
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value.to_string())
        }
    };
    let defaults = Defaults::user(&env(&[
        ("HOME", "/home/u"),
        ("XDG_RUNTIME_DIR", "/run/user/1"),
    ]));
    assert_eq!(
        defaults.file,
        Path::new("/home/u/.config/freshd/freshd.toml")
    );
    assert_eq!(
        defaults.daemon.key_file,
        Path::new("/home/u/.config/freshd/key")
    );
    assert_eq!(
        defaults.daemon.state_dir,
        Path::new("/home/u/.local/state/freshd")
    );
    assert_eq!(
        defaults.daemon.socket,
        Path::new("/run/user/1/freshd/shared/freshd.sock")
    );
    assert!(defaults.daemon.make_key);
    let defaults = Defaults::user(&env(&[
        ("HOME", "/home/u"),
        ("XDG_CONFIG_HOME", "/c"),
        ("XDG_STATE_HOME", "relative"),
    ]));
    assert_eq!(defaults.file, Path::new("/c/freshd/freshd.toml"));
    assert_eq!(
        defaults.daemon.app_socket_dir,
        Path::new("/home/u/.local/state/freshd/run/app")
    );
    let system = Defaults::system(&|_| None);
    assert_eq!(system.file, Path::new("/etc/freshd/freshd.toml"));
    assert_eq!(
        system.daemon.admin_socket,
        Path::new("/run/freshd/admin/freshd.sock")
    );
    assert!(!system.daemon.make_key);
}

#[test]
fn when_refreshes_happen_is_read_per_provider_over_the_defaults() {
    let fixture = Fixture::new();
    let text = "[refresh]\nrefuse-after = \"2d\"\nrefresh-token-warning = \"10d\"\n".to_owned()
        + &provider(
            "refresh = \"on-demand\"\nrefresh-not-before = \"570s\"\nrefuse-after = \"6h\"",
        );
    let policy = &fixture.load(&text).unwrap().providers["a"].policy;
    assert_eq!(policy.mode, Mode::OnDemand);
    assert_eq!(policy.refresh_not_before, Some(Duration::from_secs(570)));
    assert_eq!(policy.refuse_after, Duration::from_secs(6 * 3600));
    assert_eq!(
        policy.refresh_token_warning,
        Duration::from_secs(10 * 86_400)
    );
    let policy = &fixture
        .load(&provider("refresh-while-alive = true"))
        .unwrap()
        .providers["a"]
        .policy;
    assert_eq!(
        (policy.mode, policy.refresh_while_alive),
        (Mode::Scheduled, true)
    );
    assert_eq!(policy.refuse_after, Duration::from_secs(86_400));
    assert_eq!(
        policy.refresh_token_warning,
        Duration::from_secs(7 * 86_400)
    );
    assert_eq!(policy.refresh_not_before, None);
}

#[test]
fn a_cron_expression_names_the_next_moment_in_utc() {
    let at = |text| crate::refresh::time::UnixTime::from_rfc3339(text).unwrap();
    let next = |cron, after| next_of_cron(cron, at(after));
    assert_eq!(
        next("0 0 3 * * *", "2026-01-02T03:00:00Z"),
        Some(at("2026-01-03T03:00:00Z"))
    );
    assert_eq!(
        next("0 30 3 1 1 *", "2026-01-02T03:00:00Z"),
        Some(at("2027-01-01T03:30:00Z"))
    );
    assert_eq!(next("off", "2026-01-02T03:00:00Z"), None);
}
