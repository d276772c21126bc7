//! Row 12: how rows 5 to 7 grow with the table.

use super::{idle, refreshes};
use crate::plot::{self, Panel};
use crate::report::Line;
use crate::{Error, Lab};

/// Row 12. Draws it as well, beside the results.
pub fn sizes(lab: &Lab) -> Result<Vec<Line>, Error> {
    let sizes: &[u64] = if lab.small {
        &[1_000, 2_000]
    } else {
        &[10_000, 100_000, 1_000_000]
    };
    let mut lines = Vec::new();
    let mut curves: [Vec<(f64, f64)>; 4] = Default::default();
    for &grants in sizes {
        let count = lab.of(20_000, 200).min(grants / 3);
        let mut refreshes = refreshes::durable_at(lab, "12", grants, count)?;
        // Its aim is row 5's.
        (refreshes.aim, refreshes.reached) = (None, None);
        let per_second = refreshes.freshd;
        lines.push(refreshes);
        let start = refreshes::start_of(lab, grants)?;
        let (idle, busy) = idle::resident(lab, grants)?;
        for (what, unit, figure) in [
            ("start to READY", "ms", start),
            ("resident after reads", "MiB", idle),
            ("resident while refreshing", "MiB", busy),
        ] {
            lines.push(Line::new(
                "12",
                format!("{what}, {grants} grants"),
                unit,
                figure,
            ));
        }
        for (curve, figure) in curves.iter_mut().zip([per_second, start, idle, busy]) {
            curve.push((grants as f64, figure));
        }
    }
    let [refreshes, start, idle, busy] = curves;
    let panels = [
        Panel {
            title: "durable refreshes a second",
            lines: vec![("refreshes", refreshes)],
        },
        Panel {
            title: "start to READY, ms",
            lines: vec![("start", start)],
        },
        Panel {
            title: "resident memory, MiB",
            lines: vec![("after reads", idle), ("while refreshing", busy)],
        },
    ];
    plot::draw(&lab.directory.join("growth.svg"), &panels)?;
    Ok(lines)
}
