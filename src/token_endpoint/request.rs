//! The form, and how the client authenticates with it (RFC 6749 §2.3.1).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::RequestBuilder;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use url::{Url, form_urlencoded};
use zeroize::Zeroizing;

use crate::profile::{ClientAuth, Registration};

/// Makes the request. Nothing of it is in the URL (RFC 6749 §2.3.1, §3.2).
pub fn build(
    http: &reqwest::Client,
    registration: &Registration,
    endpoint: &Url,
    form: &[(&str, &str)],
) -> RequestBuilder {
    let secret = registration
        .client_secret
        .as_ref()
        .map(|secret| secret.expose());
    let mut body = form_urlencoded::Serializer::new(String::new());
    body.extend_pairs(form);
    let mut request = http.post(endpoint.clone());
    match (registration.client_auth, secret) {
        (ClientAuth::Basic, secret) => {
            let value = basic(&registration.client_id, secret.unwrap_or_default());
            request = request.header(AUTHORIZATION, value);
        }
        (ClientAuth::Body, Some(secret)) => {
            body.append_pair("client_id", &registration.client_id);
            body.append_pair("client_secret", secret);
        }
        (ClientAuth::Body | ClientAuth::None, _) => {
            body.append_pair("client_id", &registration.client_id);
        }
    }
    request
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(body.finish())
}

/// Makes the `Authorization` value: both halves form-encoded, then joined by a colon, so that a colon in the
/// client identifier and a `%` or `+` in the secret arrive as they are.
fn basic(client_id: &str, secret: &str) -> HeaderValue {
    let mut pair = Zeroizing::new(String::new());
    pair.extend(form_urlencoded::byte_serialize(client_id.as_bytes()));
    pair.push(':');
    pair.extend(form_urlencoded::byte_serialize(secret.as_bytes()));
    let value = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
    let mut value = HeaderValue::from_str(&value).expect("base64 is printable ASCII");
    value.set_sensitive(true);
    value
}
