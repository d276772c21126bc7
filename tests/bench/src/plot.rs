//! Figures that grow with the table, drawn as SVG.

use std::path::Path;

use plotters::prelude::*;

use crate::Error;

/// One picture: lines over numbers of grants.
pub struct Panel {
    pub title: &'static str,
    pub lines: Vec<(&'static str, Vec<(f64, f64)>)>,
}

const COLOURS: [RGBColor; 2] = [RGBColor(0x1f, 0x5f, 0xa8), RGBColor(0xc8, 0x5a, 0x11)];

/// Draws panels side by side.
pub fn draw(file: &Path, panels: &[Panel]) -> Result<(), Error> {
    let width = 320 * u32::try_from(panels.len())?;
    let root = SVGBackend::new(file, (width, 260)).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, panel) in root.split_evenly((1, panels.len())).iter().zip(panels) {
        draw_panel(area, panel)?;
    }
    root.present()?;
    Ok(())
}

fn draw_panel(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    panel: &Panel,
) -> Result<(), Error> {
    let points = || panel.lines.iter().flat_map(|(_, points)| points);
    let least = points().map(|point| point.0).fold(f64::MAX, f64::min);
    let most = points().map(|point| point.0).fold(0.0, f64::max);
    let top = points().map(|point| point.1).fold(0.0, f64::max) * 1.25;
    let mut chart = ChartBuilder::on(area)
        .caption(panel.title, ("sans-serif", 15))
        .margin(12)
        .margin_right(24)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d((least..most).log_scale(), 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(3)
        .y_labels(5)
        .x_desc("grants")
        .x_label_formatter(&|grants| match grants / 1e6 {
            millions if millions >= 1.0 => format!("{millions:.0} M"),
            _ => format!("{:.0} k", grants / 1e3),
        })
        .y_label_formatter(&|value| format!("{value:.0}"))
        .draw()?;
    for ((name, points), colour) in panel.lines.iter().zip(COLOURS) {
        let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2)).point_size(3);
        chart
            .draw_series(line)?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], colour));
    }
    if panel.lines.len() > 1 {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.mix(0.8))
            .draw()?;
    }
    Ok(())
}
