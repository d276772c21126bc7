//! `export` without secrets: what is held, as lines that `import --jsonl` reads once the tokens are added.

use serde::Serialize;

use super::Session;
use super::args::{Export, Grants};
use super::failure::{Exit, Failure};
use super::grants::{PAGE, page};
use super::output::count;
use super::secrets;
use crate::local_api::types::{GrantList, GrantView};

/// One grant: first the members that an import reads, then what it passes over.
#[derive(Serialize)]
struct Line<'a> {
    namespace: &'a str,
    user: &'a str,
    provider: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    account: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token_expires_at: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'a str>,
    state: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    since: &'a str,
    generation: u64,
    has_refresh_token: bool,
    imported_at: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    refreshed_at: Option<&'a str>,
}

impl<'a> Line<'a> {
    fn of(grant: &'a GrantView) -> Line<'a> {
        Line {
            namespace: &grant.namespace,
            user: &grant.user,
            provider: &grant.provider,
            account: &grant.account,
            expires_at: grant.expires_at.as_deref(),
            refresh_token_expires_at: grant.refresh_token_expires_at.as_deref(),
            scope: grant.scope.as_deref(),
            state: &grant.state,
            reason: &grant.reason,
            since: &grant.since,
            generation: grant.generation,
            has_refresh_token: grant.has_refresh_token,
            imported_at: &grant.imported_at,
            refreshed_at: grant.refreshed_at.as_deref(),
        }
    }
}

/// Prints a JSON object per grant, page by page.
pub(super) async fn export(session: &mut Session<'_, '_>, args: Export) -> Result<Exit, Failure> {
    if args.with_secrets {
        return secrets::online(session, &args).await;
    }
    let filter = Grants {
        state: args.state,
        provider: args.provider,
        missing_scope: args.missing_scope,
        ..Grants::default()
    };
    let (mut exported, mut cursor) = (0, None::<String>);
    loop {
        let mut call = page(&filter, PAGE, cursor.as_deref());
        if cursor.is_none() {
            // So that the audit tells of the whole, and not of each page.
            call = call.query("export", "true");
        }
        let list: GrantList = session.client.send(&call).await?.read()?;
        for grant in &list.grants {
            session.console.print_json(&Line::of(grant))?;
        }
        exported += list.grants.len() as u64;
        // A cursor that does not move would never end.
        let next = list
            .next_cursor
            .filter(|next| Some(next) != cursor.as_ref());
        if next.is_none() {
            session.console.note(&format!(
                "{}, without tokens; with them: freshctl export --with-secrets --recipient KEY",
                count(exported, "grant")
            ));
            return Ok(Exit::Ok);
        }
        cursor = next;
    }
}
