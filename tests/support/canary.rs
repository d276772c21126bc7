//! Secrets that can be told from everything else, and the search for them in every disguise.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

/// A secret with a name for the report.
#[derive(Clone)]
pub struct Canary {
    pub name: String,
    pub secret: Vec<u8>,
}

impl Canary {
    pub fn new(name: &str, secret: impl Into<Vec<u8>>) -> Canary {
        Canary {
            name: name.to_owned(),
            secret: secret.into(),
        }
    }

    /// Every way in which this secret could have got somewhere, each with its name.
    fn disguises(&self) -> Vec<(String, Vec<u8>)> {
        let secret = &self.secret;
        let mut found = vec![("plain".to_owned(), secret.clone())];
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        found.push(("HEX".to_owned(), hex.to_uppercase().into_bytes()));
        found.push(("hex".to_owned(), hex.into_bytes()));
        let listed = format!("{secret:?}");
        let listed = listed.trim_matches(['[', ']']).to_owned();
        found.push(("a list of bytes".to_owned(), listed.into_bytes()));
        for (name, engine) in [("base64", &STANDARD), ("base64url", &URL_SAFE)] {
            for shift in 0..3 {
                found.push((
                    format!("{name}, {shift} bytes in"),
                    aligned(engine, secret, shift),
                ));
            }
        }
        if let Ok(text) = std::str::from_utf8(secret) {
            let json = serde_json::to_string(text).expect("a string is JSON");
            found.push((
                "JSON".to_owned(),
                json.trim_matches('"').to_owned().into_bytes(),
            ));
            found.push((
                "escaped".to_owned(),
                format!("{}", text.escape_debug()).into_bytes(),
            ));
            let form: String = url::form_urlencoded::byte_serialize(secret).collect();
            found.push(("form-encoded".to_owned(), form.clone().into_bytes()));
            let percent =
                percent_encoding::percent_encode(secret, percent_encoding::NON_ALPHANUMERIC);
            found.push((
                "percent-encoded".to_owned(),
                percent.to_string().into_bytes(),
            ));
            // Encoded twice: a Basic header holds the form-encoded secret in base64 (RFC 6749 §2.3.1).
            for shift in 0..3 {
                let inner = aligned(&STANDARD, form.as_bytes(), shift);
                found.push((format!("Basic header, {shift} bytes in"), inner));
            }
        }
        found
    }
}

/// The base64 of `secret` when `shift` bytes stand before it: only the characters that it alone decides.
fn aligned(engine: &impl Engine, secret: &[u8], shift: usize) -> Vec<u8> {
    let padded = [vec![0; shift], secret.to_vec()].concat();
    let whole = &padded[..padded.len() / 3 * 3];
    let text = engine.encode(whole).into_bytes();
    // The first group of four also depends on what stands before, unless nothing does.
    text[if shift == 0 { 0 } else { 4 }..].to_vec()
}

/// Returns a line for each secret that `haystack` holds, in whichever disguise.
pub fn found_in(place: &str, haystack: &[u8], canaries: &[Canary]) -> Vec<String> {
    let mut found = Vec::new();
    for canary in canaries {
        for (disguise, needle) in canary.disguises() {
            assert!(
                needle.len() >= 8,
                "{} is too short to be told from chance",
                canary.name
            );
            if memchr::memmem::find(haystack, &needle).is_some() {
                found.push(format!("{} ({disguise}) in {place}", canary.name));
            }
        }
    }
    found
}

/// Searches every file below `directory`, except those in `but_for`.
pub fn found_below(directory: &Path, but_for: &[&Path], canaries: &[Canary]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("the directory is ours") {
        let entry = entry.expect("the directory is ours");
        let path = entry.path();
        if but_for.contains(&path.as_path()) {
            continue;
        }
        let kind = entry.file_type().expect("it is there");
        if kind.is_dir() {
            found.extend(found_below(&path, but_for, canaries));
        } else if kind.is_file() {
            let bytes = std::fs::read(&path).expect("it is ours");
            found.extend(found_in(&path.display().to_string(), &bytes, canaries));
        }
    }
    found
}
