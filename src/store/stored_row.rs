//! Rows and sealed values from bytes nobody vouches for: what a database writer could put there, for the fuzzer.

use std::sync::LazyLock;

use rusqlite::Connection;
use rusqlite::types::Value;

use super::guarded::Guarded;
use super::rows;
use super::seal::{Bound, Purpose, Sealer};
use crate::refresh::grant::Grant;

/// The columns that `rows::grant` reads.
const COLUMNS: usize = 28;

/// Reads `bytes` as the row of a grant: for each column a byte that chooses its type, and its value.
///
/// # Errors
/// SQLite's own words, where a column has a type that it never has.
#[doc(hidden)]
pub fn read_untrusted_row(bytes: &[u8]) -> Result<Grant, String> {
    let mut rest = bytes;
    let values: [Value; COLUMNS] = std::array::from_fn(|_| value(&mut rest));
    let read = || {
        let conn = Connection::open_in_memory()?;
        let columns = ["?"; COLUMNS].join(", ");
        conn.prepare(&["SELECT ", &columns].concat())?
            .query_row(rusqlite::params_from_iter(&values), rows::grant)
    };
    read().map_err(|error: rusqlite::Error| error.to_string())
}

/// Returns whether `bytes` open as a sealed value. Bytes that no holder of the key made never do.
#[doc(hidden)]
pub fn opens_as_sealed(bytes: &[u8]) -> bool {
    SEALER.open(&BOUND, bytes).is_ok()
}

/// Returns `secret` sealed so that [`opens_as_sealed`] opens it.
#[doc(hidden)]
pub fn sealed(secret: &str) -> Vec<u8> {
    SEALER.seal(&BOUND, secret)
}

static SEALER: LazyLock<Sealer> = LazyLock::new(|| Sealer::new(Guarded::of(&[7; 32]), [7; 16], 1));

const BOUND: Bound<'_> = Bound {
    purpose: Purpose::Refresh,
    row: 7,
    namespace: "default",
    user: "anna",
    provider: "box",
    account: "",
    generation: 3,
    expires_at: None,
    scope: None,
};

fn value(rest: &mut &[u8]) -> Value {
    let Some((kind, after)) = rest.split_first() else {
        return Value::Null;
    };
    let length = match kind % 5 {
        0 => 0,
        1 => 1,
        2 => 8,
        // Text and blobs bring their length.
        _ => 1 + usize::from(after.first().copied().unwrap_or_default() % 64),
    };
    let (taken, after) = after.split_at(length.min(after.len()));
    *rest = after;
    match kind % 5 {
        0 => Value::Null,
        1 => Value::Integer(taken.first().map_or(0, |byte| i64::from(*byte as i8))),
        2 => {
            let mut number = [0; 8];
            number[..taken.len()].copy_from_slice(taken);
            Value::Integer(i64::from_le_bytes(number))
        }
        3 => Value::Text(String::from_utf8_lossy(taken.get(1..).unwrap_or_default()).into_owned()),
        _ => Value::Blob(taken.get(1..).unwrap_or_default().to_vec()),
    }
}
