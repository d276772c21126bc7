//! The shape of the configuration's sections, before anything is checked but names and types.

use std::fmt;

use serde::Deserialize;
use serde::de::value::Error as FieldsError;
use serde::de::{Deserializer, Error as _, Visitor};

/// `[daemon]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DaemonShape {
    pub state_dir: Option<String>,
    pub socket: Option<String>,
    pub admin_socket: Option<String>,
    pub app_socket_dir: Option<String>,
    pub key_file: Option<String>,
    pub cache: Option<String>,
    pub log_users: Option<String>,
    pub log_level: Option<String>,
    pub log_format: Option<String>,
    pub metrics_listen: Option<String>,
    pub revocation_days: Option<i64>,
    pub allow_export: Option<bool>,
}

/// `[refresh]`: defaults of all providers, and the one cap over them.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RefreshShape {
    pub margin: Option<Length>,
    pub inactive_after: Option<Length>,
    pub max_in_flight: Option<i64>,
    pub max_unused_refreshes: Option<i64>,
    pub floor: Option<Length>,
    pub refuse_after: Option<Length>,
    pub refresh_token_warning: Option<Length>,
}

/// `[maintenance]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct MaintenanceShape {
    pub backup: Option<String>,
    pub backup_dir: Option<String>,
    pub keep: Option<i64>,
    pub optimize: Option<String>,
    pub purge: Option<String>,
}

/// `[outbound]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct OutboundShape {
    pub proxy: Option<String>,
    pub ca_bundle: Option<String>,
}

/// `[provider.NAME]`, and a profile's file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ProviderShape {
    pub profile: Option<String>,
    pub client_id: Option<String>,
    pub client_secret: Option<SecretShape>,
    pub token_endpoint: Option<String>,
    pub revocation_endpoint: Option<String>,
    pub client_auth: Option<String>,
    pub rotation: Option<String>,
    pub grace: Option<Length>,
    pub scopes: Option<Vec<String>>,
    pub margin: Option<Length>,
    pub floor: Option<Length>,
    pub max_in_flight: Option<i64>,
    pub rate: Option<String>,
    pub inactive_after: Option<Length>,
    pub max_unused_refreshes: Option<i64>,
    pub access_token_lifetime: Option<Length>,
    pub refresh_token_idle_lifetime: Option<Length>,
    pub keep_alive: Option<bool>,
    pub refresh: Option<String>,
    pub refresh_not_before: Option<Length>,
    pub refresh_while_alive: Option<bool>,
    pub refuse_after: Option<Length>,
    pub refresh_token_warning: Option<Length>,
    pub dead_grant_codes: Option<Vec<String>>,
    pub connect_timeout: Option<Length>,
    pub deadline: Option<Length>,
}

/// Where a client secret is kept, a table of exactly one key. Never the secret itself.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecretShape {
    Credential(String),
    File(String),
}

/// `[limits]`: what apps have unless they say otherwise.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct QuotaShape {
    pub max_connections: Option<i64>,
    pub max_requests_per_second: Option<i64>,
    pub alarm_users_per_hour: Option<i64>,
    pub max_users_per_hour: Option<i64>,
}

/// `[app.NAME]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AppShape {
    pub unix_user: Option<String>,
    pub unix_uid: Option<i64>,
    pub unix_group: Option<String>,
    /// `true` or a path.
    pub socket: Option<toml::Value>,
    pub namespace: Option<String>,
    pub providers: Option<Vec<String>>,
    pub may: Option<Vec<String>>,
    pub counts_as_activity: Option<bool>,
    pub max_connections: Option<i64>,
    pub max_requests_per_second: Option<i64>,
    pub alarm_users_per_hour: Option<i64>,
    pub max_users_per_hour: Option<i64>,
}

/// A length of time as written; a type of its own so that a bare number gets the right advice.
#[derive(Clone, Debug)]
pub struct Length(pub String);

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Length;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a length of time in quotes and with its unit, such as \"90s\" or \"5m\"",
                )
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Length, E> {
                Ok(Length(text.into()))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// Returns the names of a shape's keys, from its serde derive, so that no second list can disagree.
pub fn keys_of<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    let mut fields: &'static [&'static str] = &[];
    // The probe always answers with an error: it has no values to give.
    let _ = T::deserialize(FieldsProbe(&mut fields));
    fields
}

struct FieldsProbe<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for FieldsProbe<'_> {
    type Error = FieldsError;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, FieldsError> {
        *self.0 = fields;
        Err(FieldsError::custom("only the names were asked for"))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, FieldsError> {
        Err(FieldsError::custom("not a struct"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
