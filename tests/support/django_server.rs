//! PyPI `django-oauth-toolkit`, a real authorization server with a grace for used refresh tokens.

use std::process::Stdio;

use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::peers::{self, About};
use super::within;

/// The running server; it ends when this is dropped.
pub struct DjangoServer {
    pub about: About,
    http: reqwest::Client,
    /// Holds its standard input open, too: the server ends with it.
    _child: Child,
}

/// What the server has seen.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Counters {
    /// Token sets for refresh tokens, identical ones of the grace included.
    pub refreshes: u64,
    /// Refresh tokens refused.
    pub refused: u64,
}

impl DjangoServer {
    /// Installs the server's packages unless they are there, and starts it. A used refresh token brings the
    /// identical new set for `grace` seconds.
    pub async fn start(access_token_ttl: u64, grace: u64, users: &[&str]) -> DjangoServer {
        let mut venv = Command::new("python3");
        venv.args(["-m", "venv", "venv"]);
        let mut pip = Command::new("venv/bin/python");
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ]);
        pip.args(["--no-deps", "-r", "requirements.txt"]);
        let sources = ["requirements.txt", "server.py"];
        let directory = peers::installed("django", &sources, vec![venv, pip]).await;
        let mut child = Command::new(directory.join("venv/bin/python"))
            .arg("server.py")
            .args(users)
            .current_dir(&directory)
            .env("ACCESS_TOKEN_TTL", access_token_ttl.to_string())
            .env("GRACE", grace.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // It advises against the password grant.
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("it is installed");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let announcement = within("django to listen", lines.next_line())
            .await
            .expect("its stdout is ours")
            .expect("server.py says where it listens");
        DjangoServer {
            about: serde_json::from_str(&announcement).expect("server.py prints JSON"),
            http: peers::http_client(),
            _child: child,
        }
    }

    /// Logs a user in, and returns the token response.
    pub async fn log_in(&self, user: &str) -> Value {
        let form = [
            ("grant_type", "password"),
            ("username", user),
            ("password", user),
        ];
        let (status, tokens) = self.ask(&self.about.token_endpoint, &form).await;
        assert_eq!(status, 200, "{tokens}");
        tokens
    }

    /// Asks the server whether an access token is alive (RFC 7662).
    pub async fn is_active(&self, token: &str) -> bool {
        let endpoint = &self.about.introspection_endpoint;
        let (_, answer) = self.ask(endpoint, &[("token", token)]).await;
        answer["active"]
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
