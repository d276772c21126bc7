//! `providers`.

use super::Session;
use super::client::Call;
use super::failure::{Exit, Failure};
use super::output::{length, or_dash, relative_or_dash, table};
use crate::local_api::types::ProviderList;

/// Lists the providers.
pub(super) async fn providers(session: &mut Session<'_, '_>) -> Result<Exit, Failure> {
    let answer = session.client.send(&Call::get("/v1/providers")).await?;
    if session.look.json {
        session.console.print_body(&answer.body)?;
        return Ok(Exit::Ok);
    }
    let list: ProviderList = answer.read()?;
    if list.providers.is_empty() {
        session.console.note("no provider is configured");
        return Ok(Exit::Ok);
    }
    let rows: Vec<Vec<String>> = list
        .providers
        .iter()
        .map(|provider| {
            vec![
                provider.name.clone(),
                provider.state.clone(),
                or_dash(&provider.reason).to_owned(),
                relative_or_dash(provider.since.as_deref(), answer.now),
                provider
                    .grants
                    .iter()
                    .map(|count| count.grants)
                    .sum::<u64>()
                    .to_string(),
                provider.in_flight.to_string(),
                // A margin is a few minutes; anything no clock could hold shows as the largest number.
                length(provider.margin.round() as u64),
                provider.rotation.clone(),
                provider.token_endpoint.clone(),
            ]
        })
        .collect();
    let header = [
        "PROVIDER",
        "STATE",
        "REASON",
        "SINCE",
        "GRANTS",
        "IN FLIGHT",
        "MARGIN",
        "ROTATION",
        "TOKEN ENDPOINT",
    ];
    let text = table(session.look, "", &header, &rows);
    session.console.print(&text)?;
    Ok(Exit::Ok)
}
