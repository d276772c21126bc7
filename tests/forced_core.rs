//! What a core of the daemon would hold, if somebody with the power to do so forced one (I6).
//!
//! A process that is not dumpable, with a core limit of 0, leaves none; root can still take one with a debugger.
//! This reads what the kernel and debuggers would put in it: all memory but the mappings marked `MADV_DONTDUMP`.

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use hkdf::Hkdf;
use rustix::process::Pid;
use serde_json::{Value, json};
use sha2::Sha256;
use support::canary::{Canary, found_in};
use support::daemon::Config;
use support::{Freshd, Rotating, ScriptedServer};

#[tokio::test]
async fn a_forced_core_holds_no_key_and_no_idle_grant() {
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "SKIPPED, NOT TESTED: what a forced core holds: only root may read another's memory"
        );
        return;
    }
    let rotating = Rotating::new(3600).with_prefix("canary-in-a-core-");
    let server = ScriptedServer::start(rotating.script()).await;
    let mut freshd =
        Freshd::start(Config::new().provider("acme", &server, "rotation = \"strict\"")).await;
    let idle = rotating.issue("idle");
    freshd.import("idle", "acme", &idle.import()).await;
    let busy = rotating.issue("busy").import();
    freshd.import("busy", "acme", &busy).await;
    // The process that made the keys and was handed the tokens is gone; this one has read what it needed.
    freshd.restart().await;
    let path = support::daemon::grant_path("busy", "acme");
    let refreshed = freshd.post(&format!("{path}/refresh"), &json!({})).await;
    assert_eq!(refreshed.generation(), 2);
    freshd.grant("idle", "acme").await;

    let core = core_of(freshd.pid());

    let sought = |canaries: &[Canary]| -> Vec<String> {
        let mut found: Vec<String> = core
            .iter()
            .flat_map(|(mapping, bytes)| found_in(mapping, bytes, canaries))
            .collect();
        found.sort();
        found.dedup();
        found
    };
    let read = sought(&[Canary::new(
        "the busy user's access token",
        refreshed.token(),
    )]);
    assert!(
        !read.is_empty(),
        "the search finds what is there: a token that was just answered"
    );
    let key_file = std::fs::read(freshd.config.key_file()).unwrap();
    let mut canaries = keys_of(&freshd, &key_file);
    assert_eq!(canaries.len(), 6, "the keys that there are");
    canaries.push(Canary::new("the idle refresh token", idle.refresh_token));
    canaries.push(Canary::new("the idle access token", idle.access_token));
    let found = sought(&canaries);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Returns every mapping that a core would hold, with its name: what can be written, and was.
fn core_of(pid: Pid) -> Vec<(String, Vec<u8>)> {
    let pid = pid.as_raw_nonzero();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut core = Vec::new();
    let mut mapping = None;
    for line in smaps.lines() {
        let first = line.split(' ').next().unwrap_or_default();
        if let Some((from, to)) = first.split_once('-') {
            let address = |text| u64::from_str_radix(text, 16).unwrap();
            mapping = Some((line, address(from), address(to)));
        } else if line.starts_with("Anonymous:") && line.ends_with(" 0 kB") {
            // Untouched, or a file's own pages, which are the program.
            mapping = None;
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            let Some((name, from, to)) = mapping.take() else {
                continue;
            };
            if flags.split(' ').any(|flag| flag == "dd") {
                continue;
            }
            let mut bytes = vec![0; (to - from) as usize];
            // Guard pages and the kernel's own can't be read, by a core neither.
            if memory.read_exact_at(&mut bytes, from).is_ok() {
                core.push((name.to_owned(), bytes));
            }
        }
    }
    core
}

/// Unwraps the store's keyring as its documentation says it is wrapped.
fn keys_of(freshd: &Freshd, key_file: &[u8]) -> Vec<Canary> {
    let kek = STANDARD.decode(key_file.trim_ascii()).unwrap();
    let keyring = std::fs::read(freshd.config.state_dir().join("keyring")).unwrap();
    let keyring: Value = serde_json::from_slice(&keyring).unwrap();
    let field = |value: &Value| STANDARD.decode(value.as_str().unwrap()).unwrap();
    let store_id = field(&keyring["store_id"]);
    let derived = |info: &[u8]| {
        let mut key = [0; 32];
        Hkdf::<Sha256>::new(Some(&store_id), &kek)
            .expand(info, &mut key)
            .unwrap();
        key
    };
    let wrap_key = derived(b"freshd keyring wrap");
    let cipher = XChaCha20Poly1305::new(<&Key>::from(&wrap_key));
    let unwrap = |purpose: &str, id: u64, wrapped: &Value| {
        let wrapped = field(wrapped);
        let id = u32::try_from(id).unwrap().to_le_bytes();
        let aad = [
            b"freshd keyring wrap",
            &store_id[..],
            &id,
            purpose.as_bytes(),
        ]
        .concat();
        let nonce = XNonce::try_from(&wrapped[1..25]).unwrap();
        let payload = Payload {
            msg: &wrapped[25..],
            aad: &aad,
        };
        cipher.decrypt(&nonce, payload).unwrap()
    };
    let mut keys = vec![
        Canary::new("the key-encryption key", kek.clone()),
        Canary::new("the wrapping key", wrap_key),
        Canary::new(
            "what both are expanded from",
            Hkdf::<Sha256>::extract(Some(&store_id), &kek).0.to_vec(),
        ),
        Canary::new("the commitment key", derived(b"freshd keyring commitment")),
        Canary::new(
            "the fingerprint key",
            unwrap("fingerprint", 0, &keyring["fingerprint_key"]),
        ),
    ];
    for key in keyring["keys"].as_array().unwrap() {
        let id = key["id"].as_u64().unwrap();
        keys.push(Canary::new(
            "a data key",
            unwrap("data", id, &key["wrapped"]),
        ));
    }
    keys
}
