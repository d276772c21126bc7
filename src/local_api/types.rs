//! The API's shapes, shared by the server and `freshctl`. No field here is a secret but where it says so.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use super::condition::{Condition, CopiesView, EndingView, FailingView, LateView};
pub use super::export::ExportRequest;

/// The answer of the token route: RFC 6749 §5.1 without the refresh token. Holds a secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenAnswer {
    /// The access token. Secret.
    pub access_token: String,
    /// `Bearer`, mostly.
    pub token_type: String,
    /// Whole seconds left, counted when the answer was made; absent where nobody knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<u64>,
    /// The same moment in RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// The granted scope.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// Counts this grant's token sets; give it back when an API refuses the token.
    pub generation: u64,
    /// Whose grant.
    pub user: String,
    /// Where.
    pub provider: String,
    /// Which of the user's accounts there; left out when empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub account: String,
}

/// The state of one grant, without secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantView {
    /// The namespace.
    pub namespace: String,
    /// Whose grant.
    pub user: String,
    /// Where.
    pub provider: String,
    /// Which account; left out when empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub account: String,
    /// `active`, `paused` or `needs-authorization`.
    pub state: String,
    /// Why, where it is not active.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Since when it has this state (RFC 3339).
    pub since: String,
    /// Counts its token sets.
    pub generation: u64,
    /// When the access token ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// When something will next be done about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub due_at: Option<String>,
    /// Whether there is a refresh token.
    pub has_refresh_token: bool,
    /// When the refresh token ends, where the provider tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_token_expires_at: Option<String>,
    /// The granted scope.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// When its tokens last came in by import.
    pub imported_at: String,
    /// When a refresh last succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refreshed_at: Option<String>,
    /// When an attempt last ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempted_at: Option<String>,
    /// Failures in a row.
    pub failures: u32,
    /// The last failure's code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
    /// Refreshes in a row that nobody read.
    pub unused_refreshes: u32,
}

/// What happened to a grant, and what bears on it now. Its fingerprints are keyed and cut: no secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The grant now.
    pub grant: GrantView,
    /// How its provider fares.
    pub provider: ProviderStanding,
    /// Requests whose outcome nobody knows; absent where there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unanswered: Option<Unanswered>,
    /// Whether a newer token set is held in memory because the disk refused it.
    pub held: bool,
    /// `ok`, or why the store can't be written now.
    pub store: String,
    /// Whether a final backup was made, so that nothing is refreshed here any more.
    #[serde(default)]
    pub moved: bool,
    /// What happened, the oldest first: the last 64 entries of the last 90 days, and what led to a standing that lasts.
    pub entries: Vec<HistoryEntry>,
}

/// How a provider fares, as far as it bears on a grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderStanding {
    /// As [`ProviderView::state`].
    pub state: String,
    /// Why, where it is not running.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Since when, or until when for a cool-down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// As [`ProviderView::rotation`].
    pub rotation: String,
}

/// Requests with the present refresh token whose outcome nobody knows; one of them may be under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unanswered {
    /// When the first was sent.
    pub since: String,
    /// How many.
    pub requests: u32,
}

/// One entry of a grant's story.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// `refreshed`, `failed`, `unanswered`, `interrupted`, `superseded`, `imported`, `replaced`, `resumed`, `paused` or
    /// `needs-authorization`.
    pub event: String,
    /// When; of one that repeated, when first.
    pub at: String,
    /// When last, where it repeated; of `interrupted`, when it was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// How often.
    pub times: u64,
    /// The generation afterwards.
    pub generation: u64,
    /// A failure's short code, ours: `http-503`, `connect`, `invalid_grant`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The HTTP status, where there was an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Why the state changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who changed it: `admin`, `schedule`, `reader` or `store`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The beginning of the keyed fingerprint of the refresh token that was presented, the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub presented: Option<String>,
    /// The same of the refresh token that the grant had afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received: Option<String>,
}

/// What happened to a grant, as it is told to whoever listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventView {
    /// Its number, to resume after it; absent of what is told live only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// `connected`, `needs-authorization`, `recovered`, `paused`, `resumed`, `revoked`, `refresh-token-expiring` or `refreshed`.
    pub event: String,
    /// When.
    pub at: String,
    /// The namespace.
    pub namespace: String,
    /// Whose grant; absent of a deleted one whose name is forgotten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Where.
    pub provider: String,
    /// Which account; left out when empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub account: String,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// When the refresh token ends, of `refresh-token-expiring`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// The generation afterwards.
    pub generation: u64,
}

/// One user's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserView {
    /// The namespace.
    pub namespace: String,
    /// The user.
    pub user: String,
    /// The last counted read or activity note.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_active_at: Option<String>,
    /// The user's grants.
    pub grants: Vec<GrantView>,
}

/// The body of an import: RFC 6749 §5.1 members and some moments. Unknown members are ignored, but for what looks like one
/// of ours: see [`ImportRequest::mistaken`]. Holds secrets.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct ImportRequest {
    /// Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_token: Option<String>,
    /// Secret. Enough on its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_token: Option<String>,
    /// `Bearer` where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_type: Option<String>,
    /// Seconds, a number or a string; counts from `obtained_at`, and without that from now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<serde_json::Value>,
    /// RFC 3339, or seconds since the epoch. Wins over `expires_in`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<serde_json::Value>,
    /// RFC 3339, or seconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obtained_at: Option<serde_json::Value>,
    /// RFC 3339, or seconds since the epoch. Wins over `refresh_token_expires_in`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_token_expires_at: Option<serde_json::Value>,
    /// Seconds, a number or a string, counted as `expires_in` is; 0 is unknown.
    #[serde(
        default,
        alias = "x_refresh_token_expires_in",
        alias = "refresh_expires_in",
        skip_serializing_if = "Option::is_none"
    )]
    pub refresh_token_expires_in: Option<serde_json::Value>,
    /// A string, or an array of strings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<serde_json::Value>,
    /// The names of all other members.
    #[serde(flatten, skip_serializing)]
    pub others: BTreeMap<String, serde::de::IgnoredAny>,
}

impl ImportRequest {
    /// Returns a member that nobody reads and the one that was probably meant, if there is one.
    ///
    /// A name is mistaken for one of ours that differs in case, separators or the letter s only (`expire_at`,
    /// `refreshToken`), or that is another word for the access token's end (`expires`, `expiry`). Where the
    /// member that was meant is there too, nothing is lost.
    pub fn mistaken(&self) -> Option<(&str, &'static str)> {
        let ours = [
            ("access_token", self.access_token.is_some()),
            ("refresh_token", self.refresh_token.is_some()),
            ("token_type", self.token_type.is_some()),
            ("expires_in", self.expires_in.is_some()),
            ("expires_at", self.expires_at.is_some()),
            ("obtained_at", self.obtained_at.is_some()),
            (
                "refresh_token_expires_at",
                self.refresh_token_expires_at.is_some(),
            ),
            (
                "refresh_token_expires_in",
                self.refresh_token_expires_in.is_some(),
            ),
            ("scope", self.scope.is_some()),
        ];
        let ends = self.expires_at.is_some() || self.expires_in.is_some();
        self.others.keys().find_map(|name| {
            let plain = plain(name);
            let mut meant = ours.iter().find(|(ours, _)| self::plain(ours) == plain);
            if !ends && ENDS.contains(&plain.as_str()) {
                meant = Some(&("expires_at", false));
            }
            let (meant, _) = meant.filter(|(_, there)| !there)?;
            Some((name.as_str(), *meant))
        })
    }
}

/// What is said of a member that [`ImportRequest::mistaken`] finds.
pub fn mistaken(name: &str, meant: &str) -> String {
    // Long runs of separators are no name worth showing whole.
    let name: String = name.chars().take(40).collect();
    format!("{name} is not a member of an import; {meant} is, and is probably what is meant")
}

/// Other words for `expires_at`, as [`plain`] makes them.
const ENDS: [&str; 6] = [
    "expire",
    "expireon",
    "expiry",
    "expiration",
    "expirydate",
    "exp",
];

/// A name without what is easily mistaken.
fn plain(name: &str) -> String {
    name.chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|c| c.to_ascii_lowercase())
        .filter(|c| *c != 's')
        .collect()
}

/// What became of an import.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportAnswer {
    /// `created`, `replaced` or `unchanged`.
    pub result: String,
    /// The grant now.
    pub grant: GrantView,
}

/// The body of `POST …/refresh`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefreshRequest {
    /// The generation whose access token an API refused. Left out: whatever is current.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

/// A page of grants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantList {
    /// The grants, by row number.
    pub grants: Vec<GrantView>,
    /// Give it back as `cursor` for the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// How many grants of a provider have a state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountView {
    /// The provider.
    pub provider: String,
    /// The state.
    pub state: String,
    /// The reason; empty for active ones.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// How many.
    pub grants: u64,
}

/// One provider, as configured and as it fares.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProviderView {
    /// Its name.
    pub name: String,
    /// The profile it uses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Where refresh requests go.
    pub token_endpoint: String,
    /// Where revocations go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revocation_endpoint: Option<String>,
    /// `none`, `overlap`, `grace`, `strict`, `periodic` or `unknown`.
    pub rotation: String,
    /// The margin in seconds.
    pub margin: f64,
    /// `running`, `cooling-down`, `unreachable`, `paused`, `stopped`, or `not-configured` for grants whose provider has left the configuration.
    pub state: String,
    /// Why, where it is not running.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Since when, or until when for a cool-down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Attempts in flight.
    pub in_flight: usize,
    /// Grants by state.
    pub grants: Vec<CountView>,
}

/// A page of providers: all of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProviderList {
    /// By name.
    pub providers: Vec<ProviderView>,
}

/// How the daemon fares.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// freshd's version.
    pub version: String,
    /// When it started.
    pub started_at: String,
    /// `running`, `draining`, `moving` while a final backup is made, or `moved` after it.
    pub state: String,
    /// The configuration files in use.
    pub config: Vec<String>,
    /// Why the last reload was refused; absent when it was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reload_error: Option<String>,
    /// All grants by state and provider.
    pub grants: Vec<CountView>,
    /// Each provider.
    pub providers: Vec<ProviderView>,
    /// Attempts in flight, over all providers.
    pub in_flight: usize,
    /// The next moment at which something is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_due_at: Option<String>,
    /// Token sets held in memory because the disk refused them.
    pub held: usize,
    /// Revocations that wait for their provider.
    pub revocations: u64,
    /// The data keys.
    pub keys: KeysView,
    /// `ok`, or why the store can't be written now.
    pub store: String,
    /// The rest.
    #[serde(flatten)]
    pub condition: Condition,
}

/// The data keys, by their ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysView {
    /// The one that seals.
    pub current: u32,
    /// The rotation that is under way, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<KeyRotation>,
}

/// How far a rotation of the data key is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRotation {
    /// The keys that are to be retired.
    pub from: Vec<u32>,
    /// How many rows have been sealed anew, of `rows`; both since the last start or pause.
    pub resealed: u64,
    /// How many rows the old keys had sealed then; 0 while they are being counted.
    pub rows: u64,
    /// What it waits for, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
}

/// How far the renewal of a provider's grants is: [`GET /v1/providers/{provider}/refresh`](super).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewalView {
    /// The provider.
    pub provider: String,
    /// As [`ProviderView::state`]: one that does not run renews nothing until it does.
    pub state: String,
    /// As [`ProviderView::reason`].
    pub reason: String,
    /// Every token set from before this (RFC 3339) is replaced; absent where nobody has asked for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Grants that are still to be refreshed for it.
    pub left: u64,
    /// Grants that are older too, and are not refreshed: paused by an admin, held, restored, quarantined, without a
    /// refresh token, or in need of authorization.
    pub resting: u64,
    /// All grants of the provider.
    pub grants: u64,
}

/// The body of `POST /v1/backup`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupRequest {
    /// Where the daemon writes the copy: the absolute path of a file that is not there.
    pub path: String,
    /// Whether it is for a move to another host: then this store never refreshes again.
    #[serde(default, rename = "final")]
    pub last: bool,
}

/// A finished backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupAnswer {
    /// The copy.
    pub path: String,
    /// When it was made (RFC 3339).
    pub made_at: String,
    /// Its length.
    pub bytes: u64,
    /// How many grants are in it.
    pub grants: u64,
    /// How many of these are quarantined.
    pub quarantined: u64,
    /// How many revocations wait in it.
    pub revocations: u64,
}

/// An answer of `GET /v1/audit`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditList {
    /// The notes, the newest first.
    pub entries: Vec<AuditView>,
    /// Where the next page begins; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// What somebody did with freshd itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditView {
    /// Its number.
    pub id: u64,
    /// When, or when first (RFC 3339).
    pub at: String,
    /// When last, where it was repeated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// How often.
    pub times: u64,
    /// `read`, `refused`, `rules-changed`, `backed-up`, `key-rotation`, `restored`.
    pub action: String,
    /// Who: `uid 1000`.
    pub by: String,
    /// A keyed hash of the user it was about; empty where it was about nobody.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// The rest, in words.
    pub detail: String,
}

/// How many grants a bulk verb changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// The number of grants.
    pub changed: u64,
}

/// An error (RFC 9457, `application/problem+json`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Stable: `urn:freshd:needs-authorization`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The same for every problem of this type.
    pub title: String,
    /// The HTTP status code.
    pub status: u16,
    /// What happened this time, and what to do next.
    pub detail: String,
    /// Why the grant is as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Since when (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Whole seconds after which trying again makes sense; also the `Retry-After` header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
}

/// The trailer that says how many grants an export with secrets holds.
pub const EXPORTED_GRANTS: &str = "freshd-grants";
