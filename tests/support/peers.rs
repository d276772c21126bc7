//! What real authorization servers of other makers have in common.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::Deserialize;
use serde_json::Value;
use tokio::process::Command;

use super::within;

/// What the server says about itself when it listens.
#[derive(Clone, Debug, Deserialize)]
pub struct About {
    pub issuer: String,
    pub token_endpoint: String,
    pub introspection_endpoint: String,
    pub revocation_endpoint: String,
    pub client_id: String,
    pub client_secret: String,
}

/// Returns a client without proxies.
pub fn http_client() -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy()
        .build()
        .expect("a plain client")
}

/// Sends a form with the client's credentials; returns the status and the answer.
pub async fn ask(
    http: &reqwest::Client,
    about: &About,
    url: &str,
    form: &[(&str, &str)],
) -> (u16, Value) {
    // RFC 6749 §2.3.1: form-encoded before they are joined.
    let encoded =
        |text: &str| -> String { url::form_urlencoded::byte_serialize(text.as_bytes()).collect() };
    let (id, secret) = (encoded(&about.client_id), encoded(&about.client_secret));
    let request = http.post(url).basic_auth(id, Some(secret)).form(form);
    let answer = within(url, request.send()).await.expect("the server runs");
    let status = answer.status().as_u16();
    (status, answer.json().await.expect("it answers JSON"))
}

/// Returns a directory under `target/` that holds a server of `tests/peers/` and its packages, which `install`
/// puts beside the sources.
///
/// It is named by a hash of the sources and made by renaming, so that it is whole where it is.
pub async fn installed(name: &str, sources: &[&str], install: Vec<Command>) -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/peers")
        .join(name);
    let texts: Vec<(&str, Vec<u8>)> = sources
        .iter()
        .map(|name| {
            let text = std::fs::read(directory.join(name));
            (*name, text.expect("it is in the repository"))
        })
        .collect();
    let peers = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("peers");
    let home = peers.join(format!("{name}-{:016x}", fingerprint(&texts)));
    std::fs::create_dir_all(&peers).expect("target/ is ours");
    // Several processes at it would all be late.
    let turn = std::fs::File::create(peers.join(format!("{name}.lock"))).expect("it is ours");
    turn.lock().expect("a lock");
    if home.exists() {
        return home;
    }
    let new = tempfile::Builder::new()
        .prefix("new-")
        .tempdir_in(&peers)
        .expect("it is ours");
    for (name, text) in &texts {
        std::fs::write(new.path().join(name), text).expect("it is ours");
    }
    for mut command in install {
        command.current_dir(new.path()).stdout(Stdio::null());
        let status = command.status().await;
        let status = status.unwrap_or_else(|e| panic!("{command:?}: {e} (tests/run installs it)"));
        assert!(status.success(), "{command:?}: {status}");
    }
    std::fs::rename(new.keep(), &home).expect("both are ours");
    home
}

fn fingerprint(texts: &[(&str, Vec<u8>)]) -> u64 {
    use std::hash::{Hash, Hasher};
    let mut hasher = std::hash::DefaultHasher::new();
    texts.hash(&mut hasher);
    hasher.finish()
}
