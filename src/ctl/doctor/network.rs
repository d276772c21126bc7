//! The providers: name lookup, TLS, and an answer from each token endpoint to an empty form.

use url::Url;

use super::Findings;
use crate::config::Description;
use crate::token_endpoint::Outbound;
use crate::token_endpoint::probe::{self, Seen};

/// Looks at each provider's token endpoint.
pub(super) async fn providers(findings: &mut Findings, described: &Description) {
    let outbound = match outbound(described) {
        Ok(outbound) => outbound,
        Err(text) => {
            return findings.wrong(
                "providers",
                text,
                "mend outbound.ca-bundle or outbound.proxy",
            );
        }
    };
    if described.providers.is_empty() {
        let todo = "name one: [provider.NAME]; README.md begins with it";
        findings.wrong("providers", "none is configured", todo);
    }
    for provider in &described.providers {
        let check = format!("provider {}", provider.name);
        let Ok(endpoint) = provider.token_endpoint.parse::<Url>() else {
            continue; // a sound configuration holds URLs
        };
        match probe::ask(&endpoint, &outbound).await {
            Ok(seen) => answered(findings, &check, &endpoint, &seen),
            Err(code) => findings.wrong(
                &check,
                format!("{endpoint} cannot be reached ({code})"),
                unreachable(code, endpoint.host_str().unwrap_or_default()),
            ),
        }
    }
}

fn outbound(described: &Description) -> Result<Outbound, String> {
    let proxy = match &described.proxy {
        Some(proxy) => Some(
            proxy
                .parse()
                .map_err(|_| format!("the proxy {proxy} is no URL"))?,
        ),
        None => None,
    };
    let read = |file: &String| std::fs::read(file).map_err(|error| format!("{file}: {error}"));
    let ca_bundle = described.ca_bundle.as_ref().map(read).transpose()?;
    Ok(Outbound { proxy, ca_bundle })
}

fn answered(findings: &mut Findings, check: &str, endpoint: &Url, seen: &Seen) {
    let status = seen.status;
    let authorization = "this looks like the authorization URL, or like an address for people: token-endpoint must be \
        where token requests are posted; the provider's documentation names it";
    if let Some(host) = &seen.redirect {
        let text =
            format!("{endpoint} redirects to {host} ({status}), and a token request never follows");
        return findings.wrong(check, text, authorization);
    }
    if seen.html && status < 500 {
        let text = format!("{endpoint} answers with an HTML page ({status})");
        return findings.wrong(check, text, authorization);
    }
    match status {
        300..=399 => {
            let text =
                format!("{endpoint} redirects ({status}), and a token request never follows");
            findings.wrong(check, text, authorization);
        }
        404 | 405 | 410 | 501 => findings.wrong(
            check,
            format!("{endpoint} takes no token requests ({status})"),
            "look at token-endpoint: host and path are as the provider's documentation says?",
        ),
        429 | 500.. => findings.unknown(
            check,
            format!("{endpoint} has trouble of its own ({status})"),
            "look at the provider's status page; freshd tries again by itself",
        ),
        _ => findings.ok(
            check,
            format!("{endpoint} answers as a token endpoint ({status})"),
        ),
    }
}

fn unreachable(code: &str, host: &str) -> String {
    match code {
        "dns" => format!("the name does not resolve: getent hosts {host}; look at /etc/resolv.conf, and at token-endpoint for a typing error"),
        "tls" => "its certificate is not trusted, or this is no TLS server: install ca-certificates, or name your own authority in outbound.ca-bundle".to_owned(),
        "tls-setup" => "install the system's CA certificates (apt install ca-certificates), or set outbound.ca-bundle".to_owned(),
        "proxy" => "the proxy refuses to connect: look at outbound.proxy".to_owned(),
        "connect" | "connect-timeout" => format!("nobody answers at {host}: look at firewall and route; behind a proxy, set outbound.proxy"),
        _ => "try it again; if it stays, look at what is between this host and the provider".to_owned(),
    }
}
