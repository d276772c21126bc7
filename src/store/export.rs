//! Every grant with its tokens, encrypted to recipients that an admin names (<https://age-encryption.org/v1>).
//!
//! This is the one place where refresh tokens leave the seal for somebody else than their provider, by an admin's
//! express wish (I6). Their plain text is in memory only, a page at a time. Within the encryption are lines of JSON:
//! a header with the member `freshd_export`, a line per grant in the shape of an import, and an end with the member
//! `freshd_export_end`.

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use age::stream::StreamWriter;
use serde::Serialize;
use zeroize::Zeroizing;

use super::audit::AuditNote;
use super::open::{OpenError, Options};
use super::rekey;
use super::rows;
pub use super::schedule::Filter;
use super::schedule::list;
use super::seal::Purpose;
use super::session::{Session, Trouble};
use super::{Kek, Store, StoreError};
use crate::refresh::grant::{Grant, GrantId};
use crate::refresh::time::UnixTime;

/// Grants that are opened and encrypted at once; a token may have 16 KiB.
const PAGE: usize = 200;
/// The version of the lines' shape.
const SHAPE: u32 = 1;
const BUSY: Duration = Duration::from_secs(10);

/// Each is told in the audit, and costs a multiplication on the curve.
const MOST_RECIPIENTS: usize = 32;
/// The points of low order of Curve25519 (RFC 7748 §6.1), each with and without its highest bit, which is ignored. age
/// panics where it is to encrypt to one.
const LOW_ORDER: [&str; 14] = [
    "age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq5cu47z",
    "age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqzqqsuwj9m",
    "age1qyqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqj7vrya",
    "age1qyqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqzqqk67yly",
    "age1ur4h5lpmgxu2u9jku0a0r87ydtdqnr0tnsetrlvxvgz3vh6fhqqqzyt4v9",
    "age1ur4h5lpmgxu2u9jku0a0r87ydtdqnr0tnsetrlvxvgz3vh6fhzqqxqejhu",
    "age1t7wft09r2zxzfvwsk92eeql0tvzyghxytqwgapkcyf8dm5ylz9ts6wm9s8",
    "age1t7wft09r2zxzfvwsk92eeql0tvzyghxytqwgapkcyf8dm5ylz8ts72fzt7",
    "age1anlllllllllllllllllllllllllllllllllllllllllllllllals4n2t7m",
    "age1anllllllllllllllllllllllllllllllllllllllllllllllllls3hcv9z",
    "age1ahlllllllllllllllllllllllllllllllllllllllllllllllalsn46ayy",
    "age1ahlllllllllllllllllllllllllllllllllllllllllllllllllsh3g6la",
    "age1amlllllllllllllllllllllllllllllllllllllllllllllllalselrwrv",
    "age1amlllllllllllllllllllllllllllllllllllllllllllllllllsam3fc4",
];

/// Why an export did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The state directory is in use or unusable, or the key does not fit.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is no store.
    #[error("there is no store in {0}")]
    NoStore(String),
    /// Token sets that the disk refused are newer than what the store has.
    #[error("{0} token sets are not in the store yet, because the disk refused them")]
    Held(usize),
    /// The store can't be read.
    #[error("the export stopped: {0}")]
    Store(#[from] StoreError),
    /// The output takes no more.
    #[error("the export could not be written: {0}")]
    Output(#[from] io::Error),
}

impl ExportError {
    /// Returns the exit code (sysexits).
    pub fn exit_code(&self) -> u8 {
        match self {
            ExportError::Open(error) => error.exit_code(),
            ExportError::NoStore(_) => 66,
            ExportError::Held(_) => 75,
            ExportError::Store(error) if error.is_temporary() => 75,
            ExportError::Store(_) | ExportError::Output(_) => 74,
        }
    }
}

/// Who can read an export: public keys, one at least.
#[derive(Clone)]
pub struct Recipients(Vec<(String, age::x25519::Recipient)>);

impl Recipients {
    /// Reads keys that begin with `age1`.
    ///
    /// # Errors
    /// The rule that was broken, with what to do. A private key that was given by mistake is not shown.
    pub fn read<S: AsRef<str>>(texts: &[S]) -> Result<Recipients, String> {
        if texts.is_empty() {
            return Err("secrets are exported encrypted only: --recipient must name the public key of who is to read them, age1… as age-keygen prints it".to_owned());
        }
        let mut read: Vec<(String, age::x25519::Recipient)> = Vec::new();
        for text in texts {
            let text = text.as_ref().trim();
            let key = text.parse::<age::x25519::Recipient>();
            let key = key.map_err(|_| match text.get(..15) {
                Some("AGE-SECRET-KEY-") => "a recipient must be a public key (age1…), and this is a secret key: whoever has seen it can read what is encrypted to it, so make another: age-keygen".to_owned(),
                _ => format!("recipient {text:?} must be an X25519 public key of age: age1 and 58 characters, as age-keygen prints it"),
            })?;
            let name = key.to_string();
            if LOW_ORDER.contains(&name.as_str()) {
                return Err(format!(
                    "recipient {name} is no key that anybody has: what is encrypted to it everybody could read; name one that age-keygen made"
                ));
            }
            if read.iter().all(|(known, _)| *known != name) {
                read.push((name, key));
            }
        }
        if read.len() > MOST_RECIPIENTS {
            return Err(format!(
                "there are {} recipients but must be at most {MOST_RECIPIENTS}",
                read.len()
            ));
        }
        Ok(Recipients(read))
    }

    /// Returns the public keys, for the audit.
    pub fn names(&self) -> String {
        let names: Vec<&str> = self.0.iter().map(|(name, _)| name.as_str()).collect();
        names.join(", ")
    }
}

/// Returns whether there is any grant at this provider, configured or not.
///
/// # Errors
/// The store can't be read.
pub async fn holds(store: &Store, provider: &str) -> Result<bool, StoreError> {
    let filter = Filter {
        provider: Some(provider.to_owned()),
        ..Filter::default()
    };
    let first = store.read(move |session| list(session, &filter, None, 1));
    Ok(!first.await?.is_empty())
}

/// How much was exported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Grants that are in the export.
    pub grants: u64,
    /// Grants that are not, because none of their tokens opens.
    pub left_out: u64,
}

impl Exported {
    /// Returns what an audit tells of it: to whom, how many, and how it ended.
    pub fn detail(&self, to: &Recipients, ended: &Result<(), String>) -> String {
        let grants = self.grants;
        let ended = match ended {
            Ok(()) => "done".to_owned(),
            Err(error) => format!("not done: {error}"),
        };
        format!("{grants} grants with secrets to {}, {ended}", to.names())
    }
}

/// One line: first the members that an import reads, then what it passes over. Holds secrets.
#[derive(Serialize)]
struct Line<'a> {
    namespace: &'a str,
    user: &'a str,
    provider: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    account: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    access_token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    obtained_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token_expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'a str>,
    state: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    since: String,
    generation: u64,
    imported_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    refreshed_at: Option<String>,
}

/// A grant with what of it opens.
struct Opened {
    grant: Grant,
    access: Option<Zeroizing<String>>,
    refresh: Option<Zeroizing<String>>,
}

impl Opened {
    fn line(&self) -> Line<'_> {
        let grant = &self.grant;
        let access = grant.access.as_ref().filter(|_| self.access.is_some());
        Line {
            namespace: &grant.key.namespace,
            user: &grant.key.user,
            provider: &grant.key.provider,
            account: &grant.key.account,
            access_token: self.access.as_ref().map(|it| it.as_str()),
            refresh_token: self.refresh.as_ref().map(|it| it.as_str()),
            token_type: access.map(|it| it.token_type.as_str()),
            obtained_at: access.map(|it| it.obtained_at.rfc3339()),
            expires_at: access.and_then(|it| it.expires_at).map(UnixTime::rfc3339),
            refresh_token_expires_at: grant.refresh_token_end.map(|it| it.expires_at.rfc3339()),
            scope: grant.scope.as_deref(),
            state: grant.standing.name(),
            reason: grant.standing.reason(),
            since: grant.standing_since.rfc3339(),
            generation: grant.generation,
            imported_at: grant.imported_at.rfc3339(),
            refreshed_at: grant.refreshed_at.map(UnixTime::rfc3339),
        }
    }
}

/// What is encrypted and not taken yet.
#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut buffer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        buffer.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Buffer {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// An export under way: gives encrypted bytes, a page of grants at a time.
pub struct Export {
    store: Store,
    filter: Filter,
    /// `None` once the end has been written: what has no end is not taken for whole by whoever decrypts it.
    writer: Option<StreamWriter<Buffer>>,
    buffer: Buffer,
    after: Option<GrantId>,
    exported: Exported,
}

impl Export {
    /// Begins an export of the grants that `filter` leaves.
    ///
    /// # Errors
    /// The encryption can't begin: no random numbers.
    pub fn begin(
        store: &Store,
        filter: Filter,
        to: &Recipients,
        at: UnixTime,
    ) -> Result<Export, ExportError> {
        let buffer = Buffer::default();
        let recipients = to.0.iter().map(|(_, key)| key as &dyn age::Recipient);
        let encryptor = age::Encryptor::with_recipients(recipients).map_err(io::Error::other)?;
        let mut writer = encryptor.wrap_output(buffer.clone())?;
        let made_at = at.rfc3339();
        line(
            &mut writer,
            &serde_json::json!({ "freshd_export": SHAPE, "made_at": made_at }),
        )?;
        Ok(Export {
            store: store.clone(),
            filter,
            writer: Some(writer),
            buffer,
            after: None,
            exported: Exported::default(),
        })
    }

    /// Returns how much has been exported.
    pub fn exported(&self) -> Exported {
        self.exported
    }

    /// Returns the next encrypted bytes, `None` after the last.
    ///
    /// # Errors
    /// The store can't be read. What was written so far has no end, and decrypts to an error.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, ExportError> {
        let Some(writer) = &mut self.writer else {
            return Ok(None);
        };
        let (filter, after) = (self.filter.clone(), self.after);
        let page = self
            .store
            .read(move |session| open_page(session, &filter, after))
            .await?;
        for opened in &page {
            if opened.access.is_none() && opened.refresh.is_none() {
                self.exported.left_out += 1;
                continue;
            }
            line(writer, &opened.line())?;
            self.exported.grants += 1;
        }
        self.after = page.last().map(|opened| opened.grant.id);
        if page.len() < PAGE {
            let Exported { grants, left_out } = self.exported;
            let end = serde_json::json!({ "grants": grants, "left_out": left_out });
            line(writer, &serde_json::json!({ "freshd_export_end": end }))?;
            if let Some(writer) = self.writer.take() {
                writer.finish()?;
            }
        }
        Ok(Some(self.buffer.take()))
    }
}

fn open_page(
    session: &Session<'_>,
    filter: &Filter,
    after: Option<GrantId>,
) -> Result<Vec<Opened>, Trouble> {
    let grants = list(session, filter, after, PAGE)?;
    let opened = grants.into_iter().map(|grant| {
        let access = rows::open(session, &grant, Purpose::Access)?.secret();
        let refresh = rows::open(session, &grant, Purpose::Refresh)?.secret();
        Ok(Opened {
            grant,
            access,
            refresh,
        })
    });
    opened.collect()
}

/// Writes one line; its plain text is wiped.
fn line(writer: &mut StreamWriter<Buffer>, value: &impl Serialize) -> io::Result<()> {
    let mut text = Zeroizing::new(Vec::with_capacity(1 << 12));
    serde_json::to_writer(&mut *text, value)?;
    text.push(b'\n');
    writer.write_all(&text)
}

/// Exports a store that no daemon uses, and notes that in its audit, whether it ended well or not.
///
/// # Errors
/// See [`ExportError`]. Nothing in the store has changed but its audit.
pub async fn export_offline(
    dir: &Path,
    kek: &Kek,
    filter: Filter,
    to: &Recipients,
    by: &str,
    at: UnixTime,
    out: &mut dyn Write,
) -> Result<Exported, ExportError> {
    if !rekey::has_store(dir) {
        return Err(ExportError::NoStore(dir.display().to_string()));
    }
    let store = Store::open(Options {
        dir: dir.into(),
        kek: kek.clone(),
        busy_timeout: BUSY,
    })?;
    let (exported, ended) = write_all(&store, filter, to, at, out).await;
    let told = ended.as_ref().map(|_| ()).map_err(ToString::to_string);
    let note = AuditNote {
        action: "exported".to_owned(),
        by: by.to_owned(),
        user: String::new(),
        detail: exported.detail(to, &told),
        first_at: at,
        last_at: at,
        times: 1,
    };
    let noted = store.note(note).await;
    store.close().await;
    ended?;
    noted?;
    Ok(exported)
}

async fn write_all(
    store: &Store,
    filter: Filter,
    to: &Recipients,
    at: UnixTime,
    out: &mut dyn Write,
) -> (Exported, Result<(), ExportError>) {
    let mut exported = Exported::default();
    let ended = async {
        // The daemon stores these when it starts; until then the store has older ones.
        match store.spilled().await?.len() {
            0 => {}
            held => return Err(ExportError::Held(held)),
        }
        let mut export = Export::begin(store, filter, to, at)?;
        while let Some(bytes) = export.next().await? {
            exported = export.exported();
            out.write_all(&bytes)?;
        }
        out.flush()?;
        Ok(())
    };
    let ended = ended.await;
    (exported, ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(texts: &[String]) -> String {
        Recipients::read(texts).err().expect("it is refused")
    }

    #[test]
    fn a_point_of_low_order_is_no_recipient() {
        for text in LOW_ORDER {
            let why = refused(&[text.to_owned()]);
            assert!(why.contains("no key that anybody has"), "{text}: {why}");
        }
    }

    #[test]
    fn a_recipient_counts_once_and_there_are_32_at_most() {
        let one = || age::x25519::Identity::generate().to_public().to_string();
        let mut texts = vec![one(); 3000];
        let to = Recipients::read(&texts).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(to.names(), texts[0]);
        texts.extend((1..MOST_RECIPIENTS).map(|_| one()));
        assert!(Recipients::read(&texts).is_ok());
        texts.push(one());
        assert!(refused(&texts).contains("33 recipients but must be at most 32"));
    }
}
