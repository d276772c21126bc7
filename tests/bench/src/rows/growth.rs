//! Row 12: how rows 5 to 7 grow with the table.

use super::{idle, refreshes};
use crate::report::Line;
use crate::{Error, Lab};

/// Row 12.
pub fn sizes(lab: &Lab) -> Result<Vec<Line>, Error> {
    let sizes: &[u64] = if lab.small {
        &[1_000, 2_000]
    } else {
        &[10_000, 100_000, 1_000_000]
    };
    let mut lines = Vec::new();
    for &grants in sizes {
        let count = lab.of(20_000, 200).min(grants / 3);
        let mut refreshes = refreshes::durable_at(lab, "12", grants, count)?;
        // Its aim is row 5's.
        (refreshes.aim, refreshes.reached) = (None, None);
        lines.push(refreshes);
        lines.push(Line::new(
            "12",
            format!("start to READY, {grants} grants"),
            "ms",
            refreshes::start_of(lab, grants)?,
        ));
        let (idle, busy) = idle::resident(lab, grants)?;
        lines.push(Line::new(
            "12",
            format!("resident after reads, {grants} grants"),
            "MiB",
            idle,
        ));
        lines.push(Line::new(
            "12",
            format!("resident while refreshing, {grants} grants"),
            "MiB",
            busy,
        ));
    }
    Ok(lines)
}
