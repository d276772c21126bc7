//! The rows of the table.

pub mod calendar;
mod growth;
mod herd;
mod idle;
mod import;
mod instructions;
mod lateness;
mod micro;
mod reads;
mod refreshes;

use crate::report::Line;
use crate::{Error, Lab};

type Measure = fn(&Lab) -> Result<Vec<Line>, Error>;

/// All of them, each with its name, those first that need nothing to be kept.
pub const ALL: &[(&str, Measure)] = &[
    ("1", reads::hot),
    ("2", reads::beyond_the_cache),
    ("3", reads::one_connection_each),
    ("5", refreshes::durable),
    ("6", refreshes::start),
    ("7", idle::memory),
    ("8", idle::nothing_due),
    ("11", herd::one_request),
    ("9", lateness::steady),
    ("10", lateness::burst),
    ("14", calendar::beside_freshd),
    ("4", instructions::per_read),
    ("13", import::jsonl),
    ("12", growth::sizes),
    ("micro", micro::parts),
    ("worst", micro::worst_reads),
];
