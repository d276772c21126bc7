//! `token` and `refresh`.

use std::time::Duration;

use serde_json::Value;

use super::Session;
use super::args::{Format, Token};
use super::client::{Call, grant_path};
use super::failure::{Exit, Failure};
use super::output::{escape, exact};
use crate::local_api::types::{RefreshRequest, TokenAnswer};

/// Prints an access token, and nothing else, to standard output.
pub(super) async fn token(session: &mut Session<'_, '_>, args: &Token) -> Result<Exit, Failure> {
    let mut call = Call::get(format!(
        "{}/token",
        grant_path(&args.grant.user, &args.grant.provider)
    ));
    if let Some(seconds) = args.min_ttl {
        call = call.query("min_ttl", &seconds.to_string());
    }
    if let Some(seconds) = args.wait {
        call = call
            .query("wait", &seconds.to_string())
            .waiting(Duration::from_secs(seconds));
    }
    // An admin who looks is not the user who is back.
    call = call.query("activity", if args.activity { "true" } else { "false" });
    let answer = session.client.send(&call).await?;
    if session.look.json || args.format == Format::Json {
        session.console.print_body(&answer.body)?;
        return Ok(Exit::Ok);
    }
    let token: TokenAnswer = answer.read()?;
    let line = match args.format {
        Format::Header => header(&token)?,
        _ => token.access_token,
    };
    session.console.print(&format!("{line}\n"))?;
    Ok(Exit::Ok)
}

/// Returns `Authorization: Bearer TOKEN` (RFC 6750 §2.1), the scheme as servers expect it, whatever its case was.
fn header(token: &TokenAnswer) -> Result<String, Failure> {
    let scheme = if token.token_type.eq_ignore_ascii_case("bearer") {
        "Bearer"
    } else {
        &token.token_type
    };
    let line = format!("Authorization: {scheme} {}", token.access_token);
    if line.chars().any(char::is_control) {
        return Err(Failure::new(
            Exit::Data,
            "the access token holds a control character, so it cannot stand in a header",
        )
        .hint("--format raw prints it as it is"));
    }
    Ok(line)
}

/// Refreshes now, unless `generation` is no longer the current one. The access token is not shown.
pub(super) async fn refresh(
    session: &mut Session<'_, '_>,
    user: &str,
    provider: &str,
    generation: Option<u64>,
) -> Result<Exit, Failure> {
    let path = format!("{}/refresh", grant_path(user, provider));
    let call = Call::post(path)
        .query("activity", "false")
        .json(&RefreshRequest { generation });
    let answer = session.client.send(&call).await?;
    if session.look.json {
        let mut value: Value = answer.read()?;
        if let Some(members) = value.as_object_mut() {
            members.remove("access_token");
        }
        session.console.print_json(&value)?;
        return Ok(Exit::Ok);
    }
    let token: TokenAnswer = answer.read()?;
    let expiry = match &token.expires_at {
        Some(at) => format!("expires {}", exact(at, answer.now)),
        None => "nobody knows when it expires".to_owned(),
    };
    let line = format!(
        "{} at {} has generation {}, {expiry}\n",
        escape(user),
        escape(provider),
        token.generation
    );
    session.console.print(&line)?;
    Ok(Exit::Ok)
}
