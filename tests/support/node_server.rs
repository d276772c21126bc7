//! npm `oidc-provider`, a real authorization server, and its users.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;

use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

use super::peers::{self, About};
use super::within;

const SOURCES: [&str; 6] = [
    ".npmrc",
    "package.json",
    "package-lock.json",
    "server.mjs",
    "store.mjs",
    "login.mjs",
];

/// The running server; it ends when this is dropped.
pub struct NodeServer {
    pub about: About,
    announcement: String,
    directory: PathBuf,
    http: reqwest::Client,
    /// Holds its standard input open, too: the server ends with it.
    _child: Child,
}

/// What the server has seen.
#[derive(Clone, Debug, Deserialize)]
pub struct Counters {
    /// Successful refreshes by user.
    pub refreshes: BTreeMap<String, u64>,
    /// Refused token requests.
    pub refused: u64,
    /// Used refresh tokens that were presented again; each one ended its family.
    pub replays: u64,
}

impl NodeServer {
    /// Installs the server's packages unless they are there, and starts it.
    pub async fn start(access_token_ttl: u64) -> NodeServer {
        let directory = installed().await;
        let mut child = Command::new("node")
            .arg("server.mjs")
            .current_dir(&directory)
            .env("ACCESS_TOKEN_TTL", access_token_ttl.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("node is installed (tests/run does it)");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let announcement = within("oidc-provider to listen", lines.next_line())
            .await
            .expect("its stdout is ours")
            .expect("oidc-provider says where it listens");
        let about = serde_json::from_str(&announcement).expect("server.mjs prints JSON");
        // It prints advice later on, and a closed pipe would end it.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let http = peers::http_client();
        NodeServer {
            about,
            announcement,
            directory,
            http,
            _child: child,
        }
    }

    /// Logs users in by a code flow with PKCE, and returns each one's token response.
    pub async fn log_in(&self, users: &[String]) -> BTreeMap<String, Value> {
        let mut child = Command::new("node")
            .arg("login.mjs")
            .args(users)
            .current_dir(&self.directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("node is installed");
        let mut stdin = child.stdin.take().expect("it is piped");
        stdin
            .write_all(self.announcement.as_bytes())
            .await
            .expect("login.mjs reads it");
        drop(stdin);
        let output = within("the logins", child.wait_with_output())
            .await
            .expect("our child");
        assert!(output.status.success(), "login.mjs: {}", output.status);
        let text = String::from_utf8(output.stdout).expect("JSON is UTF-8");
        let answers = text.lines().map(|line| {
            let mut answer: Value = serde_json::from_str(line).expect("login.mjs prints JSON");
            let user = answer["user"]
                .as_str()
                .expect("it names the user")
                .to_owned();
            (user, answer["tokens"].take())
        });
        answers.collect()
    }

    /// Asks the server whether an access token is alive (RFC 7662).
    pub async fn is_active(&self, token: &str) -> bool {
        let answer = self
            .ask(&self.about.introspection_endpoint, &[("token", token)])
            .await;
        answer.1["active"]
            .as_bool()
            .expect("RFC 7662 §2.2 requires it")
    }

    /// Presents a refresh token, as a client beside freshd would; returns the status and the answer.
    pub async fn refresh(&self, refresh_token: &str) -> (u16, Value) {
        let form = [
            ("grant_type", "refresh_token"),
            ("refresh_token", refresh_token),
        ];
        self.ask(&self.about.token_endpoint, &form).await
    }

    /// The user withdraws the grant at the server.
    pub async fn revoke(&self, user: &str) {
        let url = format!("{}/control/revoke?user={user}", self.about.issuer);
        let answer = self.http.post(url).send().await.expect("the server runs");
        let answer: Value = answer.json().await.expect("it answers JSON");
        assert_eq!(answer["revoked"], 1, "{user} has one grant");
    }

    /// Returns what the server has seen.
    pub async fn counters(&self) -> Counters {
        let url = format!("{}/control/counters", self.about.issuer);
        let answer = self.http.get(url).send().await.expect("the server runs");
        answer.json().await.expect("it answers JSON")
    }

    async fn ask(&self, url: &str, form: &[(&str, &str)]) -> (u16, Value) {
        peers::ask(&self.http, &self.about, url, form).await
    }
}

async fn installed() -> PathBuf {
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts"]);
    peers::installed("oidc-provider", &SOURCES, vec![npm]).await
}
