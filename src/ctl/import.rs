//! `import` of one grant, and what one object of an import holds.

use std::io::Read;

use hyper::Method;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::Session;
use super::args::{self, Import};
use super::call_error::CallError;
use super::client::{Call, grant_path};
use super::failure::{Exit, Failure};
use super::output::{escape, exact};
use crate::config;
use crate::local_api::types::{ImportAnswer, ImportRequest, Problem, mistaken};

/// No token set is longer, in bytes; a line that is, is not one.
pub(super) const OBJECT_LIMIT: usize = 1 << 20;

/// One grant to import. Holds secrets, so it has no `Debug`.
pub(super) struct Entry {
    pub namespace: Option<String>,
    pub user: String,
    /// `provider`, or `provider:account`.
    pub provider: String,
    pub tokens: ImportRequest,
}

/// A line that names no grant, or whose tokens can't be read.
pub(super) struct Malformed {
    pub user: Option<String>,
    pub provider: Option<String>,
    /// Names the member and the rule, never a value: it may be a secret.
    pub why: String,
}

/// The names under which servers tell a refresh token's lifetime.
const REFRESH_TOKEN_LIFETIMES: [&str; 3] = [
    "refresh_token_expires_in",
    "x_refresh_token_expires_in",
    "refresh_expires_in",
];

/// Reads a JSON object. serde's own messages quote values, so only the place is told.
fn object(text: &[u8]) -> Result<Map<String, Value>, String> {
    serde_json::from_slice(text)
        .map_err(|error| format!("this is not a JSON object (column {})", error.column()))
}

/// Takes a string out of `members`; absent and null are `None`.
fn string(members: &mut Map<String, Value>, name: &str) -> Result<Option<String>, String> {
    match members.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("{name} must be a string")),
    }
}

fn tokens(members: &mut Map<String, Value>) -> Result<ImportRequest, String> {
    let tokens = ImportRequest {
        access_token: string(members, "access_token")?,
        refresh_token: string(members, "refresh_token")?,
        token_type: string(members, "token_type")?,
        expires_in: members.remove("expires_in"),
        expires_at: members.remove("expires_at"),
        obtained_at: members.remove("obtained_at"),
        refresh_token_expires_at: members.remove("refresh_token_expires_at"),
        refresh_token_expires_in: REFRESH_TOKEN_LIFETIMES
            .into_iter()
            .find_map(|name| members.remove(name)),
        scope: members.remove("scope"),
        others: Default::default(),
    };
    let others = members.keys().map(|name| (name.clone(), IgnoredAny));
    let tokens = ImportRequest {
        others: others.collect(),
        ..tokens
    };
    if let Some((name, meant)) = tokens.mistaken() {
        return Err(mistaken(&escape(name), meant));
    }
    if tokens.access_token.is_none() && tokens.refresh_token.is_none() {
        return Err("there is neither an access_token nor a refresh_token".to_owned());
    }
    Ok(tokens)
}

/// Whether a line is the header or the end of an export with secrets: told apart, and no grant.
pub(super) fn mark(text: &[u8]) -> Option<Mark> {
    // Grants begin otherwise; most lines are not read twice.
    if !text.starts_with(b"{\"freshd_export") {
        return None;
    }
    let members = object(text).ok()?;
    let is = |name| members.contains_key(name);
    is("freshd_export")
        .then_some(Mark::Header)
        .or_else(|| is("freshd_export_end").then_some(Mark::End))
}

/// What frames an export with secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Header,
    End,
}

/// Reads one line of a JSONL import.
pub(super) fn line(text: &[u8]) -> Result<Entry, Malformed> {
    let mut members = object(text).map_err(|why| Malformed {
        user: None,
        provider: None,
        why,
    })?;
    let shown = |name: &str| members.get(name).and_then(Value::as_str).map(str::to_owned);
    let (user, provider) = (shown("user"), shown("provider"));
    entry(&mut members).map_err(|why| Malformed {
        user,
        provider,
        why,
    })
}

fn entry(members: &mut Map<String, Value>) -> Result<Entry, String> {
    let named = |name: &str, text: Option<String>| text.ok_or_else(|| format!("{name} is missing"));
    let rule = |name: &'static str| move |why: String| format!("{name}: {why}");
    let user = named("user", string(members, "user")?)?;
    let user = args::user(&user).map_err(rule("user"))?;
    let mut provider = named("provider", string(members, "provider")?)?;
    if let Some(account) = string(members, "account")?.filter(|account| !account.is_empty()) {
        if provider.contains(':') {
            return Err("provider has an account already, and so has account".to_owned());
        }
        provider = format!("{provider}:{account}");
    }
    let provider = args::name(&provider).map_err(rule("provider"))?;
    let namespace = string(members, "namespace")?;
    if let Some(namespace) = &namespace {
        config::name(namespace)
            .map_err(|why| format!("namespace: {namespace:?} is no possible name: it {why}"))?;
    }
    Ok(Entry {
        namespace,
        user,
        provider,
        tokens: tokens(members)?,
    })
}

/// Makes the request for one import.
pub(super) fn call(user: &str, provider: &str, tokens: &ImportRequest, args: &Import) -> Call {
    let mut call = Call::new(Method::PUT, grant_path(user, provider)).json(tokens);
    if args.replace {
        call = call.query("replace", "true");
    }
    if args.hold {
        call = call.query("hold", "true");
    }
    call
}

/// Returns whether the grant is there and `--replace` was not said.
fn is_there(problem: &Problem) -> bool {
    problem.kind == "urn:freshd:grant-exists"
}

/// Imports one grant from standard input.
pub(super) async fn import(session: &mut Session<'_, '_>, args: &Import) -> Result<Exit, Failure> {
    let (Some(user), Some(provider)) = (&args.user, &args.provider) else {
        return Err(Failure::new(
            Exit::Usage,
            "neither a grant nor --jsonl is named",
        ));
    };
    if let Some(namespace) = session.client.namespace() {
        let rule = |rule| format!("{namespace:?} is no possible name of a namespace: it {rule}");
        config::name(namespace).map_err(|why| Failure::new(Exit::Usage, rule(why)))?;
    }
    if session.console.terminals.stdin {
        session
            .console
            .note("reading JSON from the terminal; Ctrl-D ends it");
    }
    let bad = |why: String| Failure::new(Exit::Data, format!("standard input: {why}"));
    let mut text = Vec::new();
    (&mut session.console.stdin)
        .take(OBJECT_LIMIT as u64 + 1)
        .read_to_end(&mut text)
        .map_err(|error| Failure::new(Exit::Io, format!("cannot read standard input: {error}")))?;
    if text.len() > OBJECT_LIMIT {
        return Err(bad(format!(
            "longer than {OBJECT_LIMIT} bytes, so it is no token set"
        )));
    }
    if text.trim_ascii().is_empty() {
        return Err(Failure::new(Exit::Data, "standard input is empty"));
    }
    let mut members = object(&text).map_err(bad)?;
    let tokens = tokens(&mut members).map_err(bad)?;
    let call = call(user, provider, &tokens, args);
    let answer = match session.client.send(&call).await {
        Err(error) if matches!(&error, CallError::Refused(problem, _) if is_there(problem)) => {
            return Err(
                Failure::new(Exit::Attention, error.to_string()).hint("--replace replaces it")
            );
        }
        answer => answer?,
    };
    if session.look.json {
        session.console.print_body(&answer.body)?;
        return Ok(Exit::Ok);
    }
    let imported: ImportAnswer = answer.read()?;
    let grant = imported.grant;
    let mut text = format!(
        "{}: {} at {}, generation {}, {}",
        escape(&imported.result),
        escape(user),
        escape(provider),
        grant.generation,
        escape(&grant.state)
    );
    if !grant.reason.is_empty() {
        text.push_str(&format!(" ({})", escape(&grant.reason)));
    }
    if let Some(at) = &grant.expires_at {
        text.push_str(&format!(", expires {}", exact(at, answer.now)));
    }
    session.console.print(&format!("{text}\n"))?;
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_line_is_told_by_member_and_rule_and_never_by_value() {
        for (text, why) in [
            ("{", "this is not a JSON object (column 1)"),
            (r#"["canary"]"#, "this is not a JSON object (column 0)"),
            (
                r#"{"provider":"p","refresh_token":"canary"}"#,
                "user is missing",
            ),
            (
                r#"{"user":"..","provider":"p","refresh_token":"canary"}"#,
                "user: a user's name is not . or ..",
            ),
            (
                r#"{"user":"u","refresh_token":"canary"}"#,
                "provider is missing",
            ),
            (
                r#"{"user":"u","provider":"p","refresh_token":["canary"]}"#,
                "refresh_token must be a string",
            ),
            (
                r#"{"user":7,"provider":"p","refresh_token":"canary"}"#,
                "user must be a string",
            ),
            (
                r#"{"user":"u","provider":"p","access_token":"canary","expire_at":1}"#,
                "expire_at is not a member of an import; expires_at is, and is probably what is meant",
            ),
            (
                r#"{"user":"u","provider":"p","namespace":"A B","refresh_token":"canary"}"#,
                "namespace: \"A B\" is no possible name: it must be 1 to 64 of a-z, 0-9, \".\", \"_\" and \"-\", and begin with a letter or digit",
            ),
            (
                r#"{"user":"u","provider":"p"}"#,
                "there is neither an access_token nor a refresh_token",
            ),
            (
                r#"{"user":"u","provider":"p:a","account":"b","refresh_token":"canary"}"#,
                "provider has an account already, and so has account",
            ),
        ] {
            let Err(malformed) = line(text.as_bytes()) else {
                panic!("{text} was taken")
            };
            assert_eq!(malformed.why, why, "{text}");
        }
    }

    #[test]
    fn a_line_may_name_an_account_and_a_namespace() {
        let text = br#"{"user":"u","provider":"google","account":"work","namespace":"crm","refresh_token":"r","expires_in":"60","x":1}"#;
        let Ok(entry) = line(text) else {
            panic!("refused")
        };
        assert_eq!(
            (entry.user.as_str(), entry.provider.as_str()),
            ("u", "google:work")
        );
        assert_eq!(entry.namespace.as_deref(), Some("crm"));
        assert_eq!(entry.tokens.expires_in, Some(Value::from("60")));
    }
}
